"""``earthgate train``."""

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import earthgate_geo
from earthgate_cli import options, output, summary


def _settings(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    """Take the defaults of the other options from a TOML file, which names the folder itself."""
    if value.suffix.lower() != ".toml":
        return value
    try:
        with value.open("rb") as file:
            given = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{value} cannot be read as TOML: {error}", ctx, param) from error
    names = {opt.lstrip("-"): each.name for each in ctx.command.params for opt in each.opts}
    foreign = sorted(given.keys() - names.keys())
    if foreign or "data" not in given:
        problem = f"does not know {foreign[0]!r}" if foreign else "must name the folder as data"
        raise click.BadParameter(
            f"{value} {problem}; its keys are the options without dashes.", ctx, param
        )
    pairs = {key: v for key, v in given.items() if isinstance(v, Mapping)}
    joined = {key: ",".join(f"{k}={v}" for k, v in pair.items()) for key, pair in pairs.items()}
    ctx.default_map = {names[key]: v for key, v in (given | joined).items()}
    return Path(given["data"])


@click.command("train")
@click.option(
    "--data",
    type=options.FilePath,
    required=True,
    is_eager=True,
    callback=_settings,
    metavar="DIR|TOML",
    help="Scenes with their labels, or a file of these options: steps = 2000.",
)
@options.label_rules
@click.option("--label-rest", metavar="CLASS", help="Class of what no shape covers.")
@click.option("--holdout", type=float, metavar="SHARE", help="Ground that only scores [0.2].")
@click.option("--where", type=options.words, metavar="COL=VAL,...", help="Of the manifest.")
@click.option("--ignore", multiple=True, metavar="CLASS", help="Class that means unknown.")
@click.option("--target", type=options.FilePath, metavar="DIR", help="Images of the target.")
@click.option("--target-where", type=options.words, metavar="COL=VAL,...", help="Of its manifest.")
@click.option("--bands", type=options.numbers, metavar="NAME=N,...", help="Red, green and blue.")
@click.option("--dsm", is_flag=True, help="Use heights: scene_dsm.tif beside scene.tif.")
@click.option("--gsd", type=float, metavar="M", help="Show all at this ground size [their own].")
@click.option("--assume-crs", metavar="CRS", help="CRS of scenes that name none.")
@click.option("--out", required=True, type=options.FilePath, help="Model file to write.")
@click.option("--report", type=options.FilePath, help="HTML page about the run to write.")
@click.option("--styles", type=options.FilePath, metavar="FILE", help="Of earthgate styles build.")
@click.option("--multitask", is_flag=True, help="Learn to reconstruct hidden parts, too.")
@click.option("--extractor", is_flag=True, help="For --multitask; our reading of a figure.")
@click.option(
    "--recipe",
    "recipe_name",
    type=click.Choice(["crossearth-512", "crossearth-1024"]),
    help="Numbers of a paper; options beside it win.",
)
@options.start
@click.option("--steps", type=click.IntRange(min=1), help="Steps to train [default: 20000].")
@click.option("--batch", type=click.IntRange(min=1), help="Images in a step [4; 2 and 2].")
@click.option("--crop", "crop_px", type=click.IntRange(min=1), help="Side of a crop [512 px].")
@click.option("--learning-rate", type=float, help="Rate at the first step [0.0001].")
@click.option("--interval", type=click.IntRange(min=1), help="Steps between choices [100; 50].")
@click.option("--modules", type=float, metavar="SHARE", help="Share that is open [0.25].")
@click.option(
    "--pseudo-weight",
    type=click.Choice(["none", "certainty", "share"]),
    help="What weighs the target's pseudo-labels [none].",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--devices", type=click.IntRange(min=1), default=1, help="Devices to train on [1].")
@click.option("--strategy", default="auto", help="How they share the work: auto or ddp.")
@click.option("--resume/--no-resume", default=True, help="Go on where a run stopped [on].")
@options.overwrite
@options.dry_run
@options.job_speech
@click.pass_context
def command(ctx: click.Context, /, *, dry_run: bool, speech: output.Speech, **asked: Any) -> None:
    """Train a model on labelled images, and on the unlabelled ones of a target."""
    if asked["recipe_name"] and ctx.get_parameter_source("policy") is ParameterSource.DEFAULT:
        asked["policy"] = None  # the recipe's
    request = earthgate_geo.TrainRequest(
        model_folder=options.model_folder(),
        command=shlex.join(["earthgate", *ctx.obj]),
        **asked,
    )
    request.check()  # before torch is loaded, which takes seconds
    if dry_run:
        speech.run(
            lambda monitor: earthgate_geo.plan_train(request, monitor), summary.train_plan_lines
        )
        return
    if earthgate_geo.process_rank() > 0:
        speech = output.Speech(quiet=True)
    speech.run(lambda monitor: earthgate_geo.run_train(request, monitor), summary.train_lines)
