"""Simplified outlines: the corners of pixels that they keep, the same for both neighbours."""

from collections.abc import Callable

import numpy as np
import shapely
from numpy.typing import NDArray

from earthgate_geo.mapping.trace import coverage
from earthgate_geo.raster.grid import Gsd, Size, Window

Classes = NDArray[np.uint8]
Booleans = NDArray[np.bool_]

BLOCK_PX = 1024
"""Side of the blocks that are simplified at once. Where outlines cross their lines, they stay."""

MOST_EDGES = 150_000
"""Edges of pixels between classes in a block that is simplified at once, else its halves are:
GEOS takes four times as long for twice as many, and 1 kB of memory for each."""


class Simplifier:
    """Choose the corners that the outlines of a class raster keep, from top to bottom.

    Outlines of a block are simplified together as a coverage: they stay apart, neighbours keep
    one line, and points where three regions meet stay. Blocks lie on a fixed grid and share the
    points at which outlines cross its lines.

    Memory: a block with its polygons, up to 150 MB, and a byte per pixel of ``BLOCK_PX`` rows.

    Args:
        read: Reads the classes of a window, 255 where there is none.
        gsd: Ground size of a pixel.
        tolerance_m: Corners go as long as the triangle they make with the next ones on either
            side is smaller than the square of this length in metres.
    """

    def __init__(self, read: Callable[[Window], Classes], gsd: Gsd, tolerance_m: float) -> None:
        self._read = read
        self._pixel_m = np.array([gsd.col_m, gsd.row_m])
        self._tolerance_m = tolerance_m
        self._seam: Booleans | None = None

    def kept(self, band: Window) -> Booleans:
        """Return True at the upper corners of pixels that stay, of shape (row, col + 1).

        Args:
            band: The next ``BLOCK_PX`` rows, or those that are left.
        """
        size = band.size
        kept = np.zeros((size.rows + 1, size.cols + 1), np.bool_)
        for col in range(0, size.cols, BLOCK_PX):
            cols = min(BLOCK_PX, size.cols - col)
            block = self._read(Window(band.row, band.col + col, Size(size.rows, cols)))
            kept[:, col : col + cols + 1] |= self._simplified(block)
        if self._seam is not None:
            kept[0] |= self._seam
        self._seam = kept[-1].copy()  # a view would keep all rows
        return kept[:-1]

    def _simplified(self, block: Classes) -> Booleans:
        kept = np.zeros((block.shape[0] + 1, block.shape[1] + 1), np.bool_)
        edges = sum(np.count_nonzero(np.diff(block, axis=axis)) for axis in (0, 1))
        if edges > MOST_EDGES:
            row, col = block.shape[0] // 2, block.shape[1] // 2
            if row >= col:
                kept[: row + 1] |= self._simplified(block[:row])
                kept[row:] |= self._simplified(block[row:])
            else:
                kept[:, : col + 1] |= self._simplified(block[:, :col])
                kept[:, col:] |= self._simplified(block[:, col:])
            return kept
        ground = shapely.transform(coverage(block), lambda points: points * self._pixel_m)
        outlines = shapely.coverage_simplify(ground, self._tolerance_m, simplify_boundary=False)
        col, row = np.rint(shapely.get_coordinates(outlines) / self._pixel_m).astype(np.int64).T
        kept[row, col] = True
        return kept
