"""``earthgate vectorize``."""

from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("vectorize")
@click.option("--map", "map_path", required=True, metavar="MAP", help="Map that earthgate wrote.")
@click.option(
    "--dst",
    required=True,
    type=options.FilePath,
    help="Polygons to write: .gpkg, .fgb or .parquet.",
)
@options.vectors
@options.overwrite
@options.job_speech
def command(*, map_path: str, speech: output.Speech, **asked: Any) -> None:
    """Turn a map into polygons with class, confidence and area."""
    request = earthgate_geo.VectorizeRequest(map=map_path, **asked)
    speech.run(
        lambda monitor: earthgate_geo.run_vectorize(request, monitor), summary.vectorize_lines
    )
