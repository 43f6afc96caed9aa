"""Sizes, windows, grids and tilings: pure arithmetic, no files."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyproj
from affine import Affine
from pyproj import Geod, Transformer
from rasterio.crs import CRS

from earthgate_geo.errors import InputError


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width in pixels."""

    rows: int
    """Height, at least 1."""

    cols: int
    """Width, at least 1."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise InputError(found=f"a size of {self.rows} x {self.cols} px", expected="1 or more")


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole pixels; may reach past the raster it refers to."""

    row: int
    """First row."""

    col: int
    """First column."""

    size: Size
    """Height and width."""

    @property
    def row_stop(self) -> int:
        """One past the last row."""
        return self.row + self.size.rows

    @property
    def col_stop(self) -> int:
        """One past the last column."""
        return self.col + self.size.cols

    def clipped(self, size: Size) -> "Window":
        """Return the part inside a raster of ``size``.

        Raises:
            InputError: The window lies wholly outside.
        """
        row, col = max(self.row, 0), max(self.col, 0)
        rows = min(self.row_stop, size.rows) - row
        cols = min(self.col_stop, size.cols) - col
        if rows < 1 or cols < 1:
            raise InputError(
                found=f"a window at row {self.row}, column {self.col}",
                expected=f"one that meets the raster of {size.rows} x {size.cols} px",
            )
        return Window(row, col, Size(rows, cols))


@dataclass(frozen=True, slots=True)
class Gsd:
    """Ground size of one pixel in metres, per axis."""

    row_m: float
    """Ground distance from one row to the next."""

    col_m: float
    """Ground distance from one column to the next."""

    @property
    def mean_m(self) -> float:
        """Geometric mean of both axes."""
        return math.sqrt(self.row_m * self.col_m)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where pixels lie on the Earth: size, affine transform, CRS."""

    size: Size
    """Height and width of the raster."""

    transform: Affine
    """From (column, row) of a pixel corner to CRS coordinates; may be rotated or south-up."""

    crs: CRS
    """Coordinate reference system of ``transform``."""

    def gsd(self) -> Gsd:
        """Return the ground size of a pixel at the centre of the scene, by geodesic.

        Falls back to CRS units times the CRS's metres per unit where the CRS has no way to
        longitude and latitude (engineering CRS) or the centre lies off the Earth's disk.
        """
        row, col = self.size.rows / 2, self.size.cols / 2
        corners = [(col - 0.5, row), (col + 0.5, row), (col, row - 0.5), (col, row + 0.5)]
        points = [self.transform @ corner for corner in corners]
        lonlat = _to_lonlat(self.crs, points)
        if lonlat is None:
            scale = _metres_per_unit(self.crs)
            return Gsd(
                row_m=math.hypot(self.transform.b, self.transform.e) * scale,
                col_m=math.hypot(self.transform.a, self.transform.d) * scale,
            )
        geod = Geod(ellps="WGS84")
        across = geod.inv(*lonlat[0], *lonlat[1])[2]
        down = geod.inv(*lonlat[2], *lonlat[3])[2]
        return Gsd(row_m=down, col_m=across)


def _to_lonlat(crs: CRS, points: list[tuple[float, float]]) -> list[tuple[float, float]] | None:
    try:
        to_wgs84 = Transformer.from_crs(crs.to_wkt(), "EPSG:4326", always_xy=True)
        lonlat = [to_wgs84.transform(*point) for point in points]
    except (ValueError, RuntimeError):  # pyproj's errors derive from RuntimeError
        return None
    return lonlat if all(math.isfinite(v) for pair in lonlat for v in pair) else None


def _metres_per_unit(crs: CRS) -> float:
    # rasterio knows the unit of projected CRSs only, PROJ also that of engineering ones.
    axes = pyproj.CRS.from_wkt(crs.to_wkt()).axis_info
    return float(axes[0].unit_conversion_factor) if axes else 1.0


@dataclass(frozen=True, slots=True)
class Tiling:
    """Overlapping tiles that cover a raster: top row first, the last row and column inward.

    A raster smaller than a tile in one axis gets one tile there, which reaches past the edge.
    """

    raster: Size
    """Size of the raster to cover."""

    tile: Size
    """Size of every tile, in pixels of the raster."""

    stride: Size
    """Distance between tiles, at most the tile's size."""

    def __post_init__(self) -> None:
        if self.stride.rows > self.tile.rows or self.stride.cols > self.tile.cols:
            raise InputError(
                found=f"a stride of {self.stride.rows} x {self.stride.cols} px",
                expected=f"at most the tile's {self.tile.rows} x {self.tile.cols} px",
            )

    @property
    def row_starts(self) -> list[int]:
        """First rows of the tiles, ascending."""
        return _starts(self.raster.rows, self.tile.rows, self.stride.rows)

    @property
    def col_starts(self) -> list[int]:
        """First columns of the tiles, ascending."""
        return _starts(self.raster.cols, self.tile.cols, self.stride.cols)

    def __len__(self) -> int:
        return len(self.row_starts) * len(self.col_starts)

    def __iter__(self) -> Iterator[Window]:
        cols = self.col_starts
        for row in self.row_starts:
            for col in cols:
                yield Window(row, col, self.tile)


def blocks(raster: Size, side_px: int) -> Iterator[Window]:
    """Yield squares side by side, top row first, the last row and column cut: each pixel once."""
    for row in range(0, raster.rows, side_px):
        for col in range(0, raster.cols, side_px):
            yield Window(row, col, Size(side_px, side_px)).clipped(raster)


def _starts(length: int, tile: int, stride: int) -> list[int]:
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, stride))
    return [*starts, length - tile]
