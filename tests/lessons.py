"""Folders of small labelled images and scenes to train on."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from PIL import Image
from rasters import RasterSpec, write_raster

NAMES = ("dark", "bright")


def furnish(
    folder: Path,
    *,
    names: tuple[str, ...] = NAMES,
    gsd_m: float | None = 0.5,
    side_px: int = 48,
    images: int = 3,
    seed: int = 0,
) -> Path:
    """Write ``images/``, ``labels/`` and ``classes.json``: stripes, one per class and image.

    Without ``gsd_m`` the images are PNG files that lie nowhere.
    """
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    stripes = np.arange(side_px) * 2 * len(names) // side_px % len(names)
    for index in range(images):
        labels = np.roll(np.tile(stripes, (side_px, 1)), index, axis=1).astype(np.uint8)
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
        noise = rng.integers(0, 40, (3, side_px, side_px))
        pixels = (labels * (200 // len(names)) + noise).astype(np.uint8)
        if gsd_m is None:
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "images" / f"{index}.png")
        else:
            place = Affine(gsd_m, 0, 500000, 0, -gsd_m, 5200000)
            spec = RasterSpec(rows=side_px, cols=side_px, transform=place)
            write_raster(folder / "images" / f"{index}.tif", spec, values=pixels)
    (folder / "classes.json").write_text(json.dumps(dict(enumerate(names))))
    return folder


def furnish_scene(folder: Path, name: str, *, left: float = 500_000) -> Path:
    """Write a scene whose left half is dark and whose right half is bright, and a vector of both.

    The vector is in longitude and latitude; ``left`` is the scene's edge in metres.
    """
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 30, (3, 64, 128))
    values = (np.where(np.arange(128) < 64, 40, 200) + noise).astype(np.uint8)
    at = Affine(0.5, 0, left, 0, -0.5, 5_200_000)
    write_raster(folder / f"{name}.tif", RasterSpec(transform=at), values=values)
    corners = [((64 * half, 64), (64 * half + 64, 0)) for half in range(2)]
    halves = [shapely.box(*(at @ low), *(at @ high)) for low, high in corners]
    frame = gpd.GeoDataFrame({"class": NAMES}, geometry=halves, crs="EPSG:32633")
    frame.to_crs(4326).to_file(folder / f"{name}_labels.geojson")
    return folder
