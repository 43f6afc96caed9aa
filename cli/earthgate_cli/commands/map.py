"""``earthgate map``."""

from pathlib import Path
from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, scenes, summary


@click.command("map")
@options.scenes
@click.option("--dst", type=options.FilePath, help="Map to write, a COG, of a single scene.")
@options.folder
@click.option("--retry-failed", is_flag=True, help="Map scenes in it that failed before again.")
@options.outputs
@options.vectors
@options.running
@options.overwrite
@options.dry_run
@options.job_speech
def command(
    *,
    src: tuple[str, ...],
    out_dir: Path | None,
    name: str | None,
    vector_format: str | None,
    retry_failed: bool,
    dry_run: bool,
    speech: output.Speech,
    **asked: Any,
) -> int:
    """Map scenes with a model, or with an adapter made for them."""
    srcs = scenes.scene_paths(src, out_dir=out_dir)
    in_folder = scenes.in_folder(
        out_dir, {"name": name, "vector_format": vector_format, "retry_failed": retry_failed}
    )
    scenes.check_place(len(srcs), dst=asked["dst"], out_dir=out_dir)
    each = earthgate_geo.MapRequest(
        src=srcs[0], model_folder=options.model_folder(), cache=options.cache_folder(), **asked
    )
    if out_dir is None:
        return _map_one(each, dry_run, speech)
    request = earthgate_geo.BatchRequest(srcs=srcs, out_dir=out_dir, each=each, **in_folder)
    return _map_many(request, dry_run, speech)


# Quoted, because `earthgate --help` must not load what requests need.
def _map_one(request: "earthgate_geo.MapRequest", dry_run: bool, speech: output.Speech) -> int:
    request.check()  # before torch is loaded, which takes seconds
    if dry_run:
        speech.run(lambda monitor: earthgate_geo.plan(request, monitor), summary.plan_lines)
    else:
        speech.run(lambda monitor: earthgate_geo.run_map(request, monitor), summary.map_lines)
    return 0


def _map_many(request: "earthgate_geo.BatchRequest", dry_run: bool, speech: output.Speech) -> int:
    request.check()  # before torch is loaded, which takes seconds
    if dry_run:
        document = speech.run(
            lambda monitor: earthgate_geo.plan_batch(request, monitor), summary.plan_batch_lines
        )
    else:
        document = speech.run(
            lambda monitor: earthgate_geo.run_batch(request, monitor), summary.batch_lines
        )
    return scenes.exit_code(document)
