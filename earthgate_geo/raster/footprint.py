"""Where a raster has data, in longitude and latitude."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.warp import transform_geom
from shapely import orient_polygons
from shapely.geometry import box, mapping, shape
from shapely.geometry.base import BaseGeometry

from earthgate_geo.raster.read import Scene

_SIDE_POINTS = 20
"""Points on each side of an outline: a straight edge in one CRS is bent in another."""

_DIGITS, _CLOSE_DEG = 9, 1e-7
"""Of degrees, and about a centimetre: points nearer to a straight line than that are left out."""


@dataclass(frozen=True)
class Footprint:
    """An area in WGS84, as GeoJSON has it."""

    geometry: Mapping[str, Any]
    """A polygon, or one for each side of the date line."""

    bbox: tuple[float, float, float, float]
    """West, south, east, north in degrees; west is more than east across the date line."""


def footprint(scene: Scene) -> Footprint | None:
    """Return the outline of the least window that holds all valid pixels.

    It is found in the scene's decimated read: exact for scenes of up to ``COARSE_PX`` pixels a
    side, otherwise to one pixel of that read.

    Returns:
        The outline; None where the CRS has no way to longitude and latitude.

    Raises:
        EmptySceneError: There is no valid pixel.
    """
    valid = scene.preview(()).valid
    if not valid.any():
        scene.radiometry(())  # says that there is none
    rows, cols = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
    size = scene.grid.size
    down, across = size.rows / valid.shape[0], size.cols / valid.shape[1]
    left, right = math.floor(cols[0] * across), math.ceil((cols[-1] + 1) * across)
    top, bottom = math.floor(rows[0] * down), math.ceil((rows[-1] + 1) * down)
    pixels = box(left, top, right, bottom).segmentize(
        max(right - left, bottom - top) / _SIDE_POINTS
    )
    ring = [scene.grid.transform @ point for point in pixels.exterior.coords]
    placed = {"type": "Polygon", "coordinates": [ring]}
    try:
        outline = shape(transform_geom(scene.grid.crs, "EPSG:4326", placed, precision=_DIGITS))
    except (RasterioError, CPLE_BaseError):
        return None
    outline = orient_polygons(outline.simplify(_CLOSE_DEG))
    return (
        Footprint(mapping(outline), _bbox(outline)) if np.isfinite(outline.bounds).all() else None
    )


def _bbox(outline: BaseGeometry) -> tuple[float, float, float, float]:
    west, south, east, north = outline.bounds
    if outline.geom_type == "MultiPolygon":  # GDAL cuts at the date line
        parts = [part.bounds for part in outline.geoms]
        west = min(bounds[0] for bounds in parts if bounds[0] > 0)
        east = max(bounds[2] for bounds in parts if bounds[2] < 0)
    return west, south, east, north
