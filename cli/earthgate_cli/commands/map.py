"""``earthgate map``."""

from pathlib import Path
from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("map")
@options.scene
@click.option("--dst", required=True, type=options.FilePath, help="Map to write, a COG.")
@options.outputs
@options.overwrite
@options.dry_run
@options.job_speech
def command(*, dst: Path, dry_run: bool, speech: output.Speech, **asked: Any) -> None:
    """Map a scene with a model, or with an adapter made for it."""
    request = earthgate_geo.MapRequest(dst=dst, model_folder=options.model_folder(), **asked)
    request.check()  # before torch is loaded, which takes seconds
    if dry_run:
        speech.run(lambda monitor: earthgate_geo.plan(request, monitor), summary.plan_lines)
    else:
        speech.run(lambda monitor: earthgate_geo.run_map(request, monitor), summary.map_lines)
