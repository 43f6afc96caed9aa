"""``earthgate doctor``."""

import os

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("doctor")
@options.speech
def command(*, speech: output.Speech) -> None:
    """Check this installation; exit 1 where something is broken."""
    document = earthgate_geo.diagnose(
        model_folder=options.model_folder(),
        cache_folder=options.cache_folder(),
        environment=os.environ,
    )
    speech.result(document, summary.doctor_lines)
    if not document["healthy"]:
        raise click.exceptions.Exit(1)
