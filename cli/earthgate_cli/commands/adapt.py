"""``earthgate adapt``."""

import shlex
from pathlib import Path
from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("adapt")
@options.scene
@click.option("--dst", type=options.FilePath, help="Map to write, a COG; without it only adapt.")
@options.outputs
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
    dst: Path | None,
    dry_run: bool,
    speech: output.Speech,
    **asked: Any,
) -> None:
    """Adapt a model to a scene, with or without labels, and map the scene."""
    request = earthgate_geo.AdaptRequest(
        dst=dst,
        model_folder=options.model_folder(),
        command=shlex.join(["earthgate", *arguments]),
        **asked,
    )
    request.check()  # before torch is loaded, which takes seconds
    if dry_run:
        speech.run(lambda monitor: earthgate_geo.plan(request, monitor), summary.plan_lines)
    else:
        speech.run(lambda monitor: earthgate_geo.run_adapt(request, monitor), summary.adapt_lines)
