"""Polygons of a class raster, row by row: exact pixel edges, 4-connected, no seams."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from earthgate_geo.raster.classes import NODATA

Booleans = NDArray[np.bool_]
Integers = NDArray[np.int64]

# The four pixels around a corner of the pixel grid: above left, below left, above right,
# below right. Left ones come first, odd ones lie below.
_BESIDE = [2, 3, 0, 1]
_ABOVE_OR_BELOW = [1, 0, 3, 2]


@dataclass(frozen=True)
class Regions:
    """Finished regions: 4-connected pixels of one class, each with its outline."""

    classes: NDArray[np.uint8]
    """Class values, of shape (region,)."""

    pixels: Integers
    """Numbers of pixels, of shape (region,)."""

    sums: NDArray[np.float64]
    """Sums of the measures over the pixels, of shape (measure, region)."""

    polygons: NDArray[np.object_]
    """Valid polygons in pixel coordinates (x = column, y = row), of shape (region,)."""


@dataclass(frozen=True)
class _Corners:
    """Where outlines turn, in row-major order."""

    region: Integers
    row: Integers
    col: Integers
    below: Booleans
    """True where the region lies below the horizontal edge that ends here."""

    def __getitem__(self, chosen: Booleans | Integers) -> "_Corners":
        return _Corners(self.region[chosen], self.row[chosen], self.col[chosen], self.below[chosen])

    def joined(self, later: "_Corners") -> "_Corners":
        return _Corners(
            np.concatenate([self.region, later.region]),
            np.concatenate([self.row, later.row]),
            np.concatenate([self.col, later.col]),
            np.concatenate([self.below, later.below]),
        )


class Tracer:
    """Trace the regions of a class raster that arrives as rows from top to bottom.

    A region comes out as soon as no later row can touch it. However the rows are cut, the
    regions are the same.

    Memory: about 60 bytes x pixels of the rows added at once, plus 25 bytes x corners of the
    regions that are still open.

    Args:
        cols: Width of the raster.
        measures: Number of planes that are summed over each region.
    """

    def __init__(self, cols: int, *, measures: int = 0) -> None:
        none = np.empty(0, np.int64)
        self._next_row = 0
        # The last row added, with a border of nodata left and right, and its regions.
        self._last_classes = np.full(cols + 2, NODATA, np.uint8)
        self._last_regions = np.zeros(cols + 2, np.int64)
        # What is known of those regions, by their number.
        self._pixels = np.zeros(1, np.int64)
        self._sums = np.zeros((measures, 1))
        self._corners = _Corners(none, none, none, none.astype(bool))

    def add(self, classes: NDArray[np.uint8], *measures: NDArray[Any]) -> Regions:
        """Add the next rows and return the regions that no later row can touch.

        Args:
            classes: Class values, 255 where there is none, of shape (row, col).
            measures: Values to sum over each region, of shape (row, col) each.
        """
        block = np.full((len(classes) + 1, len(self._last_classes)), NODATA, np.uint8)
        block[0] = self._last_classes
        block[1:, 1:-1] = classes
        regions, values = _label(block, self._last_regions)
        self._renumber(regions[0], len(values))
        new = regions[1:, 1:-1].ravel()
        self._pixels += np.bincount(new, minlength=len(values))
        for total, plane in zip(self._sums, measures, strict=True):
            np.add(total, np.bincount(new, plane.ravel(), len(values)), out=total)
        self._corners = self._corners.joined(_corners(block, regions, self._next_row))
        self._next_row += len(classes)
        self._last_classes, self._last_regions = block[-1], regions[-1]
        return self._closed(values)

    def finish(self) -> Regions:
        """Return the regions that touch the last row."""
        row = np.full((1, len(self._last_classes) - 2), NODATA, np.uint8)
        return self.add(row, *np.zeros((len(self._sums), *row.shape)))

    def _renumber(self, of_last_row: Integers, count: int) -> None:
        moved = np.zeros(len(self._pixels), np.int64)
        moved[self._last_regions] = of_last_row
        pixels, sums = self._pixels, self._sums
        self._pixels = np.zeros(count, np.int64)
        self._sums = np.zeros((len(sums), count))
        np.add.at(self._pixels, moved, pixels)
        for after, before in zip(self._sums, sums, strict=True):
            np.add.at(after, moved, before)
        old = self._corners
        self._corners = _Corners(moved[old.region], old.row, old.col, old.below)

    def _closed(self, values: NDArray[np.uint8]) -> Regions:
        is_open = np.zeros(len(values), bool)
        is_open[self._last_regions] = True
        done = np.flatnonzero(~is_open & (values != NODATA))
        stays = is_open[self._corners.region]
        polygons = _polygons(self._corners[~stays])
        # Only the regions of the last row go on, so numbers stay as few as its columns.
        kept = np.flatnonzero(is_open)
        number = np.cumsum(is_open) - 1
        finished = Regions(values[done], self._pixels[done], self._sums[:, done], polygons)
        left = self._corners[stays]
        self._corners = _Corners(number[left.region], left.row, left.col, left.below)
        self._last_regions = number[self._last_regions]
        self._pixels, self._sums = self._pixels[kept], self._sums[:, kept]
        return finished


def _label(block: NDArray[np.uint8], above: Integers) -> tuple[Integers, NDArray[np.uint8]]:
    """Number the regions of a block whose first row has the regions ``above`` already.

    Returns:
        Region by pixel, numbered from 0, and class value by region.
    """
    starts = np.ones(block.shape, bool)
    starts[:, 1:] = block[:, 1:] != block[:, :-1]
    runs = np.cumsum(starts).reshape(block.shape) - 1  # stretches of one class in one row
    meet = (block[1:] == block[:-1]) & (starts[1:] | starts[:-1])
    _, heads, region = np.unique(above, return_index=True, return_inverse=True)
    parents = _components(
        int(runs[-1, -1]) + 1,
        np.concatenate([runs[:-1][meet], runs[0]]),
        np.concatenate([runs[1:][meet], runs[0][heads][region]]),
    )
    is_root = parents == np.arange(len(parents))
    number = np.cumsum(is_root) - 1
    return number[parents][runs], block[starts][is_root]


def _components(count: int, one: Integers, other: Integers) -> Integers:
    """Return the least node that each of ``count`` nodes is linked to, by links one - other."""
    parents = np.arange(count)
    while len(one):
        first, second = parents[one], parents[other]
        parents[np.maximum(first, second)] = np.minimum(first, second)
        while not np.array_equal(parents, shorter := parents[parents]):
            parents = shorter
        apart = parents[one] != parents[other]
        one, other = one[apart], other[apart]
    return parents


def _corners(block: NDArray[np.uint8], regions: Integers, first_row: int) -> _Corners:
    """Find the corners on the upper edges of all rows of a block but its first."""
    across = block[:, 1:] != block[:, :-1]
    down = block[1:] != block[:-1]
    row, col = np.nonzero((across[:-1] | across[1:]) & (down[:, :-1] | down[:, 1:]))
    near = [(row, col), (row + 1, col), (row, col + 1), (row + 1, col + 1)]
    around = np.stack([regions[at] for at in near], axis=1)  # (place, 4)
    data = np.stack([block[at] for at in near], axis=1) != NODATA
    # A pixel's region turns here where it goes on both beside and above or below, or neither.
    beside = around == around[:, _BESIDE]
    turns = data & (beside == (around == around[:, _ABOVE_OR_BELOW]))
    place, pixel = np.nonzero(turns)
    return _Corners(around[turns], first_row + row[place], col[place], pixel % 2 == 1)


def _polygons(corners: _Corners) -> NDArray[np.object_]:
    """Build the polygon of each region, by region number, from all of its corners.

    The corners of a region, row by row, are by turns the left and right end of its horizontal
    edges; column by column, the upper and lower end of its vertical edges. Edges run with the
    region on their right.
    """
    corners = corners[np.argsort(corners.region, kind="stable")]
    region, row, col, below = corners.region, corners.row, corners.col, corners.below
    # Where a region touches itself, two of its corners meet; each belongs to another ring.
    meets = (region[1:] == region[:-1]) & (row[1:] == row[:-1]) & (col[1:] == col[:-1])
    touches = np.append(meets, False) | np.insert(meets, 0, False)
    vertical = np.lexsort((2 * row + (below ^ touches), col, region)).reshape(-1, 2)
    opposite = np.empty(len(row), np.int64)
    opposite[vertical] = vertical[:, ::-1]
    left = np.arange(0, len(row), 2)
    starts, ends = left + ~below[left], left + below[left]
    ring, place = _cycles(opposite[ends] // 2)
    order = np.lexsort((place, ring))
    points = np.stack([starts, ends], axis=1)[order].ravel()
    # The ring of a region's first, uppermost edge is its outer one, and comes first here too.
    is_first = np.diff(ring[order], prepend=-1) != 0
    rings = shapely.linearrings(
        np.stack([col[points], row[points]], axis=1).astype(np.float64),
        indices=np.repeat(np.cumsum(is_first) - 1, 2),
    )
    _, polygon = np.unique(region[starts[order][is_first]], return_inverse=True)
    return np.asarray(shapely.polygons(rings, indices=polygon))


def _cycles(after: Integers) -> tuple[Integers, Integers]:
    """Return, by node of a permutation, the least node of its cycle and the place after it."""
    least, jump = np.arange(len(after)), after
    while not np.array_equal(least, lesser := np.minimum(least, least[jump])):
        least, jump = lesser, jump[jump]
    is_last = after == least
    jump = np.where(is_last, np.arange(len(after)), after)
    to_last = (~is_last).astype(np.int64)
    while (further := to_last[jump]).any():
        to_last, jump = to_last + further, jump[jump]
    return least, -to_last
