"""``earthgate adapt``."""

import shlex
from pathlib import Path
from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, scenes, summary


@click.command("adapt")
@options.scenes
@click.option("--dst", type=options.FilePath, help="Map to write, a COG; without it only adapt.")
@options.folder
@options.outputs
@options.vectors
@options.running
@click.option("--report", type=options.FilePath, help="HTML page about the run to write.")
@click.option("--out", type=options.FilePath, help="Adapter file [default: beside --dst].")
@click.option("--labels", metavar="FILE", help="Polygons, points or a raster of known classes.")
@options.label_rules
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after these.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps to train [default: 3 minutes].")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@options.policy
@options.overwrite
@options.dry_run
@options.job_speech
@click.pass_obj
def command(
    arguments: list[str],
    /,
    *,
    src: tuple[str, ...],
    out_dir: Path | None,
    name: str | None,
    vector_format: str | None,
    dry_run: bool,
    speech: output.Speech,
    **asked: Any,
) -> int:
    """Adapt a model to scenes of one sensor, with or without labels, and map them."""
    first, *more = scenes.scene_paths(src, out_dir=out_dir)
    request = earthgate_geo.AdaptRequest(
        src=first,
        more=tuple(more),
        out_dir=out_dir,
        model_folder=options.model_folder(),
        cache=options.cache_folder(),
        command=shlex.join(["earthgate", *arguments]),
        **scenes.in_folder(out_dir, {"name": name, "vector_format": vector_format}),
        **asked,
    )
    request.check()  # before torch is loaded, which takes seconds
    if dry_run:
        document = speech.run(
            lambda monitor: earthgate_geo.plan_adapt(request, monitor), summary.plan_lines
        )
    else:
        document = speech.run(
            lambda monitor: earthgate_geo.run_adapt(request, monitor), summary.adapt_lines
        )
    return scenes.exit_code(document)
