"""A folder of small labelled images to train on."""

import json
from pathlib import Path

import numpy as np
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
