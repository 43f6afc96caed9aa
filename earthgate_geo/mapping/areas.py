"""The ground area of pixels, whatever the CRS."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion

from earthgate_geo.raster.grid import Grid, Window

Array = NDArray[np.float64]

STEP_PX = 64
"""Distance of the pixels whose area is computed; between them it is linear."""


class PixelAreas:
    """The area on the ellipsoid of every pixel of a grid, in square metres; NaN off the Earth.

    Measured in an equal-area projection around the centre of the grid. A grid whose CRS has no
    way to longitude and latitude has pixels of one area: that of ``Grid.gsd``.

    Args:
        grid: The pixels.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._nodes = np.arange(0, grid.size.cols + STEP_PX, STEP_PX, dtype=np.float64)
        self._project = _equal_area(grid)

    def within(self, window: Window) -> Array:
        """Return the areas of the pixels of a window, of shape (row, col)."""
        steps = (np.arange(window.row, window.row_stop) + 0.5) / STEP_PX
        top = int(steps[0])
        nodes = range(top, int(steps[-1]) + 2)
        across = np.arange(window.col, window.col_stop) + 0.5
        known = np.stack([np.interp(across, self._nodes, self._at(n * STEP_PX)) for n in nodes])
        above = steps.astype(np.int64) - top
        share = (steps % 1)[:, None]
        return known[above] * (1 - share) + known[above + 1] * share

    def _at(self, row: float) -> Array:
        """Return the areas of pixels around the nodes of one row."""
        if self._project is None:
            gsd = self._grid.gsd()
            return np.full(len(self._nodes), gsd.row_m * gsd.col_m)
        rows = np.full(len(self._nodes), row)
        with np.errstate(invalid="ignore"):  # off the Earth, points are at infinity
            east = self._project(self._nodes + 0.5, rows) - self._project(self._nodes - 0.5, rows)
            south = self._project(self._nodes, rows + 0.5) - self._project(self._nodes, rows - 0.5)
            areas: Array = np.abs(east[0] * south[1] - east[1] * south[0])
        return areas


def _equal_area(grid: Grid) -> Callable[[Array, Array], Array] | None:
    """Return what takes columns and rows to metres (2, point) of an equal-area projection."""
    crs = CRS.from_wkt(grid.crs.to_wkt())
    if crs.geodetic_crs is None:
        return None
    geodetic = crs.geodetic_crs.to_2d()
    centre = grid.transform @ (grid.size.cols / 2, grid.size.rows / 2)
    lon, lat = Transformer.from_crs(crs, geodetic, always_xy=True).transform(*centre)
    if not (np.isfinite(lon) and np.isfinite(lat)):
        return None
    centred = LambertAzimuthalEqualAreaConversion(
        latitude_natural_origin=lat, longitude_natural_origin=lon
    )
    equal_area = ProjectedCRS(centred, geodetic_crs=geodetic)
    to_metres = Transformer.from_crs(crs, equal_area, always_xy=True)

    def project(cols: Array, rows: Array) -> Array:
        x, y = to_crs(np.stack([cols, rows], axis=1), grid).T
        return np.stack(to_metres.transform(x, y))

    return project


def to_crs(points: Array, grid: Grid) -> Array:
    """Take points in pixels (x = column, y = row) of a grid, of shape (point, 2), to its CRS."""
    t = grid.transform
    cols, rows = points.T
    return np.stack([t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f], axis=1)
