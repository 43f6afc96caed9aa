"""``earthgate bench``."""

from pathlib import Path
from typing import Any

import click

import earthgate_geo
from earthgate_cli import options, output, summary


@click.command("bench")
@click.argument("setting", required=False)
@click.option("--data", type=options.FilePath, metavar="ROOT", help="Folder of the datasets.")
@click.option("--out", type=options.FilePath, metavar="DIR", help="Folder for the result.")
@click.option("--list", "listing", is_flag=True, help="List the settings and do nothing else.")
@click.option("--check", type=options.FilePath, metavar="ROOT", help="Say what data is in ROOT.")
@click.option(
    "--summary",
    "results",
    type=options.FilePath,
    metavar="DIR",
    help="Put the results in DIR beside the published ones; --out takes the page.",
)
@options.start
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps to train.")
@click.option("--batch", type=click.IntRange(min=1), help="Images of each side in a step.")
@click.option("--crop", "crop_px", type=click.IntRange(min=1), help="Side of a crop in pixels.")
@click.option("--learning-rate", type=float, help="Rate at the first step.")
@click.option("--interval", type=click.IntRange(min=1), help="Steps between choices of modules.")
@click.option("--modules", type=float, metavar="SHARE", help="Share of the modules to open.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@options.overwrite
@options.job_speech
def command(
    *,
    setting: str | None,
    data: Path | None,
    listing: bool,
    check: Path | None,
    results: Path | None,
    speech: output.Speech,
    **asked: Any,
) -> None:
    """Train on the source of a benchmark SETTING and score on its target.

    What is not given is as the setting says.
    """
    if listing:
        speech.result(earthgate_geo.list_settings(), summary.settings_lines)
    elif check is not None:
        speech.run(lambda _: earthgate_geo.check_settings(check), summary.check_lines)
    elif results is not None:
        out, overwrite = asked["out"], asked["overwrite"]
        speech.run(
            lambda _: earthgate_geo.summarise_bench(results, out=out, overwrite=overwrite),
            summary.bench_summary_lines,
        )
    elif setting is None or data is None:
        raise click.UsageError("Give a SETTING and --data, or --list, --check or --summary.")
    else:
        request = earthgate_geo.BenchRequest(
            setting=setting, data=data, model_folder=options.model_folder(), **asked
        )
        request.check()  # before torch is loaded, which takes seconds
        speech.run(lambda monitor: earthgate_geo.run_bench(request, monitor), summary.bench_lines)
