"""The scenes that adaptation is measured on, and how a network is scored there."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window
from scipy import ndimage
from torch.nn import functional

from earthgate_geo.data.labels import LabelLayer, LabelOptions, open_labels
from earthgate_geo.data.sampling import TopDownSampler
from earthgate_geo.data.scenes import NetworkInput, SceneDataset, plan_tiles
from earthgate_geo.metrics import OTHER, UNKNOWN, Confusion
from earthgate_geo.models.segmenter import SegmenterConfig
from earthgate_geo.raster.read import open_scene
from earthgate_geo.training.loop import fast_arithmetic
from earthgate_geo.training.tiles import SceneView

PLACES = ("zanzibar_tz", "kampala_ug", "catanduanes_ph")
CROP_PX, BLOCK_PX = 1024, 256
ENOUGH = 0.1
"""Least share of buildings in a crop."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Target:
    """A scene with its truth, and the model that has never seen its place."""

    name: str
    """Of the files."""

    kind: str
    """``place``, ``sensor``, ``city`` or ``town``."""

    model: str
    """Stem of the model's file; empty is the packaged one."""

    codes: str
    """What the numbers of the truth mean, as ``--label-map`` says it; empty if they are ours."""


_BUILDINGS = "0=other,1=building"
_COMMON = "0=other,1=building,2=vegetation,3=water"


def grey(image: Pixels) -> Pixels:
    """Show one band."""
    return image.mean(0, keepdims=True).round().astype(np.uint8)


def swapped(image: Pixels) -> Pixels:
    """Show blue, green, red."""
    return image[::-1]


def hazy(image: Pixels) -> Pixels:
    """Lay patches of haze over the scene."""
    rng = np.random.default_rng(0)
    side = image.shape[-1]
    veil = ndimage.zoom(rng.uniform(0.1, 0.7, (5, 5)), side / 5, order=3)[:side, :side]
    veil = veil.clip(0, 0.8)
    return (image * (1 - veil) + 215 * veil).round().astype(np.uint8)


def flat(image: Pixels) -> Pixels:
    """Compress the dark half of the contrast, as a sensor of another curve would."""
    return (255 * (image / 255.0) ** 0.45).round().astype(np.uint8)


def coarse(image: Pixels) -> Pixels:
    """Halve the resolution."""
    bands, rows, cols = image.shape
    return image.reshape(bands, rows // 2, 2, cols // 2, 2).mean((2, 4)).round().astype(np.uint8)


SENSORS: dict[str, Callable[[Pixels], Pixels]] = {
    "bgr": swapped,
    "grey": grey,
    "haze": hazy,
    "curve": flat,
    "coarse": coarse,
}


def targets(kinds: tuple[str, ...] = ("place", "sensor", "town", "city")) -> list[Target]:
    """Return all targets of some kinds."""
    places = [Target(p, "place", f"without_{p}", _BUILDINGS) for p in PLACES]
    sensors = [
        Target(f"{p}.{s}", "sensor", f"without_{p}", _BUILDINGS) for p in PLACES for s in SENSORS
    ]
    towns = [Target(f"town_{bands}", "town", "", "") for bands in ("rgb", "irrg")]
    cities = [Target(f"dubai.{n}", "city", "", _COMMON) for n in range(1, 9)]
    return [t for t in (*places, *sensors, *towns, *cities) if t.kind in kinds]


def prepare(data: Path, towns: Path, work: Path) -> None:
    """Write scene, truth, and its two halves, of every target into WORK."""
    for place in PLACES:
        with (
            rasterio.open(data / "scenes" / f"{place}_scene.tif") as scene,
            rasterio.open(data / "scenes" / f"{place}_truth.tif") as truth,
        ):
            image, valid = scene.read((1, 2, 3)), scene.dataset_mask() > 0
            labels, profile = truth.read(1), {"crs": scene.crs, "transform": scene.transform}
        _write(work / place, image, labels, valid=valid, **profile)
        row, col = _full_crop(labels)
        cut = np.s_[row : row + CROP_PX, col : col + CROP_PX]
        at = profile["transform"] @ rasterio.Affine.translation(col, row)
        for name, shift in SENSORS.items():
            shown = shift(image[:, *cut])
            scale = CROP_PX // shown.shape[-1]
            place_of = {"crs": profile["crs"], "transform": at @ rasterio.Affine.scale(scale)}
            known = labels[cut][::scale, ::scale]
            _write(work / f"{place}.{name}", shown, known, **place_of)
    for town in ("town_rgb", "town_irrg"):
        with (
            rasterio.open(towns / f"{town}.tif") as scene,
            rasterio.open(towns / f"{town}_truth.tif") as truth,
        ):
            _halves(
                work / town, truth.read(1), nodata=255, crs=truth.crs, transform=truth.transform
            )
            profile = scene.profile | {"driver": "GTiff"}
            (work / f"{town}.tif").write_bytes((towns / f"{town}.tif").read_bytes())
    for number in range(1, 9):
        _city(data / "dubai_mbrsc", f"tile{number}", work / f"dubai.{number}")


def _city(folder: Path, domain: str, stem: Path) -> None:
    """Lay the parts of a city's tile side by side; nothing is known of their place and scale."""
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as listed:
        rows = [row for row in csv.DictReader(listed) if row["domain"] == domain]
    images, labels = [], []
    for row in rows:
        with rasterio.open(folder / row["image"]) as image:
            images.append(image.read((1, 2, 3)))
        with rasterio.open(folder / row["label_common4"]) as label:
            labels.append(label.read(1))
    high, wide = max(x.shape[1] for x in images), max(x.shape[2] for x in images)
    side = int(np.ceil(np.sqrt(len(rows))))
    canvas = np.zeros((3, side * high, side * wide), np.uint8)
    truth = np.full(canvas.shape[1:], UNKNOWN, np.uint8)
    valid = np.zeros(canvas.shape[1:], bool)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        top, left = index // side * high, index % side * wide
        place = np.s_[top : top + image.shape[1], left : left + image.shape[2]]
        canvas[:, *place], truth[place], valid[place] = image, label, True
    grid = {"crs": "EPSG:32640", "transform": from_origin(3e5, 2.8e6, 0.5, 0.5)}
    _write(stem, canvas, truth, valid=valid, **grid)


def _full_crop(labels: Pixels) -> tuple[int, int]:
    """Return the first crop that is known throughout and has buildings enough."""
    rows, cols = labels.shape
    for row in range(0, rows - CROP_PX + 1, 64):
        for col in range(0, cols - CROP_PX + 1, 64):
            crop = labels[row : row + CROP_PX, col : col + CROP_PX]
            if (crop != UNKNOWN).all() and (crop == 1).mean() >= ENOUGH:
                return row, col
    found = [
        (int((labels[r : r + CROP_PX, c : c + CROP_PX] != UNKNOWN).sum()), r, c)
        for r in range(0, rows - CROP_PX + 1, 64)
        for c in range(0, cols - CROP_PX + 1, 64)
    ]
    return max(found)[1:]


def _write(stem: Path, image: Pixels, truth: Pixels, *, valid=None, **grid) -> None:
    bands, rows, cols = image.shape
    stem.parent.mkdir(parents=True, exist_ok=True)
    kind = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": "uint8"}
    photometric = {"photometric": "RGB"} if bands == 3 else {}
    path = stem.with_name(f"{stem.name}.tif")
    with rasterio.open(path, "w", **kind, **grid, **photometric, tiled=True) as made:
        made.write(image)
        if valid is not None:
            made.write_mask(valid)
    _halves(stem, truth, nodata=255, **grid)


def _halves(stem: Path, truth: Pixels, **grid) -> None:
    """Write the truth, and a board of squares of it for the oracle, the others for scores."""
    rows, cols = np.indices(truth.shape) // BLOCK_PX
    black = (rows + cols) % 2 == 0
    kind = {"driver": "GTiff", "count": 1, "height": truth.shape[0], "width": truth.shape[1]}
    parts = {"truth": np.ones_like(black), "learn": black, "score": ~black}
    for name, part in parts.items():
        path = stem.with_name(f"{stem.name}.{name}.tif")
        with rasterio.open(path, "w", **kind, dtype="uint8", compress="deflate", **grid) as made:
            made.write(np.where(part, truth, UNKNOWN).astype(np.uint8), 1)


@contextmanager
def opened(
    target: Target, work: Path, config: SegmenterConfig, *, labels: str | None = None
) -> Iterator[SceneView]:
    """Open a target as a network of ``config`` sees it, with the labels of a part if wanted."""
    with ExitStack() as stack:
        scene = stack.enter_context(open_scene(work / f"{target.name}.tif"))
        bands = scene.choose_bands(config.bands)
        known = None
        if labels is not None:
            known = truth_of(target, work, config, scene.grid, part=labels)
        yield SceneView(
            dataset=SceneDataset(scene, bands=bands, labels=known),
            plan=plan_tiles(
                scene.grid,
                tile_px=config.tile_px,
                stride_px=config.tile_px * 3 // 4,
                gsd_min_m=config.gsd_min_m,
                gsd_max_m=config.gsd_max_m,
            ),
            radiometry=scene.radiometry(bands),
        )


def truth_of(target, work, config, grid, *, part: str) -> LabelLayer:
    """Open the truth of a target, or a part of it."""
    path = work / f"{target.name}.{part}.tif"
    codes = dict(pair.split("=") for pair in target.codes.split(",")) if target.codes else None
    return open_labels(str(path), grid, config.classes, LabelOptions(label_map=codes))


@dataclass(frozen=True)
class Score:
    """How a network does on the squares of a target that no oracle learns from."""

    miou: float
    """Per cent, over the classes that the truth names and the rest as one."""

    iou: dict[str, float]
    """Per cent, by class."""

    ece: float
    """Expected calibration error of what is named, in per cent."""


def score(network, view: SceneView, truth: LabelLayer, names: tuple[str, ...]) -> Score:
    """Score a network tile by tile, without overlap."""
    prepare_ = NetworkInput(view.radiometry, view.plan.network)
    data = SceneDataset(view.dataset.scene, bands=view.dataset.bands, transforms=prepare_)
    named = sorted(truth.named)
    rest = len(named)
    shown = (*(names[value] for value in named), "other")
    whole = len(named) == len(names)
    codes = np.full(256, UNKNOWN, np.uint8)
    codes[: len(names)] = rest
    codes[named] = range(rest)
    codes[OTHER] = UNKNOWN if whole else rest
    confusion = Confusion(shown)
    bins = np.zeros((3, 15))
    keep = torch.zeros(rest + 1, len(names))
    for value in range(len(names)):
        keep[codes[value], value] = 1
    for query in TopDownSampler(data, view.plan.tile, view.plan.tile):
        sample = data[query]
        known = truth.read(sample["window"])
        known[~sample["valid"].numpy()] = UNKNOWN
        if (known == UNKNOWN).all():
            continue
        with torch.inference_mode(), fast_arithmetic(torch.device("cpu")):
            logits = network(sample["image"][None]).float()
        if logits.shape[-2:] != known.shape:
            logits = functional.interpolate(logits, known.shape, mode="bilinear")
        probabilities = torch.einsum("oc,chw->ohw", keep, torch.softmax(logits, 1)[0])
        certainty, found = (x.numpy() for x in probabilities.max(0))
        # What counts is the most likely class of the network, not the sum over the rest.
        found = codes[logits[0].argmax(0).numpy()]
        certainty = np.take_along_axis(probabilities.numpy(), found[None].astype(int), 0)[0]
        wanted = codes[known]
        confusion.add(wanted, found)
        seen = wanted != UNKNOWN
        place = np.minimum((certainty[seen] * 15).astype(int), 14)
        for row, weight in enumerate((None, certainty[seen], (found == wanted)[seen])):
            bins[row] += np.bincount(place, weight, minlength=15)
    iou = dict(zip(shown, 100 * confusion.iou(), strict=True))
    ece = 100 * np.abs(bins[1] - bins[2]).sum() / bins[0].sum()
    return Score(100 * confusion.mean_iou(), {k: float(v) for k, v in iou.items()}, float(ece))


if __name__ == "__main__":
    print(json.dumps([t.name for t in targets()]))
