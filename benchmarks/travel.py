"""Does CrossEarth's training make a source model that travels? One place is left out each time.

    python benchmarks/travel.py prepare DATA WORK
    python benchmarks/travel.py run DATA WORK --start made.safetensors
    python benchmarks/travel.py adapt DATA WORK
    python benchmarks/travel.py table WORK

DATA holds the folders `fair_buildings` and `scenes`. WORK takes what is made: a folder of training
images and a bank of styles per place left out, and of each run its model and its scores; runs that
are there already are not run again. Every run is a process of one thread. `made.safetensors` is the
starting model of `earthgate_tiny.md`, which has seen nothing but generated tiles.
"""

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import click
from pages import table, write

PLACES = ("zanzibar_tz", "kampala_ug", "catanduanes_ph")
ARMS = ("plain", "styles", "multitask", "both")
ADAPTED = ("plain", "both")
SEEDS = (0, 1)
BUDGET = {"--steps": 300, "--batch": 4, "--crop": 192, "--learning-rate": 1e-3, "--policy": "full"}
PAGE = Path(__file__).with_name("travel.md")
PROGRAM = (
    sys.executable,
    "-c",
    "import sys; from earthgate_cli.main import main; sys.exit(main())",
)


@dataclass(frozen=True, order=True)
class Run:
    """A source model, and the place that it never saw."""

    seed: int
    place: str
    arm: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.place}.{self.arm}.s{self.seed}"


def runs(arms: Sequence[str]) -> list[Run]:
    """Return the runs of some arms, seed by seed."""
    return [Run(*parts) for parts in product(SEEDS, PLACES, arms)]


@click.group()
def main() -> None:
    """Compare ways to train a source model on a place that it never saw."""


_DATA = click.argument("data", type=click.Path(exists=True, path_type=Path))
_WORK = click.argument("work", type=click.Path(path_type=Path))
_JOBS = click.option("--jobs", default=2, help="Runs side by side, a thread each.")


@main.command()
@_DATA
@_WORK
def prepare(data: Path, work: Path) -> None:
    """List the training images, and gather their styles, with each place left out."""
    tiles = data / "fair_buildings"
    for place in PLACES:
        folder = work / f"without_{place}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiles / "classes.json", folder)
        with (tiles / "manifest.csv").open(encoding="utf-8", newline="") as listed:
            rows = [row for row in csv.DictReader(listed) if row["domain"] != place]
        with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as kept:
            lines = csv.writer(kept)
            lines.writerow(("image", "label", "scene"))
            for row in rows:
                files = ((tiles / row[column]).resolve() for column in ("image", "label"))
                lines.writerow((*files, row["domain"]))
        images = work / f"images_without_{place}"
        for row in rows:
            image = images / row["image"]
            image.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiles / row["image"], image)
        bank = work / f"without_{place}.styles.safetensors"
        earthgate("styles", "build", images, "--out", bank, "--overwrite")
        shutil.rmtree(images)


@main.command("run")
@_DATA
@_WORK
@_JOBS
@click.option("--start", type=click.Path(exists=True, path_type=Path), required=True)
def train_all(data: Path, work: Path, *, jobs: int, start: Path) -> None:
    """Train every model that is not there yet and score it on the place that it never saw."""

    def one(run: Run) -> None:
        model = work / f"{run.name}.safetensors"
        told = {**BUDGET, "--model": start, "--seed": run.seed, "--holdout": 0, "--out": model}
        if run.arm in ("styles", "both"):
            told["--styles"] = work / f"without_{run.place}.styles.safetensors"
        flags = ["--multitask"] if run.arm in ("multitask", "both") else []
        options = [part for pair in told.items() for part in pair]
        trained = earthgate("train", "--data", work / f"without_{run.place}", *options, *flags)
        scored = work / f"{run.name}.map.tif"
        earthgate("map", "--src", scene(data, run.place), "--model", model, "--dst", scored)
        keep(work / f"{run.name}.json", data, run, scored, {"train": trained})

    each(runs(ARMS), one, lambda run: work / f"{run.name}.json", jobs)


@main.command("adapt")
@_DATA
@_WORK
@_JOBS
def adapt_all(data: Path, work: Path, *, jobs: int) -> None:
    """Adapt models to the place that they never saw, without labels, and score them there."""

    def one(run: Run) -> None:
        model, scored = work / f"{run.name}.safetensors", work / f"{run.name}.adapted.tif"
        told = {"--model": model, "--seed": run.seed, "--dst": scored}
        told["--out"] = work / f"{run.name}.adapter.safetensors"
        options = [part for pair in told.items() for part in pair]
        adapted = earthgate("adapt", "--src", scene(data, run.place), *options, "--overwrite")
        keep(work / f"{run.name}.adapted.json", data, run, scored, {"adapt": adapted})

    each(runs(ADAPTED), one, lambda run: work / f"{run.name}.adapted.json", jobs)


def earthgate(*arguments: object) -> dict[str, object]:
    """Run the command line on one thread and return its result document."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments), "--json", "-q"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"earthgate {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    result: dict[str, object] = json.loads(done.stdout)
    return result


def scene(data: Path, place: str) -> Path:
    """Return the scene of a place."""
    return data / "scenes" / f"{place}_scene.tif"


def keep(path: Path, data: Path, run: Run, scored: Path, documents: dict[str, object]) -> None:
    """Score a map, remove it, and write the scores with the documents of what came before."""
    truth = data / "scenes" / f"{run.place}_truth.tif"
    codes = ("--label-map", "0=background,1=building")
    scores = earthgate("evaluate", "--map", scored, "--labels", truth, *codes)
    path.write_text(json.dumps({"scores": scores, **documents}), encoding="utf-8")
    for made in scored.parent.glob(f"{scored.stem}*"):
        if made.suffix in (".tif", ".qml", ".xml"):
            made.unlink()
    print(f"{path.stem}: {building(path):.1f}", flush=True)


def each(
    wanted: Sequence[Run], one: Callable[[Run], None], result: Callable[[Run], Path], jobs: int
) -> None:
    """Do the runs that have no result yet."""
    missing = [run for run in wanted if not result(run).exists()]
    print(f"{len(missing)} of {len(wanted)} runs to do", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, missing))


def building(path: Path) -> float:
    """Return the IoU of building, in per cent, of a file of scores."""
    classes = json.loads(path.read_text(encoding="utf-8"))["scores"]["classes"]
    return 100 * next(float(c["iou"]) for c in classes if c["name"] == "building")


@main.command("table")
@_WORK
def write_page(work: Path) -> None:
    """Write the tables of WORK into travel.md."""
    head = ("place left out", *ARMS)
    write(PAGE, "travel", table(head, rows(work, ARMS, ".json")))
    head = (
        "place left out",
        *(f"{arm}, {way}" for arm in ADAPTED for way in ("source", "adapted")),
    )
    pairs = [(arm, ending) for arm in ADAPTED for ending in (".json", ".adapted.json")]
    lines = [
        (place, *(spread(scores(work, place, arm, ending)) for arm, ending in pairs))
        for place in PLACES
    ]
    write(PAGE, "adapted", table(head, lines))


def rows(work: Path, arms: Sequence[str], ending: str) -> Iterator[Sequence[str]]:
    """Yield a line per place; of those that all arms have, the means, and the gains by run."""
    found = {(p, a): scores(work, p, a, ending) for p, a in product(PLACES, arms)}
    for place in PLACES:
        yield (place, *(spread(found[place, arm]) for arm in arms))
    whole = [place for place in PLACES if all(found[place, arm] for arm in arms)]
    if not whole:
        return
    by_seed = {arm: list(zip(*(found[p, arm] for p in whole), strict=True)) for arm in arms}
    yield ("**mean**", *(spread([statistics.mean(s) for s in by_seed[arm]]) for arm in arms))
    first, *others = ([score for p in whole for score in found[p, arm]] for arm in arms)
    gains = [[b - a for a, b in zip(first, other, strict=True)] for other in others]
    yield ("minus plain, run by run", "", *map(spread, gains))
    wins = (f"{sum(g > 0 for g in gain)} of {len(gain)}" for gain in gains)
    yield ("better than plain", "", *wins)


def scores(work: Path, place: str, arm: str, ending: str) -> list[float]:
    """Return the scores of an arm at a place, a seed each; none while one is missing."""
    paths = [work / f"{Run(seed, place, arm).name}{ending}" for seed in SEEDS]
    return [building(path) for path in paths] if all(p.exists() for p in paths) else []


def spread(values: Sequence[float]) -> str:
    """Write mean and standard deviation."""
    if len(values) < len(SEEDS):
        return "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
