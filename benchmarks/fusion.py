"""What heights buy: water on Landsat and Sentinel-2 tiles, with and without a surface model.

Every way trains the packaged encoder for as many steps on the same tiles, split by area; see
``fusion.md``. A run is one way and one seed and writes one JSON file; ``tables`` puts all of them
on the page.
"""

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import pages
from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.pairs import Pair
from earthgate_geo.data.patches import Patch, PatchDataset
from earthgate_geo.data.stream import StepStream
from earthgate_geo.metrics import Confusion
from earthgate_geo.model_file import load_model
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.policies import Tuner
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.raster.grid import Window
from earthgate_geo.raster.read import SceneOptions, open_scene
from earthgate_geo.recipe import Policy, Recipe, Selection
from earthgate_geo.training.fit import fit
from earthgate_geo.training.scoring import Sliding, score

PAGE = Path(__file__).with_name("fusion.md")
SEEDS = (0, 1, 2)
CLASSES = ClassTable((LandClass(0, "land", "#dcc38c"), LandClass(1, "water", "#3f86c6")))
SIDE_PX = 128
RECIPE = Recipe(
    steps=120,
    batch=8,
    crop_px=SIDE_PX,
    learning_rate=1e-3,
    augment=False,
    mirrored=True,
    selection=Selection(interval=50, images=8),
)
_RED_GREEN_BLUE, _DEM = (4, 3, 2), 10
"""Bands of the tiles; 11 and 12 nearly are the answer and are never read."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """What a network sees, and what trains."""

    title: str
    policy: Policy
    image: bool = True
    heights: bool = True
    mixed: bool = False
    """Whether heights enter as a fourth channel of the image in place of a stream of their own."""


WAYS = {
    "image": Way("image alone", Policy.SEPARATE, heights=False),
    "heights": Way("heights alone", Policy.SEPARATE, image=False, heights=False),
    "channel": Way("both, as a fourth channel", Policy.SEPARATE, mixed=True),
    "separate": Way("both, separate adapters", Policy.SEPARATE),
    "mmadapter": Way("both, `mmadapter`", Policy.MMADAPTER),
    "mmlora": Way("both, `mmlora`", Policy.MMLORA),
    "gate": Way("both, gate over `mmadapter`'s modules", Policy.GATE),
}


class FourthChannel(Segmenter):
    """A network with heights whose image takes them in by a learned 1x1 convolution.

    It starts as the identity on the bands; the stream of heights is left without any.
    """

    mix: nn.Conv2d

    def scaled(self, images: Tensor) -> Tensor:
        """Map images (b, 4, h, w) to what the backbone sees."""
        return super().scaled(self.mix(images))


@click.group()
def main() -> None:
    """Measure what heights buy."""


@main.command()
@click.option("--data", type=Path, required=True, help="The folder hls_water_dem.")
@click.option("--out", type=Path, required=True, help="Folder for results and single bands.")
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, default=list(WAYS))
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS)
@click.option("--steps", type=int, default=RECIPE.steps)
def run(data: Path, out: Path, ways: Sequence[str], seeds: Sequence[int], steps: int) -> None:
    """Train and score; what is there already stays."""
    out.mkdir(parents=True, exist_ok=True)
    for seed, way in product(seeds, ways):
        result = out / f"{way}.s{seed}.json"
        if not result.exists():
            document = measured(data, out, WAYS[way], replace(RECIPE.over(steps), seed=seed))
            result.write_text(json.dumps({"way": way, "seed": seed} | document, indent=1))
            said = f"{way} {seed}: IoU of water {document['iou']:.3f}, {document['seconds']:.0f} s"
            print(said, flush=True)


@main.command()
@click.option("--out", type=Path, required=True, help="Folder of the results.")
def tables(out: Path) -> None:
    """Put the results on the page."""
    found = {
        (document["way"], document["seed"]): document
        for path in sorted(out.glob("*.s?.json"))
        if (document := json.loads(path.read_text()))
    }
    pages.write(PAGE, "water", water_table(found))


def water_table(found: dict[tuple[str, int], Document]) -> str:
    """Return the table of all runs: scores in per cent, differences seed by seed."""
    rows = []
    for way, about in WAYS.items():
        runs = {seed: found[way, seed] for seed in SEEDS if (way, seed) in found}
        if runs:
            ious = [100 * document["iou"] for document in runs.values()]
            gains = [_gains(found, way, base) for base in ("image", "separate")]
            parameters = max(document["trained_parameters"] for document in runs.values())
            seconds = statistics.mean(document["seconds"] for document in runs.values())
            cells = [*map(_spread, (ious, *gains)), f"{parameters:,}", f"{seconds:.0f}"]
            rows.append([about.title, *cells])
    head = ["way", "IoU of water", "less image alone", "less separate", "parameters", "s"]
    return pages.table(head, rows)


def _gains(found: dict[tuple[str, int], Document], way: str, base: str) -> list[float]:
    """Return how much better one way is than another, for every seed that both have."""
    both = [seed for seed in SEEDS if (way, seed) in found and (base, seed) in found]
    return [100 * (found[way, seed]["iou"] - found[base, seed]["iou"]) for seed in both]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def measured(data: Path, out: Path, way: Way, recipe: Recipe) -> Document:
    """Train a way on half of the areas and score it on the others, after the last step."""
    rows = list(csv.DictReader((data / "manifest.csv").open()))
    areas = sorted({row["area"] for row in rows})
    drawn = np.random.default_rng(recipe.seed).permutation(areas)
    trained = set(drawn[: len(areas) // 2].tolist())
    pairs = {row["image"]: _pair(data, out, row, way) for row in rows}
    sides = [
        _dataset([pairs[row["image"]] for row in rows if (row["area"] in trained) is on], way)
        for on in (True, False)
    ]
    model = network(way, seed=recipe.seed)
    tuner = Tuner(
        model,
        way.policy,
        selection=recipe.selection,
        seed=recipe.seed,
        batch=recipe.batch,
    )
    if isinstance(model, FourthChannel):
        tuner.parameters |= {f"mix.{name}": p for name, p in model.mix.named_parameters()}
    steps = partial(_steps, sides[0], recipe)
    record = fit(model, tuner, steps, recipe, monitor=SilentMonitor())
    confusion = Confusion(CLASSES.names)
    items = (sides[1][index] for index in range(len(sides[1])))
    score(model, items, confusion, sliding=Sliding(crop_px=SIDE_PX, stride_px=SIDE_PX))
    return {
        "iou": float(confusion.iou()[1]),
        "loss": statistics.mean(record.losses[-20:]),
        "tiles": [len(side) for side in sides],
        "trained_parameters": tuner.trained_parameters,
        "slots": [list(map(str, slots)) for slots in tuner.history],
        "seconds": record.seconds,
        "recipe": recipe.to_json(),
    }


def _steps(patches: PatchDataset, recipe: Recipe, first: int, rank: int, ranks: int) -> StepStream:
    return StepStream(patches, recipe=recipe, first_step=first, rank=rank, ranks=ranks)


def network(way: Way, *, seed: int) -> Segmenter:
    """Return the packaged encoder for two streams, with a new head for land and water."""
    packaged = load_model().segmenter.with_heights()
    config = replace(packaged.config, classes=CLASSES)
    torch.manual_seed(seed)
    made = (FourthChannel if way.mixed else Segmenter)(config)
    made.backbone = packaged.backbone
    if isinstance(made, FourthChannel):
        made.mix = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            made.mix.weight.copy_(torch.eye(3, 4)[..., None, None])
            made.mix.bias.zero_()  # type: ignore[union-attr]  # it has one
    return made


def _dataset(pairs: Sequence[Pair], way: Way) -> PatchDataset:
    return PatchDataset(
        [Patch(pair) for pair in pairs],
        codes=LabelCodes(values={0: 0, 1: 1}),
        bands=_RED_GREEN_BLUE if way.image else (1, 1, 1),
        scaling="scene",
        heights=True,
    )


def _pair(data: Path, out: Path, row: dict[str, str], way: Way) -> Pair:
    """Return a tile as a way sees it; its surface model becomes a file of its own."""
    image, label = data / row["image"], data / row["label"]
    dsm = out / f"dem_{image.stem}.tif"
    if not dsm.exists():
        with open_scene(image, SceneOptions(placed=False)) as source:
            heights = source.read(Window(0, 0, source.grid.size), (_DEM,)).values
        Image.fromarray(heights[0].astype(np.float32)).save(dsm)
    if not way.image:
        return Pair(dsm, label)
    return Pair(image, label, height=dsm if way.heights else None)


if __name__ == "__main__":
    main()
