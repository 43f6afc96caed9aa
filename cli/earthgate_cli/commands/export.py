"""``earthgate export``."""

from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("export")
@click.option("--onnx", required=True, type=options.FilePath, help="ONNX file to write.")
@click.option("--model", metavar="NAME|FILE", help="Model or adapter [default: packaged].")
@click.option(
    "--tile",
    "tile_px",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Side of the images that it will take [default: the model's].",
)
@options.overwrite
@options.job_speech
def command(*, speech: output.Speech, **asked: Any) -> None:
    """Write a model for ONNX Runtime and for Deepness, a plugin of QGIS."""
    request = earthgate_geo.ExportRequest(model_folder=options.model_folder(), **asked)
    request.check()  # before torch is loaded, which takes seconds
    speech.run(lambda monitor: earthgate_geo.run_export(request, monitor), summary.export_lines)
