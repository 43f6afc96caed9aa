"""``earthgate evaluate``."""

from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("evaluate")
@click.option("--map", "map_path", required=True, metavar="MAP", help="Map that earthgate wrote.")
@click.option("--labels", required=True, metavar="FILE", help="Truth: a raster or polygons.")
@options.label_rules
@options.job_speech
def command(*, map_path: str, speech: output.Speech, **asked: Any) -> None:
    """Compare a map with known classes."""
    request = earthgate_geo.EvaluateRequest(map=map_path, **asked)
    speech.run(lambda _: earthgate_geo.run_evaluate(request), summary.evaluate_lines)
