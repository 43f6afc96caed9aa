"""Overlapping tiles to seamless rows: weights that sum to one, a ring of open rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earthgate_geo.errors import InputError
from earthgate_geo.raster.grid import Tiling, Window

FLOOR = 0.01
"""Least weight of a tile's outermost pixel before normalisation."""

STRIP_ROWS = 128
"""Most rows of one strip: bounds what a reader of strips allocates, not what it gets."""


@dataclass(frozen=True)
class Strip:
    """Finished rows over the columns that are blended."""

    row: int
    """First row."""

    col: int
    """First column."""

    probabilities: Tensor
    """Blended probabilities, float32, of shape (class, row, col)."""

    valid: Tensor
    """True where a tile with a valid pixel lay, of shape (row, col)."""


class StripBlender:
    """Blend the probabilities of overlapping tiles, top row of tiles first.

    A tile counts less toward its edges, by a cosine ramp over the overlap. The weights follow
    from the tiling alone and sum to one at every pixel, whichever tiles are left out for having
    no valid pixel: those that are left out touch no valid pixel. A pixel's sum has the same terms
    in the same order whatever columns it is blended with.

    Memory: ``classes`` x tile rows x columns in float32, whatever the raster's height, and two
    tiles.

    Args:
        tiling: The tiles of the raster, all of them.
        classes: Number of classes.
        cols: The columns to blend; all by default.
        first_row: Where to start; a row at which tiles start.
        device: Where probabilities arrive and are summed.
    """

    def __init__(
        self,
        tiling: Tiling,
        *,
        classes: int,
        cols: slice | None = None,
        first_row: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        raster, tile, stride = tiling.raster, tiling.tile, tiling.stride
        rows = _axis_weights(tiling.row_starts, raster.rows, tile.rows, tile.rows - stride.rows)
        across = _axis_weights(tiling.col_starts, raster.cols, tile.cols, tile.cols - stride.cols)
        self._row_weights = {row: torch.from_numpy(w).to(device) for row, w in rows.items()}
        self._col_weights = {col: torch.from_numpy(w).to(device) for col, w in across.items()}
        self._raster, self._cols = raster, cols or slice(0, raster.cols)
        self._ring_rows = min(tile.rows, raster.rows)  # row r lives in slot r % _ring_rows
        ring = (self._ring_rows, self._cols.stop - self._cols.start)
        self._sum = torch.zeros(classes, *ring, device=device)
        self._valid = torch.zeros(ring, dtype=torch.bool, device=device)
        # Fresh memory for every product would cost more than the product.
        self._product = torch.empty(classes * self._ring_rows * tile.cols, device=device)
        self._first = first_row

    def add(self, window: Window, probabilities: Tensor, valid: Tensor) -> None:
        """Add one tile; what reaches past the raster or the columns is ignored.

        Args:
            window: A tile of the tiling, not above a row given out already, and no lower than
                the rows taken: take the rows above it first.
            probabilities: Of shape (class, row, col) of the window, summing to one per pixel.
            valid: True where the scene has data, of shape (row, col) of the window.

        Raises:
            InputError: The window is no tile of the tiling, or out of order.
        """
        if window.row != self._first or window.col not in self._col_weights:
            raise InputError(
                found=f"a tile at row {window.row}, column {window.col}",
                expected=f"a tile of the tiling at row {self._first}",
            )
        inside = window.clipped(self._raster)
        left, right = max(inside.col, self._cols.start), min(inside.col_stop, self._cols.stop)
        from_tile = slice(left - window.col, right - window.col)
        cols = slice(left - self._cols.start, right - self._cols.start)
        across = self._col_weights[window.col][from_tile]
        down = self._row_weights[window.row]
        split = min(self._ring_rows - self._first % self._ring_rows, inside.size.rows)
        for top, bottom in ((0, split), (split, inside.size.rows)):
            slot = (self._first + top) % self._ring_rows
            slots = slice(slot, slot + bottom - top)
            part = probabilities[:, top:bottom, from_tile]
            weights = down[top:bottom, None] * across  # (row, col)
            # Not addcmul: fused and plain multiply-add round differently.
            product = self._product[: part.numel()].view(part.shape)
            self._sum[:, slots, cols] += torch.mul(part, weights, out=product)
            self._valid[slots, cols] |= valid[top:bottom, from_tile]

    def take(self, until: int) -> Iterator[Strip]:
        """Give out the rows above the row ``until``, which no tile touches any more.

        A strip is good until the next one is asked for.
        """
        while self._first < until:
            slot = self._first % self._ring_rows
            rows = min(until - self._first, self._ring_rows - slot, STRIP_ROWS)
            slots = slice(slot, slot + rows)
            yield Strip(self._first, self._cols.start, self._sum[:, slots], self._valid[slots])
            self._sum[:, slots] = 0
            self._valid[slots] = False
            self._first += rows


def _axis_weights(
    starts: list[int], length: int, tile: int, overlap: int
) -> dict[int, NDArray[np.float32]]:
    """Weights along one axis by first pixel of the tile, cut to the raster, summing to one."""
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    share = np.minimum(distance / overlap, 1.0) if overlap else np.ones(tile)
    ramp = FLOOR + (1 - FLOOR) * np.sin(np.pi / 2 * share) ** 2
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += ramp[: length - start]
    return {
        start: (ramp[: length - start] / total[start : start + tile]).astype(np.float32)
        for start in starts
    }
