"""``earthgate models``."""

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("models")
@options.speech
def command(*, speech: output.Speech) -> None:
    """List the models at hand: packaged, and in the folder EARTHGATE_MODELS."""
    speech.run(
        lambda _: earthgate_geo.list_models(options.model_folder()),
        summary.models_lines,
    )
