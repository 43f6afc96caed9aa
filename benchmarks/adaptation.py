"""Does label-free adaptation help where the model has never been, and does it know when not?

    python benchmarks/adaptation.py prepare DATA WORK
    python benchmarks/adaptation.py run WORK --models DIR
    python benchmarks/adaptation.py table WORK

DATA is the folder of real imagery (places, city); the sample tiles lie beside this script's folder.
DIR holds `without_<place>.safetensors`, models that never saw a place, made by the recipe of the
packaged model (`earthgate_tiny.md`). WORK takes the targets and one file of figures per run; a run
that is there is not run again. Every run is a process of one thread.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from adaptation_targets import (
    Score,
    Target,
    opened,
    prepare,
    score,
    targets,
    ten_polygons,
    truth_of,
)
from pages import table, write
from torch import Tensor

from earthgate_geo.model_file import PACKAGED, AdapterRecord, LoadedModel, load_model, save_adapter
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.recipe import Policy
from earthgate_geo.training.adapt import Adaptation, AdaptOptions, adapt_scene
from earthgate_geo.training.loop import Schedule, WeightAverage, fast_arithmetic, run
from earthgate_geo.training.losses import partial_cross_entropy
from earthgate_geo.training.radiometry import vary_radiometry
from earthgate_geo.training.tiles import SceneTiles

SEEDS = (0, 1, 2)
PAGE = Path(__file__).with_name("adaptation.md")
TOWNS = Path(__file__).parents[1] / "sample_tiles"
ORACLE = {"steps": 200, "batch": 8, "crop_px": 192, "learning_rate": 3e-4}
WAYS = ("source", "oracle", "adapt", "labels")

Document = dict[str, Any]


@click.group()
def main() -> None:
    """Measure adaptation on targets that the model has never seen."""


_WORK = click.argument("work", type=click.Path(path_type=Path))
_MODELS = click.option("--models", type=click.Path(exists=True, path_type=Path), required=True)


@main.command("prepare")
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@_WORK
def make(data: Path, work: Path) -> None:
    """Cut, shift and split the targets."""
    prepare(data, TOWNS, work)


@main.command("run")
@_WORK
@_MODELS
@click.option("--kind", "kinds", multiple=True, default=("place", "sensor", "town", "city"))
@click.option("--way", "ways", multiple=True, default=WAYS, type=click.Choice(WAYS))
@click.option("--seeds", default=len(SEEDS))
@click.option("--policy", default=Policy.GATE.value)
@click.option("--jobs", default=2, help="Runs side by side, a thread each.")
def run_all(  # noqa: PLR0913 - one argument per option
    work: Path,
    models: Path,
    kinds: tuple[str, ...],
    ways: tuple[str, ...],
    seeds: int,
    policy: str,
    jobs: int,
) -> None:
    """Do every run that is not there yet."""

    def one(path: Path, target: Target, way: str, seed: int) -> None:
        command = [__file__, "one", work, target.name, way, seed, path, "--models", models]
        told = [sys.executable, *map(str, command), "--policy", policy]
        subprocess.run(told, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)

    with ThreadPoolExecutor(jobs) as pool:
        for way, seed, target in product(ways, range(seeds), targets(kinds)):
            if way in ("source", "oracle") and seed:
                continue
            path = work / f"{target.name}.{_named(way, policy)}.s{seed}.json"
            if not path.exists():
                pool.submit(one, path, target, way, seed)


def _named(way: str, policy: str) -> str:
    return way if policy == Policy.GATE.value or way == "source" else f"{way}-{policy}"


@main.command()
@_WORK
@click.argument("name")
@click.argument("way", type=click.Choice(WAYS))
@click.argument("seed", type=int)
@click.argument("out", type=click.Path(path_type=Path))
@_MODELS
@click.option("--policy", default=Policy.GATE.value)
def one(  # noqa: PLR0913 - one argument per option
    work: Path, name: str, way: str, seed: int, out: Path, models: Path, policy: str
) -> None:
    """Do one run and write its figures."""
    torch.set_num_threads(1)
    target = next(each for each in targets() if each.name == name)
    model = load_model(models / f"{target.model}.safetensors" if target.model else None)
    started = time.perf_counter()
    if way == "source":
        network, told = model.segmenter, {}
    elif way == "oracle":
        network, told = oracle(target, work, model, seed=seed), {}
    else:
        labels = ten_polygons(target, work, seed=seed) if way == "labels" else None
        network, told = adapted(target, work, model, seed=seed, labels=labels, policy=policy)
    told["seconds"] = time.perf_counter() - started
    config = model.segmenter.config
    with opened(target, work, config) as view:
        truth = truth_of(target, work, config, view.dataset.scene.grid, part="score")
        figures = asdict(score(network, view, truth, config.classes.names))
    out.write_text(json.dumps({"score": figures} | told), encoding="utf-8")
    print(f"{out.stem}: {figures['miou']:.1f}", flush=True)


def oracle(target: Target, work: Path, model: LoadedModel, *, seed: int) -> Segmenter:
    """Train all weights of the model on the target's own truth: on the squares left for that."""
    network = model.segmenter.requires_grad_(True)
    rng = np.random.default_rng(seed)
    with opened(target, work, network.config, labels="learn") as view:
        generator = torch.Generator().manual_seed(seed)
        tiles = SceneTiles([view], size_px=ORACLE["crop_px"], generator=generator)
        named = torch.tensor([v in tiles.named for v in range(len(network.config.classes))])
        parameters = dict(network.named_parameters())
        average = WeightAverage(parameters, decay=0.99)

        def loss(_: int) -> Tensor:
            batch = tiles.draw_labelled(ORACLE["batch"])
            images = torch.stack([vary_radiometry(image, rng) for image in batch.images])
            turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
            seen = [torch.rot90(each, turns, (-2, -1)) for each in (images, batch.labels)]
            seen = [each.flip(-1) if mirror else each for each in seen]
            with fast_arithmetic(torch.device("cpu")):
                logits = network(seen[0])
            return partial_cross_entropy(logits, seen[1], named=named)

        run(
            loss,
            torch.optim.AdamW(parameters.values(), weight_decay=0.01),
            average,
            schedule=Schedule(steps=ORACLE["steps"], learning_rate=ORACLE["learning_rate"]),
            monitor=SilentMonitor(),
        )
    average.copy_to_model()
    return network.eval()


def adapted(  # noqa: PLR0913 - one argument per choice
    target: Target, work: Path, model: LoadedModel, *, seed: int, labels: Path | None, policy: str
) -> tuple[Segmenter, Document]:
    """Adapt whatever the guard says, and tell what it says."""
    options = AdaptOptions(seed=seed, policy=Policy(policy), guarded=False)
    with opened(target, work, model.segmenter.config, labels=labels) as view:
        found = adapt_scene(model, [view], options=options, monitor=SilentMonitor())
    told = {
        "kept": not found.evidence["against"],
        "evidence": dict(found.evidence),
        "trained": found.trained_parameters,
        "adapting": found.seconds,
    }
    return _reloaded(model, found, target.name), told


def _reloaded(model: LoadedModel, found: Adaptation, scene: str) -> Segmenter:
    """Return the adapted network as its file gives it."""
    ...
