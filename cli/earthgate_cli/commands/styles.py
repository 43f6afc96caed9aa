"""``earthgate styles``."""

from pathlib import Path
from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.group("styles")
def command() -> None:
    """Gather the styles of images, to train with."""


@command.command("build")
@click.argument("data", type=options.FilePath, metavar="DIR")
@click.option("--out", required=True, type=options.FilePath, help="Bank of styles to write.")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=2000,
    show_default=True,
    help="Most parts of images to look at.",
)
@click.option("--bands", type=options.numbers, metavar="NAME=N,...", help="Red, green and blue.")
@click.option(
    "--predictor",
    type=options.FilePath,
    metavar="FILE",
    help="Style Augmentation's network that measures styles [default: statistics do].",
)
@click.option(
    "--transformer", type=options.FilePath, metavar="FILE", help="The one that restyles images."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of parts.")
@options.overwrite
@options.dry_run
@options.job_speech
def build(*, data: Path, dry_run: bool, speech: output.Speech, **asked: Any) -> None:
    """Gather the styles of all images in DIR and the folders below.

    Labels are passed over: folders whose names begin with labels, and files that end in _labels,
    _truth or _dsm.
    """
    request = earthgate_geo.StylesRequest(data=data, **asked)
    request.check()  # before torch is loaded, which takes seconds
    if dry_run:
        speech.run(
            lambda monitor: earthgate_geo.plan_styles(request, monitor), summary.styles_plan_lines
        )
    else:
        speech.run(lambda monitor: earthgate_geo.run_styles(request, monitor), summary.styles_lines)
