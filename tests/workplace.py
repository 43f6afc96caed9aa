"""A folder with a small scene, its labels, and models that adapt, or that never do."""

from pathlib import Path

import numpy as np
import torch
from networks import small_segmenter
from rasters import RasterSpec, write_raster

from earthgate_geo.model_file import save_model

SIDE_PX = 192


def furnish(folder: Path) -> Path:
    """Write ``scene.tif``, ``truth.tif``, ``open.safetensors`` and ``closed.safetensors``.

    The scene is a chequerboard of bright and dark squares, in the truth buildings and water. The
    model ``closed`` calls everything a building: no adaptation can agree with itself more.
    """
    squares = np.kron(np.indices((6, 6)).sum(0) % 2, np.ones((32, 32), int))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 40, (3, SIDE_PX, SIDE_PX))
    spec = RasterSpec(rows=SIDE_PX, cols=SIDE_PX)
    write_raster(folder / "scene.tif", spec, values=(squares * 180 + noise).astype(np.uint8))
    truth = np.where(squares, 0, 4).astype(np.uint8)[None]
    write_raster(folder / "truth.tif", RasterSpec(bands=1, nodata=255), values=truth)
    save_model(folder / "open.safetensors", small_segmenter(), card={"name": "open"})
    stubborn = small_segmenter()
    with torch.no_grad():
        stubborn.head.classify[-1].bias.copy_(torch.tensor([1000.0, 0, 0, 0, 0]))
    save_model(folder / "closed.safetensors", stubborn, card={"name": "closed", "licence": "CC0"})
    return folder


def files(folder: Path) -> set[str]:
    """Return everything below a folder, hidden entries included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
