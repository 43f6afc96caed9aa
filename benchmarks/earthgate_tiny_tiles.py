"""The tiles that earthgate-tiny learns from, as arrays: drone imagery, and what we generate."""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from earthgate_geo.data.synthetic import (
    CLASSES,
    Rendering,
    View,
    draw_sensor,
    draw_town,
    random_tile,
    render,
)
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.raster.grid import Size

TILE_PX = 256
SCENE_GSD_M = 0.149

Bytes = NDArray[np.uint8]
Arrays = dict[str, NDArray[np.generic]]
"""What a packed file holds, by name."""


@dataclass(frozen=True)
class Tile:
    """A labelled tile."""

    image: Bytes
    """(3, row, col)."""

    labels: Bytes
    """(row, col)."""

    gsd_m: float
    """Ground size of a pixel."""


def real_tiles(data: Path, places: Iterable[str]) -> Arrays:
    """Return the drone tiles and scenes of ``data`` as the arrays of a packed file."""
    tiles, images, names = [], [], []
    for place in places:
        found = [*_fair_tiles(data / "fair_buildings", place), *_scene_tiles(data, place)]
        stacked = np.stack([tile.image for tile in found])
        images.append(_stretched(stacked, stacked[:, :, ::4, ::4], axes=(0, 2, 3)))
        tiles += found
        names += [place] * len(found)
    return _arrays("real", np.concatenate(images), tiles) | {"real_places": np.array(names)}


def made_tiles(
    count: int,
    seed: int,
    *,
    infrared: float = 0.0,
    gsd_m: tuple[float, float] = (0.07, 0.6),
) -> Arrays:
    """Return generated tiles as the arrays of a packed file.

    Args:
        count: Number of tiles.
        seed: Seed of everything.
        infrared: Share of tiles whose sensor sees infrared, red and green for certain, 0..1.
        gsd_m: Smallest and largest ground size of a pixel.
    """
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(count):
        made = (
            _infrared_tile(rng, gsd_m)
            if rng.random() < infrared
            else random_tile(rng, TILE_PX, gsd_m=gsd_m)
        )
        image = _stretched(made.image, made.image, axes=(1, 2))
        tiles.append(Tile(image, made.labels, made.gsd_m))
    return _arrays("made", np.stack([tile.image for tile in tiles]), tiles)


def _arrays(prefix: str, images: Bytes, tiles: list[Tile]) -> Arrays:
    return {
        f"{prefix}_images": images,
        f"{prefix}_labels": np.stack([tile.labels for tile in tiles]),
        f"{prefix}_gsd_m": np.array([tile.gsd_m for tile in tiles], np.float32),
        # With it, training needs no generator and none of what the generator draws with.
        "classes": np.array(json.dumps([asdict(entry) for entry in CLASSES])),
    }


def _stretched(image: Bytes, sample: Bytes, *, axes: tuple[int, ...]) -> Bytes:
    """Map the 1st to 99th percentile of each band of ``sample`` to 0..255."""
    low, high = (edge[:, None, None] for edge in np.percentile(sample, (1, 99), axis=axes))
    scale = (image - low) / np.maximum(high - low, 1)
    return np.asarray((np.clip(scale, 0, 1) * 255).round().astype(np.uint8))


def _fair_tiles(folder: Path, place: str) -> list[Tile]:
    with (folder / "manifest.csv").open(encoding="utf-8") as manifest:
        rows = [row for row in csv.DictReader(manifest) if row["domain"] == place]
    tiles = []
    for row in rows:
        with rasterio.open(folder / row["image"]) as source:
            image = source.read((1, 2, 3))
        with rasterio.open(folder / row["label"]) as source:
            tiles.append(Tile(image, _codes(source.read(1)), float(row["gsd_m"])))
    return tiles


def _scene_tiles(data: Path, place: str) -> list[Tile]:
    tiles = []
    with (
        rasterio.open(data / "scenes" / f"{place}_scene.tif") as scene,
        rasterio.open(data / "scenes" / f"{place}_truth.tif") as truth,
    ):
        for row in range(0, scene.height - TILE_PX + 1, TILE_PX):
            for col in range(0, scene.width - TILE_PX + 1, TILE_PX):
                window = rasterio.windows.Window(col, row, TILE_PX, TILE_PX)
                if scene.dataset_mask(window=window).mean() > 0.95 * 255:
                    labels = _codes(truth.read(1, window=window))
                    image = scene.read((1, 2, 3), window=window)
                    tiles.append(Tile(image, labels, SCENE_GSD_M))
    return tiles


def _codes(mask: Bytes) -> Bytes:
    """Turn 1 = building, 0 = anything else, 255 = unknown into class values."""
    return np.choose(np.minimum(mask, 2), [OTHER, 0, UNKNOWN]).astype(np.uint8)


def _infrared_tile(rng: np.random.Generator, gsd_m: tuple[float, float]) -> Rendering:
    gsd = float(np.exp(rng.uniform(*np.log(gsd_m))))
    plan = draw_town(int(rng.integers(2**31)), TILE_PX * gsd)
    sensor = replace(draw_sensor(rng, gsd_m=gsd), bands=("nir", "red", "green"))
    return render(plan, sensor, rng, view=View(x_m=0, y_m=0, size=Size(TILE_PX, TILE_PX)))
