"""Polygons of a class raster, row by row: exact pixel edges, 4-connected, no seams."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from earthgate_geo.raster.classes import NODATA

Booleans = NDArray[np.bool_]
Integers = NDArray[np.int64]
Place = Callable[[NDArray[np.float64]], NDArray[np.float64]]

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
    """Valid polygons, their outer rings counterclockwise, of shape (region,)."""


@dataclass(frozen=True)
class _Corners:
    """Where outlines turn, in row-major order."""

    region: Integers
    row: Integers
    col: Integers
    below: Booleans
    """True where the region lies below the horizontal edge that ends here."""

    kept: Booleans
    """True where the outline of the polygon has this corner."""

    def __getitem__(self, chosen: Booleans | Integers) -> "_Corners":
        return _Corners(
            self.region[chosen],
            self.row[chosen],
            self.col[chosen],
            self.below[chosen],
            self.kept[chosen],
        )

    def joined(self, later: "_Corners") -> "_Corners":
        return _Corners(
            np.concatenate([self.region, later.region]),
            np.concatenate([self.row, later.row]),
            np.concatenate([self.col, later.col]),
            np.concatenate([self.below, later.below]),
            np.concatenate([self.kept, later.kept]),
        )


class Tracer:
    """Trace the regions of a class raster that arrives as rows from top to bottom.

    A region comes out as soon as no later row can touch it. However the rows are cut, the
    regions are the same.

    Memory: about 60 bytes x pixels of the rows added at once, plus 26 bytes x corners of the
    regions that are still open, and 140 bytes x corners of those that close at once.

    Args:
        cols: Width of the raster.
        measures: Number of planes that are summed over each region.
        place: Takes points (x = column, y = row), of shape (point, 2), to the coordinates of the
            polygons; an affine map. Without it, those are pixels.
    """

    def __init__(self, cols: int, *, measures: int = 0, place: Place = np.asarray) -> None:
        none = np.empty(0, np.int64)
        self._next_row = 0
        self._place = place
        # The last row added, with a border of nodata left and right, and its regions.
        self._last_classes = np.full(cols + 2, NODATA, np.uint8)
        self._last_regions = np.zeros(cols + 2, np.int64)
        # What is known of those regions, by their number.
        self._pixels = np.zeros(1, np.int64)
        self._sums = np.zeros((measures, 1))
        self._corners = _Corners(none, none, none, none.astype(bool), none.astype(bool))

    @property
    def open_corners(self) -> int:
        """Number of the corners of the regions that later rows may touch."""
        return len(self._corners.region)

    def add(
        self, classes: NDArray[np.uint8], *measures: NDArray[Any], kept: Booleans | None = None
    ) -> Regions:
        """Add the next rows and return the regions that no later row can touch.

        Args:
            classes: Class values, 255 where there is none, of shape (row, col).
            measures: Values to sum over each region, of shape (row, col) each.
            kept: True at the corners of pixels through which outlines pass, straight from one to
                the next, of shape (row, col + 1); the upper corners of these rows. Without it,
                outlines are the edges of the pixels.
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
        found = _corners(block, regions, kept)
        self._corners = self._corners.joined(replace(found, row=found.row + self._next_row))
        self._next_row += len(classes)
        self._last_classes, self._last_regions = block[-1], regions[-1]
        return self._closed(values)

    def finish(self) -> Regions:
        """Return the regions that touch the last row; rows added later begin new ones."""
        row = np.full((1, len(self._last_classes) - 2), NODATA, np.uint8)
        regions = self.add(row, *np.zeros((len(self._sums), *row.shape)))
        self._next_row -= 1
        return regions

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
        self._corners = replace(old, region=moved[old.region])

    def _closed(self, values: NDArray[np.uint8]) -> Regions:
        is_open = np.zeros(len(values), bool)
        is_open[self._last_regions] = True
        done = np.flatnonzero(~is_open & (values != NODATA))
        stays = is_open[self._corners.region]
        polygons = _polygons(self._corners[~stays], self._place)
        # Only the regions of the last row go on, so numbers stay as few as its columns.
        kept = np.flatnonzero(is_open)
        number = np.cumsum(is_open) - 1
        finished = Regions(values[done], self._pixels[done], self._sums[:, done], polygons)
        left = self._corners[stays]
        self._corners = replace(left, region=number[left.region])
        self._last_regions = number[self._last_regions]
        self._pixels, self._sums = self._pixels[kept], self._sums[:, kept]
        return finished


def coverage(classes: NDArray[np.uint8]) -> NDArray[np.object_]:
    """Return polygons of all regions of a small raster; what has no data makes regions, too.

    In pixel coordinates. Neighbours have every corner of the edges between them in common.
    """
    block = np.full((classes.shape[0] + 2, classes.shape[1] + 2), -1, np.int16)
    block[1:-1, 1:-1] = classes
    regions, _ = _label(block, np.zeros(block.shape[1], np.int64))
    return _polygons(_corners(block, regions, _places(block)[0], outside=-1), np.asarray)


def _label(block: NDArray[Any], above: Integers) -> tuple[Integers, NDArray[Any]]:
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


def _corners(
    block: NDArray[Any], regions: Integers, kept: Booleans | None, *, outside: int = NODATA
) -> _Corners:
    """Find the corners on the upper edges of all rows of a block but its first, from row 0 on."""
    bends, crossed = _places(block)
    passed = np.zeros_like(bends) if kept is None else kept
    row, col = np.nonzero(bends | (crossed & passed))
    passed = passed[row, col]
    near = [(row, col), (row + 1, col), (row, col + 1), (row + 1, col + 1)]
    around = np.stack([regions[at] for at in near], axis=1)  # (place, 4)
    data = np.stack([block[at] for at in near], axis=1) != outside
    beside = around == around[:, _BESIDE]
    upright = around == around[:, _ABOVE_OR_BELOW]
    # A pixel's region turns here where it goes on both beside and above or below, or neither. It
    # is passed straight by where it goes on one way only: there, each of its two pixels makes a
    # corner, and no edge lies between them.
    turns = data & (beside == upright)
    straight = data & (beside != upright) & (around != around[:, ::-1]) & passed[:, None]
    place, pixel = np.nonzero(turns | straight)
    is_left, is_lower = pixel < 2, pixel % 2 == 1
    is_straight = straight[place, pixel]
    is_upright = is_straight & upright[place, pixel]
    is_first = np.where(is_upright, ~is_lower, is_left)
    return _Corners(
        around[place, pixel],
        row[place],
        col[place],
        np.where(is_upright, is_left, is_lower),
        np.where(is_straight, is_first, passed[place] | (kept is None)),
    )


def _places(block: NDArray[Any]) -> tuple[Booleans, Booleans]:
    """Tell where edges between classes bend or meet, and where any passes.

    Both are about the corners between pixels, from the upper ones of the second row on.
    """
    across = block[:, 1:] != block[:, :-1]
    down = block[1:] != block[:-1]
    vertical = across[:-1] | across[1:]
    horizontal = down[:, :-1] | down[:, 1:]
    return vertical & horizontal, vertical | horizontal


def _polygons(corners: _Corners, place: Place) -> NDArray[np.object_]:
    """Build the polygon of each region, by region number, from all of its corners."""
    corners = corners[np.argsort(corners.region, kind="stable")]
    origin, right, down = place(np.array([[0.0, 0], [1, 0], [0, 1]]))
    is_mirrored = np.linalg.det([right - origin, down - origin]) < 0
    points, is_first = _rings(corners, backwards=bool(is_mirrored))
    _, polygon = np.unique(corners.region[points[::2][is_first]], return_inverse=True)
    kept = corners.kept[points]
    ring = np.repeat(np.cumsum(is_first) - 1, 2)[kept]
    points = points[kept]
    pixels = np.stack([corners.col[points], corners.row[points]], axis=1).astype(np.float64)
    rings = shapely.linearrings(place(pixels), indices=ring)
    return np.asarray(shapely.polygons(rings, indices=polygon))


def _rings(corners: _Corners, *, backwards: bool) -> tuple[Integers, Booleans]:
    """Put corners, sorted by region, in the order of the rings of their polygons.

    The corners of a region, row by row, are by turns the left and right end of its horizontal
    edges; column by column, the upper and lower end of its vertical edges. Edges run with the
    region on their right, or backwards on their left.

    Returns:
        The corners, by number, and by pair of them whether it begins a ring.
    """
    region, row, col, below = corners.region, corners.row, corners.col, corners.below
    # Where a region touches itself, two of its corners meet; each belongs to another ring.
    meets = (region[1:] == region[:-1]) & (row[1:] == row[:-1]) & (col[1:] == col[:-1])
    touches = np.append(meets, False) | np.insert(meets, 0, False)
    vertical = np.lexsort((2 * row + (below ^ touches), col, region)).reshape(-1, 2)
    opposite = np.empty(len(row), np.int64)
    opposite[vertical] = vertical[:, ::-1]
    left = np.arange(0, len(row), 2)
    starts, ends = left + ~below[left], left + below[left]
    ring, step = _cycles(opposite[ends] // 2)
    if backwards:
        starts, ends, step = ends, starts, -step
    # The ring of a region's first, uppermost edge is its outer one, and comes first here too.
    order = np.lexsort((step, ring))
    is_first = np.diff(ring[order], prepend=-1) != 0
    return np.stack([starts, ends], axis=1)[order].ravel(), is_first


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
