"""The same ground in the pixels of two scenes."""

import math
from collections.abc import Sequence
from itertools import product

from pyproj import Transformer
from pyproj.exceptions import ProjError

from earthgate_geo.raster.grid import Grid, Size, Window


def window_there(here: Grid, window: Window, there: Grid) -> Window | None:
    """Return the window of another grid that covers a window's ground; None where they are apart.

    Corners are enough: a window is small, so its edges are as straight there.

    Args:
        here: Grid of the window.
        window: May reach past its grid.
        there: The other grid; any CRS and orientation.
    """
    sides = product((window.col, window.col_stop), (window.row, window.row_stop))
    corners = [here.transform @ corner for corner in sides]
    try:
        way = Transformer.from_crs(here.crs.to_wkt(), there.crs.to_wkt(), always_xy=True)
    except ProjError:  # a local CRS: nobody knows where it lies
        return None
    cols, rows = zip(
        *(~there.transform @ way.transform(*corner) for corner in corners), strict=True
    )
    if not all(map(math.isfinite, cols + rows)):
        return None
    row, row_stop = _span(rows, there.size.rows)
    col, col_stop = _span(cols, there.size.cols)
    if row >= row_stop or col >= col_stop:
        return None
    return Window(row, col, Size(row_stop - row, col_stop - col))


def _span(positions: Sequence[float], length: int) -> tuple[int, int]:
    # A ten-thousandth of a pixel is rounding, not ground.
    first, stop = math.floor(min(positions) + 1e-4), math.ceil(max(positions) - 1e-4)
    return max(0, first), min(length, stop)
