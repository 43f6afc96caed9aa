"""Where a file says its pixels lie, or one sentence on what to do when it does not say."""

from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader

from earthgate_geo.errors import DataError, InputError, MissingCrsError
from earthgate_geo.raster.grid import Grid, Size

_MOST_LON, _MOST_LAT = 540, 90
"""Degrees; a scene across the date line may count on."""

_LEAST_GSD_M = 1e-3


def read_grid(source: DatasetReader, path: str, *, assume_crs: str | None) -> Grid:
    """Return the grid of an open file.

    Args:
        source: The open file.
        path: Its path as the user gave it, for the sentence of an error.
        assume_crs: CRS to use where the file has none; one that the file has is kept.

    Raises:
        InputError: ``assume_crs`` is not a CRS.
        MissingCrsError: Neither the file nor ``assume_crs`` says the CRS.
        DataError: The file has no affine transform, or one that makes no sense in its CRS; the
            sentence says how to make one.
    """
    assumed = _parse_crs(assume_crs) if assume_crs else None
    transform = source.transform
    if transform == Affine.identity():
        raise _missing_transform(source, path, assumed)
    if not np.isfinite(transform[:6]).all() or transform.is_degenerate:
        raise DataError(
            found=f"{path} has the degenerate transform {tuple(transform[:6])}",
            expected="one that spans an area",
            fix=f"Write a right one with {_translate_line(path, source.crs or assumed)}",
        )
    crs = source.crs or assumed
    if not crs:
        raise MissingCrsError(
            found=f"{path} has no coordinate reference system",
            expected="one that says where its coordinates lie",
            fix="Pass --assume-crs, e.g. --assume-crs EPSG:32633, if you know it",
        )
    grid = Grid(Size(source.height, source.width), transform, crs)
    fix = "Pass another --assume-crs"
    if source.crs:
        fix = "Its CRS is wrong: write the right one, e.g. with gdal_edit.py -a_srs EPSG:32633"
    _check_sense(grid, path, fix)
    return grid


def _check_sense(grid: Grid, path: str, fix: str) -> None:
    """Refuse metres that are called degrees, and degrees that are called metres."""
    x, y = grid.transform @ (grid.size.cols / 2, grid.size.rows / 2)
    if grid.crs.is_geographic and not (abs(x) <= _MOST_LON and abs(y) <= _MOST_LAT):
        raise DataError(
            found=f"{path} lies at {x:.0f}, {y:.0f} in a CRS of degrees",
            expected="longitude and latitude",
            fix=fix,
        )
    side_m = grid.gsd().mean_m
    if side_m < _LEAST_GSD_M:
        raise DataError(
            found=f"{path} has pixels of {side_m:.1g} m", expected="a millimetre or more", fix=fix
        )


def _parse_crs(text: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except (CRSError, ValueError) as error:
        raise InputError(
            found=f"--assume-crs {text}",
            expected="a coordinate reference system that PROJ knows, e.g. EPSG:32633",
        ) from error


def _missing_transform(source: DatasetReader, path: str, assumed: CRS | None) -> DataError:
    points, points_crs = source.gcps
    if points:
        crs = points_crs or assumed
        lon, lat = np.mean([(p.x, p.y) for p in points], axis=0)
        from_crs = "" if points_crs else f"-s_srs {_name(crs)} "
        to_crs = _name(_utm(lon, lat) if crs and crs.is_geographic else crs)
        return DataError(
            found=f"{path} is placed by {len(points)} ground control points only",
            expected="an affine transform",
            fix=f"Run {_warp_line(path, from_crs + '-t_srs ' + to_crs)} first, then use its result",
        )
    if source.rpcs is not None:
        to_crs = _name(_utm(source.rpcs.long_off, source.rpcs.lat_off))
        return DataError(
            found=f"{path} is placed by rational polynomials (RPC) only",
            expected="an affine transform",
            fix=f"Run {_warp_line(path, f'-rpc -t_srs {to_crs}')} first, then use its result",
        )
    crs = source.crs or assumed
    found = "has neither a transform nor a CRS" if crs is None else "has a CRS but no transform"
    if assumed and not source.crs:
        found = "has no transform, which --assume-crs cannot stand in for"
    return DataError(
        found=f"{path} {found}",
        expected="a georeferenced raster",
        fix=f"Write its corners with {_translate_line(path, crs)}",
    )


def _utm(lon: float, lat: float) -> CRS:
    zone = int((lon + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


def _name(crs: CRS | None) -> str:
    text = crs.to_string() if crs else "EPSG:CODE"
    return text if text.startswith("EPSG:") else "EPSG:CODE"


def _warp_line(path: str, options: str) -> str:
    return f"gdalwarp -r bilinear {options} {_quoted(path)} {_quoted(_beside(path, '_warped'))}"


def _translate_line(path: str, crs: CRS | None) -> str:
    corners = "-a_ullr LEFT TOP RIGHT BOTTOM"
    target = _quoted(_beside(path, "_placed"))
    return f"gdal_translate -a_srs {_name(crs)} {corners} {_quoted(path)} {target}"


def _beside(path: str, ending: str) -> str:
    return f"{Path(path).stem}{ending}.tif"


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path
