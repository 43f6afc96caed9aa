"""Scenes as TorchGeo datasets of exact pixel windows, and the tile a network sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import shapely
import torch
from geopandas import GeoDataFrame
from pyproj import CRS
from torch import Tensor
from torch.nn import functional
from torchgeo.datasets import GeoDataset
from torchgeo.datasets.utils import GeoSlice

from earthgate_geo.data.heights import HeightLayer, height_channel
from earthgate_geo.data.labels import LabelLayer
from earthgate_geo.errors import InputError
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.raster.grid import Grid, Size, Window
from earthgate_geo.raster.read import Radiometry, Scene

Sample = dict[str, Any]

_FRAME = CRS.from_wkt(
    'ENGCRS["scene",EDATUM["scene"],CS[Cartesian,2],'
    'AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
)
"""The frame of the index: metres from the lower left corner of the scene's own pixels."""

_MAX_ENLARGEMENT = 2.0
_MAX_FORCED = 32.0
_SQUARE = 1.1
"""Aspect of ground pixels up to which they count as square."""

_GRAY = 0.5


class SceneDataset(GeoDataset):
    """One scene, with its labels and heights, in exact windows of its own pixels.

    The index holds the scene in its pixel frame, scaled to metres: rotated, south-up and
    geographic scenes are not resampled. Memory: the windows asked for.

    Args:
        scene: The scene.
        bands: 1-based file bands to read.
        labels: Labels on the scene's grid.
        heights: Heights on the scene's grid.
        transforms: Applied to every sample.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        bands: Sequence[int],
        labels: LabelLayer | None = None,
        heights: HeightLayer | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self.paths = scene.path
        self.scene = scene
        self.bands = tuple(bands)
        self.labels = labels
        self.transforms = transforms
        self.heights = heights
        gsd, size = scene.grid.gsd(), scene.grid.size
        self._res = (gsd.col_m, gsd.row_m)
        self.index = GeoDataFrame(
            {"filepath": [scene.path]},
            geometry=[shapely.box(0, 0, size.cols * gsd.col_m, size.rows * gsd.row_m)],
            crs=_FRAME,
            index=pd.IntervalIndex.from_arrays(
                [pd.Timestamp.min], [pd.Timestamp.max], closed="both", name="datetime"
            ),
        )
        # TorchGeo derives the bounds from the index anew each time, slower than we read a tile.
        self._bounds = super().bounds

    @property
    def bounds(self) -> tuple[slice, slice, slice]:
        """Bounds of the scene in its pixel frame: x, y in metres, all time."""
        return self._bounds

    def query(self, window: Window) -> tuple[slice, slice, slice]:
        """Return the TorchGeo query of a window; ``window`` takes it back exactly."""
        x_m, y_m = self._res
        rows = self.scene.grid.size.rows
        return (
            slice(window.col * x_m, window.col_stop * x_m),
            slice((rows - window.row_stop) * y_m, (rows - window.row) * y_m),
            slice(self._bounds[2].start, self._bounds[2].stop),
        )

    def window(self, query: GeoSlice) -> Window:
        """Return the window whose edges are nearest to those of a TorchGeo query.

        Raises:
            InputError: The query is narrower than half a pixel.
        """
        x, y, _ = self._disambiguate_slice(query)
        x_m, y_m = self._res
        rows = self.scene.grid.size.rows
        row, row_stop = rows - round(y.stop / y_m), rows - round(y.start / y_m)
        col, col_stop = round(x.start / x_m), round(x.stop / x_m)
        return Window(row, col, Size(row_stop - row, col_stop - col))

    def __getitem__(self, query: GeoSlice) -> Sample:
        """Read one window, which may reach past the scene.

        Returns:
            ``image`` float32 (band, row, col), digital numbers as in the file, zero past the
            edge; ``valid`` bool (row, col); ``window``; ``bounds``, the query; ``crs`` of the
            query; with labels ``mask`` int64 (row, col), 255 where unknown; with heights
            ``height`` float32 and ``height_valid`` bool (row, col).

        Raises:
            InputError: The window lies wholly outside the scene.
            DataError: A file is damaged there.
        """
        window = self.window(query)
        pixels = self.scene.read(window, self.bands)
        sample: Sample = {
            "image": torch.from_numpy(pixels.values.astype(np.float32, copy=False)),
            "valid": torch.from_numpy(pixels.valid),
            "window": window,
            "bounds": query,
            "crs": _FRAME,
        }
        if self.labels is not None:
            sample["mask"] = torch.from_numpy(self.labels.read(window).astype(np.int64))
        if self.heights is not None:
            heights = self.heights.read(window)
            sample["height"] = torch.from_numpy(heights.values[0])
            sample["height_valid"] = torch.from_numpy(heights.valid)
        return self.transforms(sample) if self.transforms else sample

    def close(self) -> None:
        """Let go of the files of scene and heights."""
        self.scene.close()
        if self.heights is not None:
            self.heights.close()


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """How a scene is cut into tiles for a network."""

    tile: Size
    """Size of a tile, in pixels of the scene."""

    stride: Size
    """Distance between tiles, in pixels of the scene."""

    network: Size
    """Size of a tile as the network sees it, in pixels."""

    note: str | None = None
    """What the user should know about the scale, one sentence."""


def plan_tiles(
    grid: Grid,
    *,
    tile_px: int,
    stride_px: int,
    gsd_min_m: float,
    gsd_max_m: float,
    forced_gsd_m: float | None = None,
) -> TilePlan:
    """Choose the scale at which a network sees a scene.

    Finer pixels are shrunk to the range, coarser ones enlarged at most twice; a scene that is
    coarser still keeps its own pixels, with a note. Each axis has its own scale; pixels that are
    clearly not square on the ground are brought to the coarser side.

    Args:
        grid: Grid of the scene.
        tile_px: Side of a tile, in network pixels.
        stride_px: Distance between tiles, in network pixels.
        gsd_min_m: Finest ground size that the network was trained for, in metres.
        gsd_max_m: Coarsest ground size that the network was trained for, in metres.
        forced_gsd_m: Ground size to use in any case, in metres.

    Raises:
        InputError: ``forced_gsd_m`` is more than 32 times away from the scene's.
    """
    gsd = grid.gsd()
    own = (gsd.row_m, gsd.col_m)
    note = None
    if forced_gsd_m is not None:
        _check_forced(forced_gsd_m, own)
        wanted = (forced_gsd_m, forced_gsd_m)
    elif max(own) > gsd_max_m * _MAX_ENLARGEMENT:
        wanted = own
        note = (
            f"The scene's pixels are {max(own):.3g} m on the ground, but the model was trained "
            f"for {gsd_min_m:.3g} to {gsd_max_m:.3g} m: it is mapped at its own size, and the "
            f"map may be poor (--gsd {gsd_max_m:.3g} forces the model's)."
        )
    else:
        wanted = _square(*(min(max(side_m, gsd_min_m), gsd_max_m) for side_m in own))
    down, across = (wanted_m / own_m for wanted_m, own_m in zip(wanted, own, strict=True))
    return TilePlan(
        tile=Size(max(1, round(tile_px * down)), max(1, round(tile_px * across))),
        stride=Size(max(1, round(stride_px * down)), max(1, round(stride_px * across))),
        network=Size(tile_px, tile_px),
        note=note,
    )


def _check_forced(forced_m: float, own: tuple[float, float]) -> None:
    least, most = max(own) / _MAX_FORCED, min(own) * _MAX_FORCED
    if not least <= forced_m <= most:
        raise InputError(
            found=f"--gsd {forced_m:g} for a scene whose pixels are {max(own):.3g} m",
            expected=f"{least:.2g} to {most:.3g} m",
        )


def _square(row_m: float, col_m: float) -> tuple[float, float]:
    coarse = max(row_m, col_m)
    return (coarse, coarse) if coarse > _SQUARE * min(row_m, col_m) else (row_m, col_m)


class NetworkInput:
    """A transform of samples: ``image`` becomes what the network sees.

    Digital numbers become 0..1, invalid pixels grey, and the tile gets the network's size: area
    average where it shrinks, bilinear where it grows, untouched where it fits. Heights, as
    ``height_channel`` makes them, become the last channel: averages of those heights that there
    are. The rest of the sample, ``valid`` and ``mask`` among it, stays in pixels of the scene.

    Args:
        radiometry: Of the scene, for the bands of the image.
        network: Size of the result, in pixels.
        heights: Of the heights, for a network that takes them; ``UNSCALED`` where the samples
            have none.
    """

    def __init__(
        self, radiometry: Radiometry, network: Size, *, heights: Radiometry | None = None
    ) -> None:
        self.radiometry = radiometry
        self.network = network
        self.heights = heights

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with its ``image`` as float32 (channel, row, col).

        Bands in 0..1, then, for a network that takes heights, these in 0..1 or ``NO_HEIGHT``.
        """
        # The sample is ours: fresh memory for every step would cost more than the step.
        image = torch.from_numpy(self.radiometry.scale(sample["image"].numpy(), in_place=True))
        if not sample["valid"].numpy().all():  # torch takes ten times as long
            # Before resizing, or invalid numbers would bleed into their neighbours.
            image.masked_fill_(~sample["valid"], _GRAY)
        image = resized(image, self.network)
        if self.heights is not None:
            image = torch.cat([image, self._height(sample, self.heights)])
        return sample | {"image": image}

    def _height(self, sample: Sample, radiometry: Radiometry) -> Tensor:
        """Return the channel of heights (1, row, col)."""
        if "height" not in sample:
            return torch.full((1, self.network.rows, self.network.cols), NO_HEIGHT)
        known = sample["height_valid"][None]
        scaled = torch.from_numpy(radiometry.scale(sample["height"][None].numpy()))
        share = resized(known.float(), self.network)
        # Apart, or what stands for no height would bleed into the heights around.
        summed = resized(scaled.masked_fill_(~known, 0), self.network)
        heights = (summed / share).clamp_(0, 1)  # 0 / 0 where there are none
        channel = height_channel(heights[0].numpy(), share[0].numpy() > 0)
        return torch.from_numpy(channel)[None]


def resized(image: Tensor, size: Size) -> Tensor:
    """Return an image (band, row, col) of another size: area average down, bilinear up."""
    rows, cols = image.shape[-2:]
    shrunk = (min(rows, size.rows), min(cols, size.cols))
    if shrunk != (rows, cols):
        image = functional.interpolate(image[None], shrunk, mode="area")[0]
    if shrunk != (size.rows, size.cols):
        image = functional.interpolate(
            image[None], (size.rows, size.cols), mode="bilinear", align_corners=False
        )[0]
    return image
