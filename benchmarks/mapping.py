"""Measure the mapping engine, and write the tables of `mapping.md`.

    python benchmarks/mapping.py speed     # against the bare network in the same runtime
    python benchmarks/mapping.py memory    # 10,000 and 40,000 pixels square
    python benchmarks/mapping.py kill      # kill -9 at random moments, run again, compare bytes
    python benchmarks/mapping.py seams     # does the map show where tiles begin?
    python benchmarks/mapping.py peers     # TerraTorch, geoai and the TorchGeo recipe

Each takes minutes and wants the machine for itself. What is compared takes turns, round by round,
so that ratios hold where the machine is not quite idle; figures are medians with quartiles.
"""

import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import click
import mapping_peers
import mapping_seams
import psutil
import torch
from mapping_scenes import (
    GIGABYTE,
    TILE_PX,
    Case,
    make_case,
    map_into,
    side_px,
    task_of,
    write_scene,
)
from pages import quartiles, table, write
from torch import Tensor
from torch.nn import functional
from watched import CLI, high_water_bytes, run_for, watch

from earthgate_geo.data.scenes import NetworkInput, SceneDataset
from earthgate_geo.mapping.runtime import Runtime, RuntimeOptions, open_runtime
from earthgate_geo.mapping.stream import MapTask
from earthgate_geo.model_file import load_model
from earthgate_geo.raster.grid import Size

PAGE = Path(__file__).with_suffix(".md")
IN_MEMORY = 16
"""Tiles that the bare network sees, again and again."""

EAGER_CALLS = 40
"""Calls of the torch module in a round."""

_SCRATCH = click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for scenes and maps; emptied afterwards.",
)
_ROUNDS = click.option("--rounds", default=5, help="Turns of everything that is compared.")


@click.group()
def main() -> None:
    """Measure the mapping engine."""


class Scratch:
    """A folder of its own in ``--scratch``, gone at the end."""

    def __init__(self, parent: Path | None) -> None:
        if parent:
            parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="earthgate-", dir=parent)

    def __enter__(self) -> Path:
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


# speed


@dataclass
class Way:
    """A network in one runtime, bare and mapping."""

    name: str
    runtime: Runtime
    bare: list[float] = field(default_factory=list)
    """Tiles a second, by round."""
    mapping: list[float] = field(default_factory=list)
    """The same, whole map."""
    confident: list[float] = field(default_factory=list)
    """The same, with its confidence."""

    def take_turn(self, task: MapTask, images: Sequence[Tensor], folder: Path) -> None:
        """Measure once: as many calls bare as mapping takes, then a map without and with more."""
        tiles, size = len(task.tiling), self.runtime.batch
        batches = [torch.stack([*images, *images][i : i + size]) for i in range(len(images))]
        with threads(1 if self.runtime.name == "openvino" else None):
            started = time.perf_counter()
            call(self.runtime, batches, -(-tiles // size))
            self.bare.append(tiles / (time.perf_counter() - started))
        for rates, confidence in ((self.mapping, False), (self.confident, True)):
            result = map_into(folder, task, self.runtime, confidence=confidence)
            rates.append(result.tiles / result.seconds["total"])


class threads:  # noqa: N801 - reads as a statement
    """Let torch use so many threads for a while; None is all."""

    def __init__(self, count: int | None) -> None:
        self._count, self._before = count or os.cpu_count() or 1, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def call(runtime: Runtime, batches: Sequence[Tensor], calls: int) -> None:
    """Call the network with batches in memory, as many at once as it takes."""
    waiting: deque[Callable[[], Tensor]] = deque()
    for number in range(calls):
        waiting.append(runtime.start(batches[number % len(batches)]))
        if len(waiting) == runtime.depth:
            waiting.popleft()()
    while waiting:
        waiting.popleft()()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


def some_images(task: MapTask) -> list[Tensor]:
    """Read a few tiles as the network sees them."""
    to_network = NetworkInput(task.radiometry, task.plan.network)
    dataset = SceneDataset(task.scene, bands=task.bands, transforms=to_network)
    windows = islice(cycle(task.tiling), IN_MEMORY)
    return [dataset[dataset.query(window)]["image"] for window in windows]


def eager(case: Case, images: Sequence[Tensor], device: torch.device) -> float:
    """Return tiles a second of the bare torch module, fp32, one tile a call."""
    network = case.model.segmenter.to(device)
    with threads(None), torch.inference_mode():
        started = time.perf_counter()
        for number in range(EAGER_CALLS):
            network(images[number % len(images)][None].to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return EAGER_CALLS / (time.perf_counter() - started)


@main.command()
@_SCRATCH
@_ROUNDS
@click.option("--tiles", default=17, help="Tiles in a row, and rows of tiles, of the scene.")
@click.option("--case", "cases", multiple=True, default=("tiny", "vit"), help="Networks.")
@click.option(
    "--way", "ways", multiple=True, default=("openvino:bf16", "openvino:fp32"), help="Runtimes."
)
@click.option("--device", default="cpu", help="Torch device.")
def speed(
    *,
    scratch: Path | None,
    rounds: int,
    tiles: int,
    cases: Sequence[str],
    ways: Sequence[str],
    device: str,
) -> None:
    """Measure mapping against the bare network, and the network against eager torch in fp32."""
    rows = []
    with Scratch(scratch) as folder:
        scene = write_scene(folder / "scene.tif", side_px(tiles))
        for name in cases:
            case = make_case(name, folder)
            opened = [opened_way(case, way, torch.device(device)) for way in ways]
            with task_of(scene, case.model.segmenter.config.classes) as task:
                images, slow = some_images(task), []
                for _ in range(rounds):
                    slow.append(eager(case, images, torch.device(device)))
                    for way in opened:
                        way.take_turn(task, images, folder)
            rows.append((case.name, "eager torch fp32", quartiles(slow, ".2f"), "", "", "", "1"))
            rows += [speed_row(case, way, slow) for way in opened]
    head = ("network", "runtime", "bare, tiles/s", "mapping, tiles/s", "mapping / bare")
    head = (*head, "with confidence / bare", "bare / eager torch fp32")
    write(PAGE, "speed", table(head, rows))


def opened_way(case: Case, way: str, device: torch.device) -> Way:
    """Convert the network, and run it once."""
    runtime, _, precision = way.partition(":")
    options = RuntimeOptions(runtime=runtime, precision=precision, device=device)
    opened = open_runtime(case.model, Size(TILE_PX, TILE_PX), options)
    call(opened, [torch.full((opened.batch, 3, TILE_PX, TILE_PX), 0.5)], opened.depth)
    return Way(f"{opened.name} {opened.precision}", opened)


def speed_row(case: Case, way: Way, slow: Sequence[float]) -> tuple[str, ...]:
    """Write the figures of one runtime."""
    engine, more = (
        quartiles([own / bare for own, bare in zip(rates, way.bare, strict=True)], ".3f")
        for rates in (way.mapping, way.confident)
    )
    network = [own / other for own, other in zip(way.bare, slow, strict=True)]
    rates = (quartiles(way.bare, ".2f"), quartiles(way.mapping, ".2f"))
    return (case.name, way.name, *rates, engine, more, quartiles(network, ".2f"))


# memory


class StandIn:
    """A runtime that costs nothing: five classes as five mixtures of three bands."""

    name, precision, batch, depth = "stand-in", "fp32", 1, 2
    device = torch.device("cpu")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._mixtures = torch.randn(5, 3, 1, 1, generator=generator) * 8

    def start(self, images: Tensor) -> Callable[[], Tensor]:
        """Return what gives the logits."""
        logits = functional.conv2d(images - 0.5, self._mixtures)
        return lambda: logits


@main.command("map-stand-in", hidden=True)
@click.argument("scene", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--memory", default=GIGABYTE)
def map_stand_in(scene: Path, out: Path, memory: int) -> None:
    """Map SCENE into the folder OUT with the cheap stand-in; print what it took."""
    classes = load_model().segmenter.config.classes
    baseline = psutil.Process().memory_info().rss
    with task_of(scene, classes) as task:
        result = map_into(out, task, StandIn(), memory_bytes=memory)
    figures = {"baseline": baseline, "high_water": high_water_bytes(), "tiles": result.tiles}
    print(json.dumps(figures | {"seconds": result.seconds["total"]}))


@main.command()
@_SCRATCH
@click.option("--side", "sides", multiple=True, type=int, default=(10_000, 40_000))
@click.option("--memory", default=GIGABYTE, help="What mapping may take, in bytes.")
def memory(*, scratch: Path | None, sides: Sequence[int], memory: int) -> None:
    """Measure the peak memory of maps of growing scenes."""
    rows, peaks = [], []
    for side in sides:
        with Scratch(scratch) as folder:
            scene = write_scene(folder / "scene.tif", side)
            command = [sys.executable, __file__, "map-stand-in", str(scene), str(folder)]
            seen = watch([*command, "--memory", str(memory)])
        took = json.loads(seen.printed)
        held = (took["baseline"], seen.peak_bytes, took["high_water"])
        beyond = seen.peak_bytes - took["baseline"]
        peaks.append(seen.peak_bytes)
        rows.append(
            (
                *(f"{side:,} x {side:,}", f"{took['tiles']:,}", f"{took['seconds']:.0f}"),
                *(f"{amount / 1e6:.0f}" for amount in (*held, beyond)),
                f"{peaks[-1] / peaks[0]:.3f}",
            )
        )
    head = ("scene, px", "tiles", "seconds", "baseline, MB", "peak of the tree, MB", "VmHWM, MB")
    write(PAGE, "memory", table((*head, "beyond the baseline, MB", "peak / first peak"), rows))


# kill


@main.command()
@_SCRATCH
@click.option("--times", default=20, help="Runs that are killed.")
@click.option("--tiles", default=24, help="Tiles in a row, and rows of tiles, of the scene.")
@click.option("--seed", default=0, help="Of the moments.")
@click.argument("options", nargs=-1)
def kill(
    *, scratch: Path | None, times: int, tiles: int, seed: int, options: Sequence[str]
) -> None:
    """Kill the command line at random moments, run it again, compare the bytes of all files.

    OPTIONS, after --, are passed on to `earthgate map`.
    """
    moments, shares, again, same = random.Random(seed), [], [], 0
    with Scratch(scratch) as folder:
        os.environ["EARTHGATE_CACHE"] = str(folder / "cache")
        scene = write_scene(folder / "scene.tif", side_px(tiles))
        command, anew = map_command(scene, options), map_command(scene, [*options, "--overwrite"])
        finish(command, folder / "first")  # converts the network
        seconds, wanted = finish(command, folder / "whole")
        for number in range(times):
            out = folder / str(number)
            moment = killed_at(command, out, moments, seconds)
            took, found = finish(anew if is_complete(out) else command, out)
            shares.append(moment / seconds)
            again.append(took / seconds)
            same += found == wanted
            print(f"killed at {moment:.1f} of {seconds:.1f} s, then {took:.1f} s:", end=" ")
            print("the same" if found == wanted else differences(found, wanted), flush=True)
            shutil.rmtree(out)
    row = (f"{seconds:.1f}", str(times), f"{min(shares):.2f} to {max(shares):.2f}")
    head = ("whole run, s", "kills", "killed at, of a run", "second run, of a run")
    last = (quartiles(again, ".2f"), f"{same} of {times}")
    write(PAGE, "kill", table((*head, "byte-identical"), [(*row, *last)]))


def map_command(scene: Path, options: Sequence[str]) -> Callable[[Path], list[str]]:
    """Return what makes the command that maps into a folder."""

    def command(out: Path) -> list[str]:
        outputs = ["--dst", str(out / "map.tif"), "--vector", str(out / "map.gpkg")]
        return [*CLI, "map", "--src", str(scene), *outputs, "--confidence", "-q", *options]

    return command


def killed_at(
    command: Callable[[Path], list[str]], out: Path, moments: random.Random, seconds: float
) -> float:
    """Start a run and kill it at a random moment before its end; return the moment."""
    while True:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        moment = moments.uniform(0, seconds)
        if run_for(command(out), moment):
            return moment


def is_complete(out: Path) -> bool:
    """Tell whether the outputs had all got their names before the kill."""
    return (out / "map.tif").exists() and not any(out.glob(".*/publishing"))


def finish(command: Callable[[Path], list[str]], out: Path) -> tuple[float, dict[str, str]]:
    """Run to the end; return seconds, and the digest of every file by name."""
    out.mkdir(exist_ok=True)
    started = time.perf_counter()
    watch(command(out))
    seconds = time.perf_counter() - started
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return seconds, {path.relative_to(out).as_posix(): digest(path) for path in files}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a GeoPackage without the times at which it was written."""
    content = path.read_bytes()
    if path.suffix == ".gpkg":
        with closing(sqlite3.connect(path)) as database:
            dump = "\n".join(database.iterdump())
        content = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "", dump).encode()
    return hashlib.sha256(content).hexdigest()


def differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    """Name the files that differ."""
    names = sorted(found.keys() | wanted.keys())
    return "differs: " + ", ".join(n for n in names if found.get(n) != wanted.get(n))


# seams and peers


@main.command()
@_SCRATCH
@click.option("--tiles", default=6, help="Tiles in a row of the scene that is made.")
@click.argument("scenes", nargs=-1, type=click.Path(exists=True, path_type=Path))
def seams(*, scratch: Path | None, tiles: int, scenes: Sequence[Path]) -> None:
    """Measure what the position of the tiles does to a map, of SCENES or of one that is made."""
    with Scratch(scratch) as folder:
        case = make_case("tiny", folder)
        options = RuntimeOptions(device=torch.device("cpu"))
        runtime = open_runtime(case.model, Size(TILE_PX, TILE_PX), options)
        made = scenes or (write_scene(folder / "made.tif", side_px(tiles)),)
        maps = mapping_seams.Maps(folder, case.model.segmenter.config.classes, runtime)
        agreement, energy = mapping_seams.tables(maps, made)
    write(PAGE, "agreement", agreement)
    write(PAGE, "seams", energy)


@main.command()
@_SCRATCH
@_ROUNDS
@click.option("--tiles", default=10, help="Tiles in a row, and rows of tiles, of the scene.")
@click.option("--case", "name", default="vit", help="Network: tiny or vit.")
@click.option("--venv", type=click.Path(path_type=Path), help="Environment of the peers.")
def peers(*, scratch: Path | None, rounds: int, tiles: int, name: str, venv: Path | None) -> None:
    """Measure the peers with the same model on the same tiles."""
    with Scratch(scratch) as folder:
        python = mapping_peers.environment(venv or folder / "venv")
        case = make_case(name, folder)
        scene = write_scene(folder / "scene.tif", side_px(tiles))
        text = mapping_peers.compare(python, scene, case.path, rounds=rounds, tiles=tiles**2)
    write(PAGE, f"peers {name}", f"**{case.name}**\n\n{text}")


if __name__ == "__main__":
    main()
