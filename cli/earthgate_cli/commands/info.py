"""``earthgate info``."""

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("info")
@click.argument("file")
@options.speech
def command(*, file: str, speech: output.Speech) -> None:
    """Say what a model, adapter, bank of styles, map or scene is."""
    speech.run(
        lambda _: earthgate_geo.describe(file, model_folder=options.model_folder()),
        summary.info_lines,
    )
