"""Patches that train and patches that are held out, which share no ground."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError

from earthgate_geo.data.patches import Patch
from earthgate_geo.raster.grid import Grid

_EQUAL_AREA = "EPSG:6933"
_HALF_WORLD_M = 17_000_000
_SLIVER = 0.01
"""Share of the smaller of two patches up to which they share no ground: rounding."""


@dataclass(frozen=True)
class Split:
    """What becomes of patches."""

    trained: tuple[Patch, ...]
    """None of their ground is held out."""

    held_out: tuple[Patch, ...]
    """Their ground never trains; empty where all patches share their ground."""

    left_out: int = 0
    """Patches that lie on both sides: they neither train nor count."""


def split_by_ground(
    patches: Sequence[Patch], grids: Sequence[Grid | None], *, share: float, seed: int
) -> Split:
    """Hold out random patches and whatever else lies on their ground.

    Scenes that overlap share their ground, whatever their date, CRS and pixels; of images without
    a place each file is ground of its own. A larger patch is taken in place of one that it holds,
    as among tiles of several zooms, unless too many lie on it. At least one patch trains.

    Args:
        patches: Patches of any scenes.
        grids: The grid of each patch's image, None where it lies nowhere.
        share: Share of the patches to hold out, in 0..1; at least one patch.
        seed: Of the choice.
    """
    grounds = _Grounds(patches, grids)
    covered, touched = np.zeros(len(patches)), np.zeros(len(patches))
    wanted = max(1, round(share * len(patches)))
    for index in np.random.default_rng(seed).permutation(len(patches)).tolist():
        if _count(covered) >= wanted:
            break
        if touched[index] > _SLIVER:
            continue
        for each in grounds.around(index):
            own, smaller = grounds.shares(each)
            fits = each == index or (touched[each] <= _SLIVER and _count(covered + own) <= wanted)
            if fits and (touched + smaller <= _SLIVER).any():
                covered, touched = covered + own, touched + smaller
                break
    held_out, trained = covered >= 1 - _SLIVER, touched <= _SLIVER
    return Split(
        trained=tuple(patches[i] for i in np.flatnonzero(trained).tolist()),
        held_out=tuple(patches[i] for i in np.flatnonzero(held_out).tolist()),
        left_out=int((~held_out & ~trained).sum()),
    )


def off_ground(
    patches: Sequence[Patch],
    grids: Sequence[Grid | None],
    *,
    held_out: Sequence[Patch],
    held_out_grids: Sequence[Grid | None],
) -> tuple[Patch, ...]:
    """Return the patches that share no ground with those held out.

    Args:
        patches: Patches of any scenes.
        grids: The grid of each patch's image, None where it lies nowhere.
        held_out: Patches whose ground never trains.
        held_out_grids: The grids of these.
    """
    grounds = _Grounds([*held_out, *patches], [*held_out_grids, *grids])
    touched = np.zeros(len(held_out) + len(patches))
    for index in range(len(held_out)):
        touched += grounds.shares(index)[1]
    free = touched[len(held_out) :] <= _SLIVER
    return tuple(patches[i] for i in np.flatnonzero(free).tolist())


def _count(covered: NDArray[np.float64]) -> int:
    return int(np.count_nonzero(covered >= 1 - _SLIVER))


class _Grounds:
    """Where patches lie."""

    def __init__(self, patches: Sequence[Patch], grids: Sequence[Grid | None]) -> None:
        places = [_outline(patch, grid) for patch, grid in zip(patches, grids, strict=True)]
        self._outlines = np.array(places, object)
        self._tree = shapely.STRtree(self._outlines)
        self._areas: NDArray[np.float64] = shapely.area(self._outlines)
        self._files = np.array([str(patch.pair.image.resolve()) for patch in patches])

    def around(self, index: int) -> list[int]:
        """Return the patches that hold a patch, the largest first and itself last."""
        if self._outlines[index] is None:
            return [index]
        near, common = self._common(index)
        holding = near[(common >= (1 - _SLIVER) * self._areas[index]) & (near != index)]
        order = np.argsort(-self._areas[holding], kind="stable")
        return [*holding[order].tolist(), index]

    def shares(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what every patch shares with one: of itself, and of the smaller of both."""
        if self._outlines[index] is None:
            same = (self._files == self._files[index]).astype(np.float64)
            return same, same
        own, smaller = np.zeros((2, len(self._outlines)))
        near, common = self._common(index)
        own[near] = common / self._areas[near]
        smaller[near] = common / np.minimum(self._areas[near], self._areas[index])
        return own, smaller

    def _common(self, index: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the neighbours of a patch and the areas that they share with it."""
        near = self._tree.query(self._outlines[index])
        both = shapely.intersection(self._outlines[near], self._outlines[index])
        return near, shapely.area(both)


def _outline(patch: Patch, grid: Grid | None) -> shapely.Polygon | None:
    """Return the ground of a patch in metres of one projection; None if nobody knows it.

    Corners are enough: a patch is small, so its edges are as straight there.
    """
    window = patch.window
    if grid is None or window is None:
        return None
    ring = [
        grid.transform @ corner
        for corner in (
            (window.col, window.row),
            (window.col_stop, window.row),
            (window.col_stop, window.row_stop),
            (window.col, window.row_stop),
        )
    ]
    try:
        way = Transformer.from_crs(grid.crs.to_wkt(), _EQUAL_AREA, always_xy=True)
    except ProjError:  # a local CRS: nobody knows where it lies
        return None
    corners = np.array([way.transform(*corner) for corner in ring])
    if not np.isfinite(corners).all() or np.ptp(corners[:, 0]) > _HALF_WORLD_M:
        return None  # off the Earth, or over the antimeridian
    return shapely.Polygon(corners)
