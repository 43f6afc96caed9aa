"""Heights beside a scene: a surface model in any CRS and resolution, on the scene's grid."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.fill import fillnodata
from rasterio.warp import reproject

from earthgate_geo.data.overlap import window_there
from earthgate_geo.data.warped import check_reachable
from earthgate_geo.errors import DataError, HeightsElsewhereError
from earthgate_geo.raster.bands import ALPHA, NO_HEIGHT
from earthgate_geo.raster.grid import Grid, Size, Window
from earthgate_geo.raster.read import (
    COARSE_PX,
    Pixels,
    Radiometry,
    Scene,
    SceneOptions,
    decimated,
    open_scene,
)

UNSCALED = Radiometry((0.0,), (1.0,))
"""Of the heights of a scene that has none, for a network that takes heights."""

_FILLERS = (-9999.0, -99999.0, -32767.0, -32768.0)
"""What stands for nodata in files that do not say so."""

_MOST = 1e7
"""Larger numbers are no heights, not even in millimetres."""

_MOST_PX = 1536
"""Longest side of the part of a surface model that is read at once; it is decimated to that."""

HEIGHT_BYTES = 32 * _MOST_PX**2
"""Most memory in which a window is read, beside the window."""

_MARGIN_PX = 2
_TOLERANCE = 0.01
"""In pixels of the surface model."""

_SHRINKS = 1.7
"""Pixels of the surface model across one of the scene, from which on they are averaged. No usual
ratio, such as 1.5 or 2, that rounding would put on one side or the other."""

_FLAT = 1e-5
"""Span of heights, as a share of the largest, that is rounding."""

_NEAR_PX = 16
"""How far holes are filled from what is around them."""


class HeightLayer:
    """Heights on the grid of a scene, from a surface model (DSM), less a terrain model (DTM).

    Either may have any CRS, resolution, orientation and type, and a scale and offset; the first
    band counts, bilinear, averaged where it is finer, or pixel by pixel where its pixels are the
    scene's. No heights are: nodata and masked pixels, numbers that are not finite or beyond 1e7,
    and -9999, -99999, -32767 and -32768 exactly, even where the file does not declare them. Both
    have to be in one unit, whichever. Pickled as paths. Not to be read from two threads at once.
    Memory: the window asked for, and at most 1536 x 1536 pixels of each file.

    Args:
        dsm: Absolute heights, or heights above ground.
        grid: The grid of the scene.
        dtm: Heights of the ground, to be subtracted.

    Raises:
        DataError: There is no way from a file's CRS to the scene's, or the files' vertical CRS
            say different units.
        HeightsElsewhereError: A file does not meet the scene.
    """

    def __init__(self, dsm: Scene, grid: Grid, *, dtm: Scene | None = None) -> None:
        self.grid = grid
        self._rasters: Sequence[Scene] = (dsm,) if dtm is None else (dsm, dtm)
        self._coarse: NDArray[np.float32] | None = None
        for raster in self._rasters:
            check_reachable(raster.path, raster.grid.crs.to_wkt(), grid)
            if window_there(grid, Window(0, 0, grid.size), raster.grid) is None:
                raise HeightsElsewhereError(
                    found=f"{raster.path} lies outside the scene",
                    expected="heights of the same ground",
                    fix="Check the CRS of both with gdalinfo, or leave the heights out",
                )
        _check_units(self._rasters)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_coarse": None}

    @property
    def paths(self) -> list[str]:
        """The files."""
        return [raster.path for raster in self._rasters]

    def read(self, window: Window) -> Pixels:
        """Read a window, which may reach past the scene: zero and invalid there.

        Returns:
            Heights, float32 (1, row, col), and where there are any; zero elsewhere.

        Raises:
            InputError: The window lies wholly outside.
            DataError: A file is damaged there.
        """
        inside = window.clipped(self.grid.size)
        transform = self.grid.transform @ Affine.translation(inside.col, inside.row)
        heights = self._on(Grid(inside.size, transform, self.grid.crs))
        values = np.full((1, window.size.rows, window.size.cols), np.nan, np.float32)
        rows = slice(inside.row - window.row, inside.row_stop - window.row)
        cols = slice(inside.col - window.col, inside.col_stop - window.col)
        values[0, rows, cols] = heights
        valid = np.isfinite(values[0])
        return Pixels(np.where(valid, values, np.float32(0)), valid)

    def radiometry(self) -> Radiometry:
        """Return the 1st and 99th percentile of the heights in the scene, from a decimated read.

        So the unit does not matter. Heights that differ by rounding alone are one: they become
        0.5.

        Source:
            Ours: MFNet scales every tile by its own minimum and maximum (section III), so that a
            roof's value depends on the tile that it is in.

        Raises:
            HeightsElsewhereError: There is no height in the scene.
        """
        found = height_radiometry(self._preview())
        if found is None:
            raise HeightsElsewhereError(
                found=f"{' less '.join(self.paths)} holds no height in the scene",
                expected="numbers that are neither nodata nor NaN",
                fix="Check its nodata value and extent with gdalinfo, or leave the heights out",
            )
        return found

    def covered(self, scene: Scene) -> float:
        """Return the share of the scene's valid pixels, 0..1, that have a height; estimated."""
        valid = scene.preview(()).valid
        return float(np.isfinite(self._preview())[valid].mean()) if valid.any() else 0.0

    def digest(self) -> str:
        """Return a hex digest of what ``Scene.digest`` says of the files."""
        told = "".join(raster.digest() for raster in self._rasters)
        return hashlib.sha256(told.encode()).hexdigest()

    def reopened(self) -> Self:
        """Open the same files once more, e.g. for another thread."""
        return type(self)(
            self._rasters[0].reopened(),
            self.grid,
            dtm=self._rasters[1].reopened() if len(self._rasters) > 1 else None,
        )

    def close(self) -> None:
        """Let go of the files."""
        for raster in self._rasters:
            raster.close()

    def _preview(self) -> NDArray[np.float32]:
        """Return the heights of the whole scene (row, col), as coarse as ``Scene.preview``."""
        if self._coarse is None:
            size = decimated(self.grid.size, COARSE_PX)
            scale = Affine.scale(self.grid.size.cols / size.cols, self.grid.size.rows / size.rows)
            self._coarse = self._on(Grid(size, self.grid.transform @ scale, self.grid.crs))
        return self._coarse

    def _on(self, grid: Grid) -> NDArray[np.float32]:
        """Return the heights on a grid (row, col), NaN where there are none."""
        surface, *ground = (_warped(raster, grid) for raster in self._rasters)
        for each in ground:
            surface -= each
        return surface


def open_heights(
    dsm: str, grid: Grid, *, dtm: str | None = None, assume_crs: str | None = None
) -> HeightLayer:
    """Open the heights of a scene.

    Args:
        dsm: File of the surface model.
        grid: The grid of the scene.
        dtm: File of the terrain model to be subtracted.
        assume_crs: CRS of files that name none.

    Raises:
        InputError: There is no such file.
        DataError: A file is no raster of one band, or cannot be placed; or as ``HeightLayer``.
    """
    options = SceneOptions(assume_crs=assume_crs)
    with ExitStack() as stack:
        rasters = [stack.enter_context(open_scene(path, options)) for path in (dsm, dtm) if path]
        for raster in rasters:
            if sum(meaning != ALPHA for meaning in raster.meanings) != 1:
                raise DataError(
                    found=f"{raster.path} has {raster.count} bands",
                    expected="one band, of heights",
                    fix="Take the one that holds heights with gdal_translate -b 1",
                )
        layer = HeightLayer(rasters[0], grid, dtm=rasters[1] if dtm else None)
        stack.pop_all()
    return layer


def _check_units(rasters: Sequence[Scene]) -> None:
    said = [(raster.path, *unit) for raster in rasters if (unit := _unit(raster))]
    lengths = [length_m for *_, length_m in said]
    if said and max(lengths) > 1.001 * min(lengths):  # the two feet are one
        raise DataError(
            found=" and ".join(f"{path} in {name}" for path, name, _ in said),
            expected="heights and the ground's in one unit",
            fix="Convert one of them with gdal_calc.py, and its vertical CRS with gdal_edit.py",
        )


def _unit(raster: Scene) -> tuple[str, float] | None:
    """Return name and metres of the unit of heights of a compound or three-dimensional CRS."""
    axes = CRS.from_wkt(raster.grid.crs.to_wkt()).axis_info
    up = [(axis.unit_name, axis.unit_conversion_factor) for axis in axes if axis.direction == "up"]
    return up[0] if up else None


def height_radiometry(heights: NDArray[np.float32]) -> Radiometry | None:
    """Return the 1st and 99th percentile of heights, NaN where there are none; None without any."""
    known = heights[np.isfinite(heights)]
    if not known.size:
        return None
    low, high = (float(value) for value in np.percentile(known, (1, 99)))
    if high - low <= _FLAT * max(abs(low), abs(high)):
        high = low
    return Radiometry((low,), (high,))


def height_channel(heights: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Make of scaled heights what a network sees: near holes filled, the others ``NO_HEIGHT``.

    A hole is filled up to 16 pixels deep from what is around it, for the network alone.

    Args:
        heights: (row, col) in 0..1.
        known: (row, col), True where there is a height.
    """
    if known.all():
        return heights
    channel = np.where(known, heights, np.float32(NO_HEIGHT))
    if known.any():
        channel = fillnodata(channel, mask=known.astype(np.uint8), max_search_distance=_NEAR_PX)
    return channel


def _warped(raster: Scene, grid: Grid) -> NDArray[np.float32]:
    """Return the heights of a file on a grid (row, col), NaN where there are none.

    Not by a warped dataset: fillers that the file does not declare would mix with what is around.
    """
    found = np.full((grid.size.rows, grid.size.cols), np.nan, np.float32)
    there = window_there(grid, Window(0, 0, grid.size), raster.grid)
    if there is None:
        return found
    there = _grown(there, raster.grid.size)
    source = known_heights(raster, raster.preview((1,), window=there, longest_px=_MOST_PX))
    shrink = Affine.scale(there.size.cols / source.shape[1], there.size.rows / source.shape[0])
    transform = raster.grid.transform @ Affine.translation(there.col, there.row) @ shrink
    seen = Grid(Size(*source.shape), transform, raster.grid.crs)
    reproject(
        source,
        found,
        src_transform=transform,
        src_crs=raster.grid.crs,
        src_nodata=np.nan,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        dst_nodata=np.nan,
        resampling=_resampling(seen, grid),
        tolerance=_TOLERANCE,
    )
    return found


def _grown(window: Window, size: Size) -> Window:
    """Return a window with what bilinear looks at around it, and what its edges bulge."""
    margin = _MARGIN_PX + max(window.size.rows, window.size.cols) // 64
    return Window(
        window.row - margin,
        window.col - margin,
        Size(window.size.rows + 2 * margin, window.size.cols + 2 * margin),
    ).clipped(size)


def known_heights(raster: Scene, pixels: Pixels) -> NDArray[np.float32]:
    """Return heights (row, col) of a file's first band, NaN where the numbers read are none.

    Numbers become heights by the scale and offset that the file declares for the band.
    """
    numbers, (scale, offset) = pixels.values[0], raster.scaling
    known = pixels.valid & ~np.isin(numbers, _FILLERS)
    with np.errstate(all="ignore"):  # of what is no height
        heights = numbers * np.float64(scale) + offset
        known &= np.abs(heights) <= _MOST  # NaN compares as False
    return np.where(known, heights, np.nan).astype(np.float32)


def _resampling(source: Grid, grid: Grid) -> Resampling:
    if _aligned(source, grid):
        return Resampling.nearest
    # Bilinear would give no height wherever there is none in the middle of a pixel.
    shrinks = grid.gsd().mean_m >= _SHRINKS * source.gsd().mean_m
    return Resampling.average if shrinks else Resampling.bilinear


def _aligned(one: Grid, other: Grid) -> bool:
    """Tell whether pixels lie on pixels: rounding would mix neighbours then."""
    if one.crs != other.crs:
        return False
    shift = ~one.transform @ other.transform
    whole = Affine.translation(round(shift.c), round(shift.f))
    return bool(shift.almost_equals(whole, 1e-4))
