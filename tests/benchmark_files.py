"""Makers of benchmark datasets: a few pixels a file, in the layouts as published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasters import RasterSpec, write_raster

AERIAL = "WHU-Building/3. The cropped image tiles and raster labels"
SATELLITE = (
    "WHU-Building/Satellite dataset \u2161 (East Asia)/1. The cropped image data and raster labels"
)
DRIVERS = {".png": "PNG", ".jpg": "JPEG", ".tif": "GTiff", ".tiff": "GTiff"}
WHITE, BLUE, CYAN, GREEN, YELLOW, RED, BLACK = (
    *((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0)),
    *((255, 255, 0), (255, 0, 0), (0, 0, 0)),
)


def write_image(path: Path, *, bands: int = 3, side_px: int = 8) -> NDArray[Any]:
    """Write a random image of bytes, in the format of its ending, and return it."""
    spec = RasterSpec(bands=bands, rows=side_px, cols=side_px, crs=None, transform=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_raster(path, spec, driver=DRIVERS[path.suffix])


def write_label(
    path: Path, codes: Sequence[int] | Sequence[tuple[int, int, int]], *, side_px: int = 8
) -> None:
    """Write codes or colours, one to a row of pixels, the last of them below."""
    rows = [codes[min(row, len(codes) - 1)] for row in range(side_px)]
    values = np.array(rows, np.uint8).reshape(side_px, -1).T[..., None].repeat(side_px, axis=2)
    spec = RasterSpec(crs=None, transform=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, spec, values=values, driver=DRIVERS[path.suffix])


def write_potsdam(
    root: Path, tiles: Sequence[str], *, labels: str = "", eroded: bool = False
) -> None:
    """Write tiles of Potsdam with their labels in the folder ``labels``."""
    ending = "_label_noBoundary.tif" if eroded else "_label.tif"
    for tile in tiles:
        name = f"top_potsdam_{tile}"
        write_image(root / "Potsdam" / "4_Ortho_RGBIR" / f"{name}_RGBIR.tif", bands=4)
        colors = (WHITE, BLUE, CYAN, GREEN, YELLOW, RED, BLACK)
        write_label(root / "Potsdam" / labels / f"{name}{ending}", colors)


def write_vaihingen(
    root: Path, areas: Sequence[str], *, labels: str = "", eroded: bool = False
) -> None:
    """Write areas of Vaihingen with their labels in the folder ``labels``."""
    ending = "_noBoundary.tif" if eroded else ".tif"
    for area in areas:
        name = f"top_mosaic_09cm_area{area}"
        write_image(root / "Vaihingen" / "top" / f"{name}.tif")
        write_label(root / "Vaihingen" / labels / f"{name}{ending}", (WHITE, BLUE, BLACK))


def write_loveda(root: Path, split: str, scene: str, names: Sequence[str]) -> None:
    """Write images of LoveDA, such as ``Train`` and ``Urban``."""
    home = root / "LoveDA" / split / scene
    for name in names:
        write_image(home / "images_png" / f"{name}.png")
        write_label(home / "masks_png" / f"{name}.png", range(8))


def write_places(root: Path, grounds: Sequence[str], *, place: str = "kampala_ug") -> None:
    """Write a tile of a place for every entry of ``grounds``."""
    home = root / "fair_buildings"
    lines = ["image,label,domain,ground"]
    for number, ground in enumerate(grounds):
        image, label = f"{place}/images/{number}.tif", f"{place}/labels/{number}.tif"
        write_image(home / image)
        write_label(home / label, (0, 1))
        lines.append(f"{image},{label},{place},{ground}")
    (home / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
