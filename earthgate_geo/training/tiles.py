"""Batches of a scene's tiles at the network's scale, for adaptation and its guard."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.sampling import ValidRandomSampler
from earthgate_geo.data.scenes import NetworkInput, SceneDataset, TilePlan
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import Radiometry

HELD_BACK_SHARE = 0.2
"""Share of the labelled blocks that the guard keeps for itself."""

MIN_BLOCKS = 5
"""Fewer labelled blocks than this all train; the guard then sees no labels."""


@dataclass(frozen=True)
class TileBatch:
    """Tiles as the network sees them."""

    images: Tensor
    """(batch, 3, row, col) in 0..1."""

    valid: Tensor
    """(batch, row, col), True where the scene has data."""

    labels: Tensor
    """(batch, row, col) of class values, ``OTHER`` or ``UNKNOWN``; all unknown without labels."""


class SceneTiles:
    """Draws square tiles of a scene, ``size_px`` wide for the network.

    Labels are split into blocks of one tile: a share of the blocks is held back for the guard,
    the rest trains.

    Args:
        dataset: The scene, with labels or without, and without transforms.
        plan: The scale.
        radiometry: Of the scene.
        size_px: Height and width of a tile in network pixels.
        generator: Source of all randomness.
    """

    def __init__(
        self,
        dataset: SceneDataset,
        plan: TilePlan,
        radiometry: Radiometry,
        *,
        size_px: int,
        generator: torch.Generator,
    ) -> None:
        self._dataset, self._generator = dataset, generator
        self._network = Size(size_px, size_px)
        self._prepare = NetworkInput(radiometry, self._network)
        self._tile = Size(
            max(1, round(size_px * plan.tile.rows / plan.network.rows)),
            max(1, round(size_px * plan.tile.cols / plan.network.cols)),
        )
        self._sampler = ValidRandomSampler(dataset, self._tile, 1, generator=generator)
        self._positions = dataset.labels.positions() if dataset.labels is not None else []
        self.held_back = self._hold_back()
        self._spots = [p for p in self._positions if self._block(p[0], p[1]) not in self.held_back]

    @property
    def labelled(self) -> bool:
        """Tell whether the scene has labels to train on."""
        return bool(self._spots)

    @property
    def named(self) -> frozenset[int]:
        """Values of the classes that the labels name; empty without labels."""
        labels = self._dataset.labels
        return frozenset(labels.named) if labels is not None else frozenset()

    def draw(self, count: int) -> TileBatch:
        """Draw ``count`` random tiles with enough valid pixels."""
        windows = [self._dataset.window(next(iter(self._sampler))) for _ in range(count)]
        return self.read(windows)

    def draw_labelled(self, count: int) -> TileBatch:
        """Draw ``count`` tiles around labelled pixels, every class as often as the others."""
        values = sorted({value for _, _, value in self._spots})
        windows = []
        for _ in range(count):
            value = values[self._below(len(values))]
            own = [spot for spot in self._spots if spot[2] == value]
            row, col, _ = own[self._below(len(own))]
            windows.append(self._around(row, col))
        return self.read(windows)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Draw tiles that will be drawn once more afterwards: a look at the coming steps."""
        state = self._generator.get_state()
        try:
            yield
        finally:
            self._generator.set_state(state)

    def read(self, windows: Sequence[Window], *, held_back: bool = False) -> TileBatch:
        """Read tiles with their training labels, or with the ``held_back`` ones instead."""
        images, valid, labels = [], [], []
        for window in windows:
            sample = self._prepare(self._dataset[self._dataset.query(window)])
            images.append(sample["image"])
            valid.append(self._fit(sample["valid"]).bool())
            mask = sample.get("mask")
            if mask is None:
                mask = torch.full((window.size.rows, window.size.cols), UNKNOWN)
            elif self.held_back:
                mask = mask.masked_fill(self._held(window) != held_back, UNKNOWN)
            labels.append(self._fit(mask))
        return TileBatch(torch.stack(images), torch.stack(valid), torch.stack(labels))

    def held_back_windows(self) -> list[Window]:
        """Return the blocks whose labels are held back, as windows."""
        rows, cols = self._tile.rows, self._tile.cols
        return [Window(r * rows, c * cols, self._tile) for r, c in sorted(self.held_back)]

    def _hold_back(self) -> set[tuple[int, int]]:
        blocks = sorted({self._block(row, col) for row, col, _ in self._positions})
        if len(blocks) < MIN_BLOCKS:
            return set()
        order = torch.randperm(len(blocks), generator=self._generator).tolist()
        return {blocks[i] for i in order[: round(HELD_BACK_SHARE * len(blocks))]}

    def _block(self, row: int, col: int) -> tuple[int, int]:
        return row // self._tile.rows, col // self._tile.cols

    def _held(self, window: Window) -> Tensor:
        """Return (row, col), True where a pixel's block is held back."""
        rows = np.arange(window.row, window.row_stop) // self._tile.rows
        cols = np.arange(window.col, window.col_stop) // self._tile.cols
        held = np.zeros((window.size.rows, window.size.cols), np.bool_)
        for row, col in self.held_back:
            held |= np.outer(rows == row, cols == col)
        return torch.from_numpy(held)

    def _around(self, row: int, col: int) -> Window:
        size, tile = self._dataset.scene.grid.size, self._tile
        top = row - self._below(tile.rows)
        left = col - self._below(tile.cols)
        return Window(
            max(0, min(top, size.rows - tile.rows)), max(0, min(left, size.cols - tile.cols)), tile
        )

    def _fit(self, mask: Tensor) -> Tensor:
        size = (self._network.rows, self._network.cols)
        if mask.shape == size:
            return mask
        return functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[
            0, 0
        ].long()

    def _below(self, stop: int) -> int:
        return int(torch.randint(stop, (), generator=self._generator))
