"""Options that several commands share, each written once."""

import os
import re
import signal
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

import earthgate_geo
from earthgate_cli.output import Speech
from earthgate_geo.errors import CancelledError
from earthgate_geo.recipe import Policy

Command = TypeVar("Command", bound=Callable[..., Any])
FilePath = click.Path(path_type=Path)

_POLITE_S = 1.5  # to clean up in after standard input closed; callers expect the end within two


def _pairs(value: type[int] | type[str], *, example: str) -> Callable[[str], dict[str, Any]]:
    """Make the type of an option like ``key=value,key=value``."""

    def convert(text: str) -> dict[str, Any]:
        try:
            pairs = [entry.split("=", 1) for entry in text.split(",")]
            parsed = {key.strip(): value(each.strip()) for key, each in pairs}
        except ValueError:
            raise click.BadParameter(f"{text!r} is not like {example}.") from None
        if len(parsed) < len(pairs) or not all(parsed):
            raise click.BadParameter(f"{text!r} names a key twice or not at all.")
        return parsed

    return convert


numbers = _pairs(int, example="red=1,green=2,blue=3")
words = _pairs(str, example="place=kampala,season=dry")


def _gsd(text: str) -> float | None:
    return None if text == "auto" else click.FloatRange(min=0, min_open=True)(text)


def size_bytes(text: str) -> int:
    """Return a size like 2GB in bytes."""
    found = re.fullmatch(r"(\d+\.?\d*) ?([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise click.BadParameter(f"{text!r} is not like 2GB, 500MB or 1.5GiB.")
    unit: int = (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " ")
    return round(float(found[1]) * unit)


def _creation(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not like KEY=VAL.", ctx, param)
    return dict(value.split("=", 1) for value in values)


def _together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


scenes = _together(
    click.option(
        "--src",
        required=True,
        multiple=True,
        metavar="SCENE",
        help="Scene to map: any GDAL raster, a STAC Item (file or address), a pattern like "
        "'images/*.tif', or @list.txt with one a line; repeatable.",
    ),
    click.option(
        "--asset",
        multiple=True,
        metavar="NAME",
        help="Asset of the Item: the image, or once for each of its bands [default: the one that "
        "shows red, green and blue].",
    ),
    click.option("--model", metavar="NAME|FILE", help="Model or adapter [default: packaged]."),
    click.option(
        "--bands",
        type=numbers,
        metavar="NAME=N,...",
        help="Which band of the file is which, e.g. red=3,green=2,blue=1.",
    ),
    click.option("--nodata", type=float, help="Value that marks gaps where the file names none."),
    click.option(
        "--gsd",
        type=_gsd,
        metavar="M|auto",
        default="auto",
        show_default=True,
        help="Ground size of a pixel that the network sees, in metres.",
    ),
    click.option("--assume-crs", metavar="CRS", help="CRS of files that name none."),
    click.option("--dsm", metavar="FILE", help="Raster of heights; any CRS, grid and unit."),
    click.option("--dtm", metavar="FILE", help="Heights of the ground, to subtract from --dsm."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps."),
)

folder = _together(
    click.option(
        "--out-dir",
        type=FilePath,
        metavar="DIR",
        help="Folder for the maps of many scenes and manifest.jsonl; the same command goes on.",
    ),
    click.option(
        "--name",
        metavar="TEMPLATE",
        help="Name of a map in it, with {scene} and {n} [default: {scene}_map.tif].",
    ),
    click.option(
        "--vector-format",
        type=click.Choice(["gpkg", "fgb", "parquet"]),
        help="Also write polygons beside every map in it.",
    ),
)

outputs = _together(
    click.option(
        "--vector", type=FilePath, help="Polygons of the map to write: .gpkg, .fgb or .parquet."
    ),
    click.option("--confidence", is_flag=True, help="Also write <dst>_conf.tif."),
    click.option("--probs", is_flag=True, help="Also write <dst>_probs.tif, one band a class."),
    click.option(
        "--stac",
        is_flag=True,
        help="Also write a STAC Item, <dst>.json; with --out-dir a Collection, too.",
    ),
    click.option("--aoi", metavar="FILE", help="Polygons of the area to map; nodata outside."),
    click.option(
        "--co",
        "creation",
        multiple=True,
        callback=_creation,
        metavar="KEY=VAL",
        help="Creation option of GDAL's COG driver; repeatable.",
    ),
)

running = _together(
    click.option(
        "--memory",
        type=size_bytes,
        metavar="SIZE",
        help="Memory to keep to, e.g. 2GB [default: a quarter of the machine's].",
    ),
    click.option(
        "--resume/--no-resume",
        default=True,
        show_default=True,
        help="Go on where a run with the same outputs stopped.",
    ),
    click.option(
        "--runtime",
        type=click.Choice(["auto", "torch", "openvino"]),
        default="auto",
        show_default=True,
        help="What runs the network.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16"]),
        default="auto",
        show_default=True,
        help="Numbers that it computes in.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "dask"]),
        default="local",
        show_default=True,
        help="Map in this process, or on a Dask cluster.",
    ),
    click.option("--scheduler", metavar="ADDRESS", help="Running Dask cluster, tcp://host:port."),
    click.option(
        "--workers", type=click.IntRange(min=1), help="Dask processes to start on this machine."
    ),
)

_VECTORS = (
    click.option(
        "--min-area",
        "min_area_m2",
        type=click.FloatRange(min=0),
        default=0,
        metavar="M2",
        help="Leave out polygons smaller than this, in square metres.",
    ),
    click.option(
        "--simplify",
        "simplify_m",
        type=click.FloatRange(min=0),
        default=0,
        metavar="M",
        help="Size of the bends that polygons lose, in metres; neighbours stay neighbours.",
    ),
    click.option(
        "--cut-at-tiles",
        is_flag=True,
        help="Cut polygons at a fixed grid, which bounds their size and the memory.",
    ),
)


def vectors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of polygons; the command takes them as ``vectors``."""

    @wraps(command)
    def call(
        *context: Any, min_area_m2: float, simplify_m: float, cut_at_tiles: bool, **asked: Any
    ) -> Any:
        options = earthgate_geo.VectorOptions(
            min_area_m2=min_area_m2, simplify_m=simplify_m, cut_at_tiles=cut_at_tiles
        )
        return command(*context, vectors=options, **asked)

    return _together(*_VECTORS)(call)


policy = click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    default="gate",
    show_default=True,
    metavar="NAME",
    help=f"What trains beside the head: {', '.join(Policy)}.",
)

start = _together(
    click.option("--model", metavar="NAME|FILE", help="Model to start from [default: packaged]."),
    click.option("--backbone", metavar="NAME", help="Backbone to start from instead of a model."),
    click.option("--weights", metavar="FILE|published", help="The backbone's; random without."),
    click.option(
        "--head",
        type=click.Choice(["linear", "fpn", "mask2former", "mfnet"]),
        help="A new head [default: the model's, or fpn].",
    ),
    policy,
)

overwrite = click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
dry_run = click.option("--dry-run", is_flag=True, help="Check and say the plan; write nothing.")

label_rules = _together(
    click.option("--label-field", metavar="FIELD", help="Field that holds the class."),
    click.option("--label-class", metavar="CLASS", help="Class of all labels, where no field is."),
    click.option(
        "--label-map",
        type=_pairs(str, example="1=building,0=other"),
        metavar="CODE=CLASS,...",
        help="Classes of the labels' codes, e.g. 1=building,0=other.",
    ),
)


def speech(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``, ``-q``, ``-v``; the command takes them as ``speech``."""
    return _speaking(command, _JSON, _QUIET, _VERBOSE)


def job_speech(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``speech`` and what only long jobs need: ``--progress`` and ``--watch-stdin``."""
    return _speaking(command, _PROGRESS, _JSON, _QUIET, _VERBOSE, _WATCH_STDIN)


def _speaking(
    command: Callable[..., Any], *options: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    @wraps(command)
    def call(
        *context: Any,
        progress: str | None = "none",
        as_json: bool,
        quiet: bool,
        verbose: bool,
        watch_stdin: bool = False,
        **asked: Any,
    ) -> Any:
        finished = threading.Event()
        if watch_stdin:
            _end_with_stdin(finished)
        speech = Speech(progress=progress, as_json=as_json, quiet=quiet, verbose=verbose)
        try:
            return command(*context, speech=speech, **asked)
        except KeyboardInterrupt as error:
            raise CancelledError from error
        finally:
            finished.set()

    return _together(*options)(call)


_PROGRESS = click.option(
    "--progress",
    type=click.Choice(["bar", "json", "none"]),
    help="How to show progress on stderr [default: bar on a terminal].",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
_VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Say more; tracebacks, too.")
_WATCH_STDIN = click.option(
    "--watch-stdin", is_flag=True, help="End when standard input closes (for a calling program)."
)


def _end_with_stdin(finished: threading.Event) -> None:
    """End as after Ctrl-C once standard input closes, unless the run has finished.

    A step that takes long, or a thread that computes on, does not hold up the end: what lies
    beside the outputs is then as after a kill.
    """
    # A shell starts background jobs with SIGINT ignored, and then interrupts would be lost.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch(descriptor: int) -> None:
        # os.read takes no lock of sys.stdin, which a daemon thread would hold at exit.
        while os.read(descriptor, 4096):
            pass
        if not finished.is_set():
            interrupt_main()
            time.sleep(_POLITE_S)
            os._exit(CancelledError.exit_code)

    threading.Thread(target=watch, args=[sys.stdin.fileno()], daemon=True).start()


def model_folder() -> Path:
    """Return the user's folder of models: EARTHGATE_MODELS or the platform's place for data."""
    if chosen := os.environ.get("EARTHGATE_MODELS"):
        return Path(chosen)
    if sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Application Support"
    else:
        home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return home / "earthgate" / "models"


def cache_folder() -> Path:
    """Return the folder of converted networks: EARTHGATE_CACHE or the platform's for caches."""
    if chosen := os.environ.get("EARTHGATE_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "earthgate" / "cache"
