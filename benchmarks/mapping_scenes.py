"""What the mapping benchmarks map: scenes of any size, two networks, and the engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.windows import Window as RasterioWindow
from torch import nn

from earthgate_geo.data.scenes import TilePlan
from earthgate_geo.mapping.runtime import Runtime
from earthgate_geo.mapping.scene import LocalEngine, MapOutputs, MapResult, map_scene
from earthgate_geo.mapping.stream import MapTask
from earthgate_geo.model_file import LoadedModel, load_model, save_model
from earthgate_geo.models.backbone import BackboneConfig, default_options
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.grid import Size
from earthgate_geo.raster.read import Radiometry, open_scene

SAMPLE = Path(__file__).parents[1] / "sample_tiles" / "town_rgb.tif"
TILE_PX, STRIDE_PX = 512, 384
GIGABYTE = 1_000_000_000

_VIT = "vit_small_patch14_dinov2"
_BLOCK_PX = 512
_BANDS = (1, 2, 3)


def side_px(tiles: int) -> int:
    """Return the side that ``tiles`` tiles cover exactly."""
    return TILE_PX + STRIDE_PX * (tiles - 1)


def write_scene(path: Path, side: int) -> Path:
    """Write a square scene of ``side`` pixels: the sample tile again and again, mirrored.

    Memory: one row of blocks, and the sample tile four times.
    """
    with rasterio.open(SAMPLE) as source:
        profile, sample = source.profile, source.read()
    pattern = np.pad(sample, ((0, 0), (0, sample.shape[1]), (0, sample.shape[2])), "symmetric")
    wide = np.take(pattern, np.arange(side), axis=2, mode="wrap")
    profile |= {"height": side, "width": side, "bigtiff": "IF_SAFER", "tiled": True}
    profile |= {"blockxsize": _BLOCK_PX, "blockysize": _BLOCK_PX, "num_threads": 2}
    profile |= {"compress": "deflate", "predictor": 2, "zlevel": 1}
    cache = rasterio.Env(GDAL_CACHEMAX=256 * 2**20)
    with cache, rasterio.open(path, "w", **profile) as target:
        for row in range(0, side, _BLOCK_PX):
            rows = np.arange(row, min(row + _BLOCK_PX, side))
            block = np.take(wide, rows, axis=1, mode="wrap")
            target.write(block, window=RasterioWindow(0, row, side, len(rows)))
    return path


def write_crop(path: Path, scene: Path, rows: slice, cols: slice) -> Path:
    """Write a part of a scene, where it lies."""
    window = RasterioWindow.from_slices(rows, cols)
    with rasterio.open(scene) as source:
        profile = source.profile | {"height": window.height, "width": window.width}
        profile["transform"] = source.window_transform(window)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", **profile) as target,
        ):
            target.write(source.read(window=window))
            if MaskFlags.per_dataset in source.mask_flag_enums[0] and source.count < 4:
                target.write_mask(source.dataset_mask(window=window))
    return path


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network to map with."""

    name: str
    """Name in the tables."""

    model: LoadedModel
    """The network."""

    path: Path
    """The file that holds it."""


def make_case(name: str, folder: Path) -> Case:
    """Load the packaged model (``tiny``), or make a ViT-S of random weights (``vit``)."""
    path = folder / f"{name}.safetensors"
    segmenter = load_model().segmenter
    if name == "vit":
        backbone = BackboneConfig(name=_VIT, options=default_options(_VIT, TILE_PX))
        torch.manual_seed(0)
        segmenter = Segmenter(replace(segmenter.config, backbone=backbone))
        for key, parameter in segmenter.named_parameters():
            if key.endswith(".gamma"):  # LayerScale: as it starts, blocks would hardly count
                nn.init.constant_(parameter, 0.5)
    title = {"tiny": "earthgate-tiny", "vit": "ViT-S/16, random weights"}[name]
    save_model(path, segmenter, card={"name": title}, dtype=torch.float32)
    return Case(name=title, model=load_model(path), path=path)


@contextmanager
def task_of(
    path: Path, classes: ClassTable, *, radiometry: Radiometry | None = None, overlap: bool = True
) -> Iterator[MapTask]:
    """Open a scene and cut it into tiles of its own pixels.

    Args:
        path: The scene.
        classes: Of the network.
        radiometry: In place of the scene's own.
        overlap: False for tiles side by side.
    """
    side, step = Size(TILE_PX, TILE_PX), STRIDE_PX if overlap else TILE_PX
    with open_scene(path) as scene:
        yield MapTask(
            scene=scene,
            bands=_BANDS,
            radiometry=radiometry or scene.radiometry(_BANDS),
            plan=TilePlan(tile=side, stride=Size(step, step), network=side),
            classes=classes,
        )


def map_into(
    folder: Path,
    task: MapTask,
    runtime: Runtime,
    *,
    confidence: bool = True,
    probs: bool = False,
    memory_bytes: int = GIGABYTE,
) -> MapResult:
    """Map a scene anew, into map.tif and, where asked, conf.tif and probs.tif."""
    outputs = MapOutputs(
        map=folder / "map.tif",
        confidence=folder / "conf.tif" if confidence else None,
        probs=folder / "probs.tif" if probs else None,
        overwrite=True,
    )
    engine = LocalEngine(runtime, memory_bytes=memory_bytes)
    return map_scene(engine, task, outputs, monitor=SilentMonitor())


def read_values(path: Path) -> NDArray[np.uint8]:
    """Return all bands of a layer, of shape (band, row, col)."""
    with rasterio.open(path) as source:
        values: NDArray[np.uint8] = source.read()
    return values
