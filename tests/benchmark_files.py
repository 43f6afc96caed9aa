"""Makers of benchmark datasets: a few pixels a file, in the layouts as published."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasters import RasterSpec, write_raster
from torchgeo.datasets import Potsdam2D, Vaihingen2D

AERIAL = "WHU-Building/3. The cropped image tiles and raster labels"
SATELLITE = (
    "WHU-Building/Satellite dataset \u2161 (East Asia)/1. The cropped image data and raster labels"
)
DRIVERS = {".png": "PNG", ".jpg": "JPEG", ".tif": "GTiff", ".tiff": "GTiff"}
WHITE, BLUE, CYAN, GREEN, YELLOW, RED, BLACK = (
    *((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0)),
    *((255, 255, 0), (255, 0, 0), (0, 0, 0)),
)

# Image, labels and codes, of the datasets that are folders of both.
_FOLDERS: list[tuple[str, str, Sequence[Any]]] = [
    *(
        (
            f"CASID/{climate}/{split}/image/{{}}.png",
            f"CASID/{climate}/{split}/label/{{}}-label.png",
            range(6),
        )
        for climate in ("SubMs", "TemMs", "TroMs", "TroRf")
        for split in ("all_train", "all_test")
    ),
    *(
        (f"{home}/{split}/image/{{}}.tif", f"{home}/{split}/label/{{}}.tif", (0, 255))
        for home in (AERIAL, SATELLITE)
        for split in ("train", "val", "test")
    ),
    *(
        (
            f"HunanMultimodalDataset/{split}/s2/s2_{{}}.tif",
            f"HunanMultimodalDataset/{split}/lc/lc_{{}}.tif",
            (1, 2, 3, 5, 6, 8, 9),
        )
        for split in ("train", "val", "test")
    ),
    (
        "RescueNet/test/test-org-img/{}.jpg",
        "RescueNet/test/test-label-img/{}_lab.png",
        range(11),
    ),
    ("DeepGlobe/train/{}_sat.jpg", "DeepGlobe/train/{}_mask.png", [(0,) * 3, (255,) * 3]),
    ("Massachusetts/tiff/test/{}.tiff", "Massachusetts/tiff/test_labels/{}.tif", (0, 255)),
]


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


def write_heights(path: Path, *, bands: int = 1, dtype: str = "float32", side_px: int = 8) -> None:
    """Write a slope without a place, in the format of the file's ending."""
    values = np.linspace(40, 90, bands * side_px**2).reshape(bands, side_px, side_px)
    spec = RasterSpec(
        bands=bands, rows=side_px, cols=side_px, dtype=dtype, crs=None, transform=None
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, spec, values=values.astype(dtype), driver=DRIVERS[path.suffix])


def write_potsdam(
    root: Path, tiles: Sequence[str], *, labels: str = "", eroded: bool = False
) -> None:
    """Write tiles of Potsdam with their labels in the folder ``labels``, and their heights."""
    ending = "_label_noBoundary.tif" if eroded else "_label.tif"
    for tile in tiles:
        name = f"top_potsdam_{tile}"
        write_image(root / "Potsdam" / "4_Ortho_RGBIR" / f"{name}_RGBIR.tif", bands=4)
        colors = (WHITE, BLUE, CYAN, GREEN, YELLOW, RED, BLACK)
        write_label(root / "Potsdam" / labels / f"{name}{ending}", colors)
        row, col = map(int, tile.split("_"))
        heights = f"dsm_potsdam_{row:02}_{col:02}_normalized_lastools.jpg"
        write_heights(root / "Potsdam" / "1_DSM_normalisation" / heights, dtype="uint8")


def write_vaihingen(
    root: Path, areas: Sequence[str], *, labels: str = "", eroded: bool = False
) -> None:
    """Write areas of Vaihingen with their labels in the folder ``labels``, and their heights."""
    ending = "_noBoundary.tif" if eroded else ".tif"
    for area in areas:
        name = f"top_mosaic_09cm_area{area}"
        write_image(root / "Vaihingen" / "top" / f"{name}.tif")
        write_label(root / "Vaihingen" / labels / f"{name}{ending}", (WHITE, BLUE, BLACK))
        write_heights(root / "Vaihingen" / "dsm" / f"dsm_09cm_matching_area{area}.tif")


def write_loveda(root: Path, split: str, scene: str, names: Sequence[str]) -> None:
    """Write images of LoveDA, such as ``Train`` and ``Urban``."""
    home = root / "LoveDA" / split / scene
    for name in names:
        write_image(home / "images_png" / f"{name}.png")
        write_label(home / "masks_png" / f"{name}.png", range(8))


def write_places(root: Path, grounds: Sequence[str], *, place: str = "kampala_ug") -> None:
    """Write a tile of a place for every entry of ``grounds``; places add up."""
    home = root / "fair_buildings"
    manifest = home / "manifest.csv"
    head = "image,label,domain,ground\n"
    text = manifest.read_text(encoding="utf-8") if manifest.exists() else head
    for number, ground in enumerate(grounds):
        image, label = f"{place}/images/{number}.tif", f"{place}/labels/{number}.tif"
        write_image(home / image)
        write_label(home / label, (0, 1))
        text += f"{image},{label},{place},{ground}\n"
    manifest.write_text(text, encoding="utf-8")


def write_benchmarks(root: Path) -> None:
    """Write every dataset with every part that a setting uses: all tiles, few images."""
    potsdam = (*Potsdam2D.splits["train"], *Potsdam2D.splits["test"])
    vaihingen = (*Vaihingen2D.splits["train"], *Vaihingen2D.splits["test"])
    tiles = [name.removeprefix("top_potsdam_") for name in potsdam]
    areas = [Path(name).stem.removeprefix("top_mosaic_09cm_area") for name in vaihingen]
    for eroded in (False, True):
        write_potsdam(root, tiles, eroded=eroded)
        write_vaihingen(root, areas, eroded=eroded)
    for split, scene in product(("Train", "Val"), ("Urban", "Rural")):
        write_loveda(root, split, scene, ["0", "1"])
    for (image, label, codes), number in product(_FOLDERS, range(2)):
        write_image(root / image.format(number), bands=4 if "Hunan" in image else 3)
        write_label(root / label.format(number), codes)
    for split, number in product(("train", "val", "test"), range(2)):
        home = root / "HunanMultimodalDataset" / split
        write_heights(home / "topo" / f"topo_{number}.tif", bands=2, dtype="int16")
    for place in ("zanzibar_tz", "kampala_ug", "catanduanes_ph"):
        write_places(root, ["a", "b"], place=place)
