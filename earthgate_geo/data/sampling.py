"""Tiles of a scene, as TorchGeo samplers."""

from collections.abc import Iterator

import numpy as np
import torch
from torchgeo.samplers import GeoSampler, RandomGeoSampler

from earthgate_geo.data.scenes import SceneDataset
from earthgate_geo.errors import EmptySceneError
from earthgate_geo.raster.grid import Size, Tiling, Window

Query = tuple[slice, slice, slice]

_TRIES = 32


class TopDownSampler(GeoSampler):
    """Tiles that cover a scene: top row first, the last row and column inward.

    A scene smaller than a tile gets one that reaches past its edge; tiles without a valid pixel
    are left out. TorchGeo's grid sampler starts at the bottom, runs past the far edges and drops
    small scenes. Memory: one window per tile.

    Args:
        dataset: The scene.
        tile: Size of a tile, in pixels of the scene.
        stride: Distance between tiles, in pixels of the scene.

    Raises:
        InputError: The stride is longer than the tile.
    """

    def __init__(self, dataset: SceneDataset, tile: Size, stride: Size) -> None:
        super().__init__(dataset)
        self._dataset = dataset
        tiling = Tiling(dataset.scene.grid.size, tile, stride)
        self.windows = [window for window in tiling if dataset.scene.has_valid(window)]

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Query]:
        return map(self._dataset.query, self.windows)


class ValidRandomSampler(RandomGeoSampler):
    """Random tiles with enough valid pixels.

    A tile is placed at random over a random valid pixel, inside the scene, until its estimated
    valid share suffices; failing that, the best of the tries is taken. Where the scene is
    smaller than a tile, the tile starts at the edge and reaches past the opposite one.

    Args:
        dataset: The scene.
        tile: Size of a tile, in pixels of the scene.
        length: Tiles to draw per pass.
        min_valid: Valid share that suffices, 0..1.
        generator: Source of all randomness.

    Raises:
        EmptySceneError: The decimated scene has no valid pixel.
    """

    def __init__(
        self,
        dataset: SceneDataset,
        tile: Size,
        length: int,
        *,
        min_valid: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        super().__init__(dataset, (tile.rows, tile.cols), length, generator=generator)
        self._dataset = dataset
        self._tile = tile
        self._min_valid = min_valid
        valid = dataset.scene.preview(()).valid
        self._shape = Size(*valid.shape)
        self._spots = np.flatnonzero(valid)
        if not self._spots.size:
            raise EmptySceneError(
                found=f"{dataset.scene.path} shows no valid pixel in its overview",
                expected="a scene with pixels to learn from",
            )

    def __iter__(self) -> Iterator[Query]:
        for _ in range(self.length):
            yield self._dataset.query(self._draw())

    def _draw(self) -> Window:
        best, best_share = self._place(), -1.0
        for _ in range(_TRIES):
            window = self._place()
            share = self._dataset.scene.valid_share(window)
            if share > best_share:
                best, best_share = window, share
            if share >= self._min_valid:
                break
        return best

    def _place(self) -> Window:
        scene = self._dataset.scene.grid.size
        spot = int(self._spots[self._below(len(self._spots))])
        row, col = divmod(spot, self._shape.cols)
        return Window(
            self._start(row / self._shape.rows, scene.rows, self._tile.rows),
            self._start(col / self._shape.cols, scene.cols, self._tile.cols),
            self._tile,
        )

    def _start(self, position: float, length: int, tile: int) -> int:
        """Place a tile over the relative ``position`` of one axis."""
        start = int(position * length) - self._below(tile)
        return max(0, min(start, length - tile))

    def _below(self, stop: int) -> int:
        return int(torch.randint(stop, (), generator=self.generator))
