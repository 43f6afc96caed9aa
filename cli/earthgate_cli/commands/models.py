"""``earthgate models``."""

from pathlib import Path
from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.group("models", invoke_without_command=True)
@click.option(
    "--stac", type=options.FilePath, metavar="DIR", help="Write a STAC Item of each there, too."
)
@options.overwrite
@options.speech
@click.pass_context
def command(
    context: click.Context, *, stac: Path | None, overwrite: bool, speech: output.Speech
) -> None:
    """List the models at hand: packaged, and in the folder EARTHGATE_MODELS."""
    if context.invoked_subcommand is not None:
        return
    folder = options.model_folder()
    if stac is None:
        speech.run(lambda _: earthgate_geo.list_models(folder), summary.models_lines)
    else:
        speech.run(
            lambda _: earthgate_geo.catalogue_models(stac, folder, overwrite=overwrite),
            summary.models_lines,
        )


def _names(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


@command.command("import")
@click.argument("checkpoint", type=options.FilePath)
@click.option(
    "--classes",
    required=True,
    metavar="NAME|FILE",
    help="isprs, loveda, casid, or a classes.json in the checkpoint's order.",
)
@click.option("--out", required=True, type=options.FilePath, help="Model file to write.")
@click.option("--weights", metavar="FILE|published", help="DINOv2's, if the checkpoint lacks them.")
@click.option(
    "--channels",
    callback=_names,
    default="red,green,blue",
    show_default=True,
    metavar="NAME,NAME,NAME",
    help="What its images show, e.g. nir,red,green.",
)
@click.option("--gsd", type=float, metavar="M", help="Ground size of a pixel of its images.")
@click.option("--tile", "tile_px", type=click.IntRange(min=1), help="Side of a tile in pixels.")
@options.overwrite
@options.job_speech
def import_(*, checkpoint: Path, speech: output.Speech, **asked: Any) -> None:
    """Make a model file of CHECKPOINT, one that CrossEarth's authors released."""
    request = earthgate_geo.ImportRequest(checkpoint=checkpoint, **asked)
    request.check()  # before torch is loaded, which takes seconds
    speech.run(lambda monitor: earthgate_geo.run_import(request, monitor), summary.import_lines)
