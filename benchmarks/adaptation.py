"""Does label-free adaptation help where the model has never been, and does it know when not?

    python benchmarks/adaptation.py prepare DATA WORK
    python benchmarks/adaptation.py run WORK --models DIR
    python benchmarks/adaptation.py table WORK

DATA is the folder of real imagery (places, city); the sample tiles lie beside this script's folder.
DIR holds `without_<place>.safetensors`, models that never saw a place, made by the recipe of the
packaged model (`earthgate_tiny.md`). WORK takes the targets and one file of figures per run; a run
that is there is not run again. Every run is a process of one thread.
"""

import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from adaptation_score import score
from adaptation_targets import Target, codes_of, opened, part, prepare, targets, ten_polygons
from pages import table, write
from torch import Tensor

from earthgate_geo.model_file import (
    AdapterRecord,
    LoadedModel,
    find_model,
    load_model,
    save_adapter,
)
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
WAYS = ("source", "oracle", "aligned", "adapt", "labels")

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

    started = []
    with ThreadPoolExecutor(jobs) as pool:
        for way, seed, target in product(ways, range(seeds), targets(kinds)):
            if way in ("source", "oracle") and seed:
                continue
            path = _file(work, target, way, policy, seed)
            if not path.exists():
                started.append(pool.submit(one, path, target, way, seed))
    for each in started:
        each.result()  # a run that failed fails here, once the others are done


def _file(work: Path, target: Target, way: str, policy: str, seed: int) -> Path:
    named = way if policy == Policy.GATE.value or way == "source" else f"{way}-{policy}"
    return work / f"{target.name}.{named}.s{seed}.json"


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
    path = find_model(models / f"{target.model}.safetensors" if target.model else None)
    model, aligned = load_model(path), None
    started = time.perf_counter()
    if way == "source":
        network, told = model.segmenter, {}
    elif way == "oracle":
        network, told = oracle(target, work, model, seed=seed), {}
    elif way == "aligned":
        found = adapted(target, work, model, seed=seed, labels=None, policy=policy, steps=1)
        network, told = _aligned(model, found), {}
    else:
        labels = ten_polygons(target, work, seed=seed) if way == "labels" else None
        found = adapted(target, work, model, seed=seed, labels=labels, policy=policy)
        network, aligned = _reloaded(model, path, found, name), _aligned(model, found)
        told = {
            "kept": not found.evidence["against"],
            "evidence": dict(found.evidence),
            "trained": found.trained_parameters,
            "adapting": found.seconds,
        }
    told["seconds"] = time.perf_counter() - started
    config = model.segmenter.config
    with opened(target, work, config) as view:
        grid = view.dataset.scene.grid
        truth = codes_of(part(target, work, "score"), target, config, grid)
        figures = asdict(score(network, view, truth))
        if aligned is not None:
            told["aligned"] = asdict(score(aligned, view, truth))
    out.write_text(json.dumps({"score": figures} | told), encoding="utf-8")
    print(f"{out.stem}: {figures['miou']:.1f}", flush=True)


def oracle(target: Target, work: Path, model: LoadedModel, *, seed: int) -> Segmenter:
    """Train all weights of the model on the target's own truth: on the squares left for that."""
    network = model.segmenter.requires_grad_(True)
    rng = np.random.default_rng(seed)
    with opened(target, work, network.config, labels=part(target, work, "learn")) as view:
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


def adapted(  # noqa: PLR0913 - what one run is
    target: Target,
    work: Path,
    model: LoadedModel,
    *,
    seed: int,
    labels: Path | None,
    policy: str,
    steps: int | None = None,
) -> Adaptation:
    """Adapt whatever the guard says."""
    options = AdaptOptions(seed=seed, policy=Policy(policy), guarded=False, steps=steps)
    with opened(target, work, model.segmenter.config, labels=labels) as view:
        return adapt_scene(model, [view], options=options, monitor=SilentMonitor())


def _reloaded(model: LoadedModel, path: Path, found: Adaptation, scene: str) -> Segmenter:
    """Return the adapted network as its file gives it."""
    record = AdapterRecord(
        decision=found.decision,
        evidence={},
        slots=tuple(map(str, found.slots)),
        scores={},
        trained_parameters=found.trained_parameters,
        steps=found.steps,
        seed=0,
        scene=scene,
        temperature=found.temperature,
        view=found.view,
    )
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "a.safetensors"
        changes = {"toolbox": found.toolbox, "head": found.head, "backbone": found.backbone}
        save_adapter(adapter, model, record=record, **changes)
        return load_model(adapter, folders=[path.parent]).segmenter


def _aligned(model: LoadedModel, found: Adaptation) -> Segmenter:
    """Return the network as it was before the training: what a refusal of that leaves."""
    network = copy.deepcopy(model.segmenter)
    network.view = found.view
    for each in found.evidence["restraints"]:
        network.head.offset(each["index"], each["offset"])
    return network


@main.command("table")
@_WORK
def write_page(work: Path) -> None:
    """Write the tables of WORK into adaptation.md."""
    found = {each: _runs(work, each) for each in targets()}
    head = ("targets", "runs", "source", "aligned", "oracle", "gap closed", "mean harm", "worst")
    kinds = dict.fromkeys(target.kind for target in found)
    rows = [(kind, *_row([r for t, r in found.items() if t.kind == kind])) for kind in kinds]
    write(PAGE, "summary", table(head, [*rows, ("**all**", *_row(list(found.values())))]))
    write(PAGE, "labels", _labels(found))
    write(PAGE, "policies", _policies(work))
    write(PAGE, "guard", _guard([run for runs in found.values() for run in runs["adapt"]]))
    head = ("target", "source", "aligned", "trained, raw", "kept", "ten polygons", "oracle", "s")
    lines = [(target.name, *_line(runs)) for target, runs in found.items() if runs["source"]]
    write(PAGE, "runs", table(head, lines))


def _runs(work: Path, target: Target) -> dict[str, list[Document]]:
    """Read the runs of a target; each adaptation knows what its training gained."""
    runs = {
        way: [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(work.glob(f"{target.name}.{way}.s*.json"))
        ]
        for way in WAYS
    }
    for each in runs["labels"]:
        each["shipped"] = each["score"] if each["kept"] else each["aligned"]
    for each in runs["adapt"]:
        each["gain"] = each["score"]["miou"] - each["aligned"]["miou"]
    return runs


def _miou(runs: Sequence[Document]) -> float:
    return statistics.mean(each["score"]["miou"] for each in runs)


def _row(found: list[dict[str, list[Document]]]) -> tuple[str, ...]:
    whole = [runs for runs in found if all(runs[way] for way in ("source", "oracle", "aligned"))]
    if not whole:
        return ("0", *["-"] * 6)
    source, aligned, oracle = (
        statistics.mean(_miou(runs[way]) for runs in whole)
        for way in ("source", "aligned", "oracle")
    )
    changes = [
        each["score"]["miou"] - _miou(runs["source"]) for runs in whole for each in runs["aligned"]
    ]
    harms = [min(change, 0.0) for change in changes]
    return (
        str(len(changes)),
        *(f"{value:.1f}" for value in (source, aligned, oracle)),
        f"{(aligned - source) / (oracle - source):.0%}",
        f"{statistics.mean(harms):.2f}",
        f"{min(harms):.1f}",
    )


def _labels(found: dict[Target, dict[str, list[Document]]]) -> str:
    """Tell what ten polygons are worth after the guard."""
    needed = ("source", "oracle", "aligned", "labels")
    lines = []
    for kind in (*dict.fromkeys(target.kind for target in found), "**all**"):
        whole = [
            runs
            for target, runs in found.items()
            if kind in (target.kind, "**all**") and all(runs[way] for way in needed)
        ]
        if not whole:
            continue
        shipped = [
            statistics.mean(each["shipped"]["miou"] for each in runs["labels"]) for runs in whole
        ]
        source, aligned, oracle = (
            [_miou(runs[way]) for runs in whole] for way in ("source", "aligned", "oracle")
        )
        means = [statistics.mean(each) for each in (source, aligned, shipped, oracle)]
        better = sum(a > b for a, b in zip(shipped, aligned, strict=True))
        kept = [each["kept"] for runs in whole for each in runs["labels"]]
        lines.append(
            (
                kind,
                str(len(kept)),
                *(f"{value:.1f}" for value in means),
                f"{(means[2] - means[0]) / (means[3] - means[0]):.0%}",
                f"{better} of {len(whole)}",
                f"{sum(kept)}",
            )
        )
    head = ("targets", "runs", "source", "aligned", "ten polygons", "oracle", "gap closed")
    return table((*head, "better than aligned", "kept"), lines)


def _policies(work: Path) -> str:
    """Tell what the policies make of the same ten polygons, where the gate was run, too."""
    by_policy = {
        policy: {
            (target.name, seed): json.loads(path.read_text(encoding="utf-8"))
            for target, seed in product(targets(), SEEDS)
            if (path := _file(work, target, "labels", policy, seed)).exists()
        }
        for policy in Policy
    }
    gate, lines = by_policy[Policy.GATE], []
    for policy, runs in by_policy.items():
        pairs = [(runs[key], gate[key]) for key in runs if key in gate]
        if not pairs:
            continue
        own, rivals = ([run["score"]["miou"] for run in side] for side in zip(*pairs, strict=True))
        gains = [mine - other for mine, other in zip(own, rivals, strict=True)]
        spread = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
        lines.append(
            (
                policy.value,
                str(len(pairs)),
                f"{statistics.mean(own):.1f}",
                f"{statistics.mean(rivals):.1f}",
                f"{statistics.mean(gains):.1f}{spread}",
                f"{sum(gain > 0 for gain in gains)} of {len(gains)}",
                f"{statistics.mean(run['trained'] for run, _ in pairs):,.0f}",
                f"{statistics.mean(run['adapting'] for run, _ in pairs):.0f}",
            )
        )
    head = ("policy", "runs", "mean IoU", "gate there", "minus gate", "better", "parameters", "s")
    return table(head, lines)


def _guard(runs: list[Document]) -> str:
    sorts = {
        "would have lost more than 1 point": lambda gain: gain < -1,
        "within": lambda gain: -1 <= gain <= 2,
        "would have gained more than 2 points": lambda gain: gain > 2,
    }
    lines = []
    for name, belongs in sorts.items():
        own = [each for each in runs if belongs(each["gain"])]
        kept = sum(each["kept"] for each in own)
        lines.append((name, str(len(own)), str(kept), str(len(own) - kept)))
    return table(("adaptation", "runs", "kept", "refused"), lines)


def _line(runs: dict[str, list[Document]]) -> tuple[str, ...]:
    adaptations = runs["adapt"]
    kept = f"{sum(e['kept'] for e in adaptations)} of {len(adaptations)}"
    seconds = [each["adapting"] for each in adaptations]
    return (
        _spread(runs["source"]),
        _spread(runs["aligned"]),
        _spread(adaptations),
        kept if adaptations else "-",
        _spread(runs["labels"]),
        _spread(runs["oracle"]),
        f"{statistics.mean(seconds):.0f}" if seconds else "-",
    )


def _spread(runs: Sequence[Document]) -> str:
    values = [each["score"]["miou"] for each in runs]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
