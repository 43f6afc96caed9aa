"""The scenes that adaptation is measured on: places, other sensors there, a city, two towns."""

import csv
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy import ndimage

from earthgate_geo.data.labels import LabelLayer, LabelOptions, open_labels
from earthgate_geo.data.scenes import SceneDataset, plan_tiles
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.models.segmenter import SegmenterConfig
from earthgate_geo.raster.grid import Grid
from earthgate_geo.raster.read import open_scene
from earthgate_geo.training.tiles import SceneView

PLACES = ("zanzibar_tz", "kampala_ug", "catanduanes_ph")
CROP_PX, BLOCK_PX = 1024, 256
ENOUGH = 0.1
"""Least share of buildings in a crop."""

REACH_M = 10.0
"""How far from where one points a digitised thing may reach."""

Pixels = NDArray[np.uint8]
Booleans = NDArray[np.bool_]
Place = dict[str, Any]
"""The ``crs`` and ``transform`` of a raster."""


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
            labels, place_of = truth.read(1), {"crs": scene.crs, "transform": scene.transform}
        _write(work / place, image, labels, place_of, valid=valid)
        row, col = _full_crop(labels)
        cut = np.s_[row : row + CROP_PX, col : col + CROP_PX]
        at = place_of["transform"] @ rasterio.Affine.translation(col, row)
        for name, shift in SENSORS.items():
            shown = shift(image[:, *cut])
            scale = CROP_PX // shown.shape[-1]
            scaled = place_of | {"transform": at @ rasterio.Affine.scale(scale)}
            truth_of, seen = (each[cut][::scale, ::scale] for each in (labels, valid))
            _write(work / f"{place}.{name}", shown, truth_of, scaled, valid=seen)
    for town in ("town_rgb", "town_irrg"):
        with rasterio.open(towns / f"{town}_truth.tif") as truth:
            _halves(work / town, truth.read(1), {"crs": truth.crs, "transform": truth.transform})
        shutil.copy(towns / f"{town}.tif", work)
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
    _write(stem, canvas, truth, grid, valid=valid)


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


def _write(
    stem: Path, image: Pixels, truth: Pixels, grid: Place, *, valid: Booleans | None = None
) -> None:
    bands, rows, cols = image.shape
    stem.parent.mkdir(parents=True, exist_ok=True)
    kind = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": "uint8"}
    photometric = {"photometric": "RGB"} if bands == 3 else {}
    path = stem.with_name(f"{stem.name}.tif")
    with rasterio.open(path, "w", **kind, **grid, **photometric, tiled=True) as made:
        made.write(image)
        if valid is not None:
            made.write_mask(valid)
    _halves(stem, truth, grid)


def _halves(stem: Path, truth: Pixels, grid: Place) -> None:
    """Write the truth, and a board of squares of it for the oracle, the others for scores."""
    rows, cols = np.indices(truth.shape) // BLOCK_PX
    black = (rows + cols) % 2 == 0
    kind = {"driver": "GTiff", "count": 1, "height": truth.shape[0], "width": truth.shape[1]}
    parts = {"truth": np.ones_like(black), "learn": black, "score": ~black}
    for name, part in parts.items():
        path = stem.with_name(f"{stem.name}.{name}.tif")
        with rasterio.open(
            path, "w", **kind, dtype="uint8", nodata=255, compress="deflate", **grid
        ) as made:
            made.write(np.where(part, truth, UNKNOWN).astype(np.uint8), 1)


def ten_polygons(target: Target, work: Path, *, seed: int) -> Path:
    """Outline ten things, the classes in turn: what a person digitises in some minutes.

    A thing is what of a class hangs together within 10 m of a random pixel of it: a building, or a
    patch of ground. All lie where the oracle learns.
    """
    with rasterio.open(work / f"{target.name}.learn.tif") as raster:
        truth, profile = raster.read(1), raster.profile
        reach = round(REACH_M / raster.transform.a)
    chosen, rng = np.full_like(truth, UNKNOWN), np.random.default_rng(seed)
    pure = {
        int(value): np.argwhere(ndimage.binary_erosion(truth == value, iterations=2))
        for value in np.unique(truth[truth != UNKNOWN])
    }
    pure = {value: places for value, places in pure.items() if len(places)}
    for value in islice(cycle(pure), 10):
        row, col = pure[value][rng.integers(len(pure[value]))]
        top, left = max(row - reach, 0), max(col - reach, 0)
        near = np.s_[top : row + reach, left : col + reach]
        things, _ = ndimage.label(truth[near] == value)
        chosen[near][things == things[row - top, col - left]] = value
    path = work / f"{target.name}.ten{seed}.tif"
    with rasterio.open(path, "w", **profile) as made:
        made.write(chosen, 1)
    return path


@contextmanager
def opened(
    target: Target, work: Path, config: SegmenterConfig, *, labels: Path | None = None
) -> Iterator[SceneView]:
    """Open a target as a network of ``config`` sees it, with labels if wanted."""
    with open_scene(work / f"{target.name}.tif") as scene:
        bands = scene.choose_bands(config.bands)
        known = None if labels is None else codes_of(labels, target, config, scene.grid)
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


def part(target: Target, work: Path, name: str) -> Path:
    """Return the file of a part of the truth: ``truth``, ``learn`` or ``score``."""
    return work / f"{target.name}.{name}.tif"


def codes_of(path: Path, target: Target, config: SegmenterConfig, grid: Grid) -> LabelLayer:
    """Open labels in the codes of a target."""
    codes = dict(pair.split("=") for pair in target.codes.split(",")) if target.codes else None
    return open_labels(str(path), grid, config.classes, LabelOptions(label_map=codes))
