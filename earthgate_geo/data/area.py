"""The part of a scene that is wanted."""

import hashlib
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray

from earthgate_geo.data.label_shapes import LabelShapes, read_polygons
from earthgate_geo.data.labels import shapes_layer
from earthgate_geo.errors import DataError, InputError, OutsideAreaError
from earthgate_geo.raster.classes import NODATA
from earthgate_geo.raster.grid import Grid, Window


class Area:
    """Polygons in pixels of a scene; a pixel is inside whose centre one of them holds.

    Made by ``open_area``. Memory: the polygons, and the windows asked for. Pickles.

    Args:
        polygons: Polygons, (x, y) = (column, row).
    """

    def __init__(self, polygons: NDArray[np.object_]) -> None:
        self._shapes = LabelShapes(polygons, np.zeros(len(polygons), np.uint8), named=(0,))
        self.digest = hashlib.sha256(b"".join(shapely.to_wkb(polygons))).hexdigest()
        """Of the polygons as they lie in the scene, 64 hexadecimal digits."""

    def read(self, window: Window) -> NDArray[np.bool_]:
        """Return (row, col), True inside."""
        inside: NDArray[np.bool_] = self._shapes.read(window) != NODATA
        return inside


def open_area(path: str, grid: Grid) -> Area:
    """Read the area that a vector file draws; any CRS is brought onto the scene's grid.

    Args:
        path: Vector file with polygons.
        grid: Grid of the scene.

    Raises:
        InputError: There is no such file, or no polygon in it.
        OutsideAreaError: None of its polygons lies inside the scene.
        MissingCrsError: The file has no CRS.
        DataError: The file cannot be read as polygons.
    """
    if not path.startswith("/vsi") and not Path(path).exists():
        raise InputError(found=f"{path} does not exist", expected="a vector file with polygons")
    layer = shapes_layer(path)
    if layer is None:
        raise DataError(found=f"{path} is a raster", expected="a vector file with polygons")
    _check_polygons(path, layer)
    polygons = read_polygons(path, layer, grid)
    centres = shapely.box(0.5, 0.5, grid.size.cols - 0.5, grid.size.rows - 0.5)
    polygons = polygons[shapely.intersects(polygons, centres)]
    if not len(polygons):
        raise OutsideAreaError(
            found=f"{path} has no polygon inside the scene",
            expected="the area to map",
            fix="Look at both in QGIS; one of the files may name a wrong CRS",
        )
    return Area(polygons)


def _check_polygons(path: str, layer: str) -> None:
    info = pyogrio.read_info(path, layer=layer, force_feature_count=True)
    kind = str(info["geometry_type"])
    other = kind.removesuffix(" Z").endswith(("Point", "LineString"))
    if other or not info["features"]:
        raise InputError(
            found=f"{path} holds {kind if other else 'nothing'}", expected="the polygons of an area"
        )
