"""Draw docs/styles.png: places of sample_tiles in simulated styles, at several strengths.

Run as ``python benchmarks/style_grid.py``. The bank is built as a user would, from sample_tiles and
from generated tiles of the same ground size under other suns, seasons, hazes and cameras.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from earthgate_geo import StylesRequest, run_styles
from earthgate_geo.data.style import StyleBank, StyleInjector
from earthgate_geo.data.synthetic import View, draw_sensor, draw_town, render
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.bands import RGB
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import open_scene
from earthgate_geo.recipe import Styles
from earthgate_geo.style_file import load_bank

ROOT = Path(__file__).parents[1]
SCENE = ROOT / "sample_tiles" / "town_rgb.tif"
GSD_M = 0.25

COLUMNS = {
    "original": Styles(strength=0.0, styled=0.0),
    "strength 0.1": Styles(strength=0.1, styled=1.0),
    "strength 0.3": Styles(strength=0.3, styled=1.0),
    "strength 1.0": Styles(strength=1.0, styled=1.0),
    "1.0 in 70 % of blocks": Styles(strength=1.0, styled=0.7),
}
PLACES = {(20, 330): 20, (300, 560): 9, (230, 0): 1}
"""Upper left corner (row, col) of each row's place, and the seed of its style and its blocks."""

SIDE_PX, SHOWN_PX, GAP_PX, HEAD_PX = 384, 224, 8, 36
LEVELS = 32


def main(out: Path, tiles: int) -> None:
    """Build a bank of ``tiles`` generated tiles beside sample_tiles, and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        shutil.copy(SCENE, images)
        for seed in range(tiles):
            write_tile(images / f"{seed}.tif", seed)
        request = StylesRequest(data=images, out=Path(folder, "styles.safetensors"))
        print(run_styles(request, SilentMonitor())["styles"], "styles")
        bank = load_bank(request.out)
    picture = drawn([[styled(bank, at, seed, c) for c in COLUMNS] for at, seed in PLACES.items()])
    # Fewer levels halve the file; the grain of the images hides the steps between them.
    coarse = picture.point(lambda value: round(value * (LEVELS - 1) / 255) * 255 // (LEVELS - 1))
    coarse.save(out, optimize=True)
    print(f"{out.stat().st_size / 1e6:.2f} MB  {out.name}")


def write_tile(path: Path, seed: int) -> None:
    """Write a random place under a random sun, seen by a random camera in true colours."""
    rng = np.random.default_rng(seed)
    sensor = replace(draw_sensor(rng, gsd_m=GSD_M), bands=RGB)
    view = View(x_m=0, y_m=0, size=Size(SIDE_PX, SIDE_PX))
    made = render(draw_town(seed, SIDE_PX * GSD_M), sensor, rng, view=view)
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=3, dtype="uint8",
        crs="EPSG:32737", transform=rasterio.Affine(GSD_M, 0, 0, 0, -GSD_M, 0), photometric="rgb",
    ) as out:  # fmt: skip
        out.write(made.image)


def styled(bank: StyleBank, corner: tuple[int, int], seed: int, column: str) -> Tensor:
    """Return a place (3, row, col) as ``column`` has it; one seed simulates one style."""
    with open_scene(SCENE) as scene:
        bands = scene.choose_bands(RGB)
        pixels = scene.read(Window(*corner, Size(SIDE_PX, SIDE_PX)), bands)
        image = torch.from_numpy(scene.radiometry(bands).scale(pixels.values))
    restyle = StyleInjector(bank.style(), bank, COLUMNS[column])
    return restyle(image[None], np.random.default_rng(seed))[0]


def drawn(rows: list[list[Tensor]]) -> Image.Image:
    """Return the images in a grid under the names of the columns."""
    step = SHOWN_PX + GAP_PX
    size = (step * len(COLUMNS) - GAP_PX, HEAD_PX + step * len(rows) - GAP_PX)
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(19)
    for col, name in enumerate(COLUMNS):
        pen.text((col * step + SHOWN_PX / 2, HEAD_PX / 2), name, "#222222", font, anchor="mm")
        for row, images in enumerate(rows):
            pixels = (images[col] * 255).round().byte().permute(1, 2, 0).numpy()
            shown = Image.fromarray(pixels).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
            picture.paste(shown, (col * step, HEAD_PX + row * step))
    return picture


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "styles.png")
    parser.add_argument("--tiles", type=int, default=200)
    asked = parser.parse_args()
    main(asked.to, asked.tiles)
