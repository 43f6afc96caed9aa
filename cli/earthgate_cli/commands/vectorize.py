"""``earthgate vectorize``."""

from pathlib import Path

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("vectorize")
@click.option("--map", "map_path", required=True, metavar="MAP", help="Map that earthgate wrote.")
@click.option("--dst", required=True, type=options.FilePath, help="GeoPackage to write.")
@options.overwrite
@options.job_speech
def command(*, map_path: str, dst: Path, overwrite: bool, speech: output.Speech) -> None:
    """Turn a map into polygons with class, confidence and area."""
    request = earthgate_geo.VectorizeRequest(map=map_path, dst=dst, overwrite=overwrite)
    speech.run(
        lambda monitor: earthgate_geo.run_vectorize(request, monitor), summary.vectorize_lines
    )
