"""Labels drawn as polygons, lines and points."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyogrio
import shapely
from affine import Affine
from geopandas import GeoDataFrame, GeoSeries
from numpy.typing import NDArray
from pandas import Series
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError
from pyproj import Transformer
from rasterio.features import rasterize

from earthgate_geo.data.label_names import LabelNames, LabelOptions, word
from earthgate_geo.data.warped import check_reachable
from earthgate_geo.errors import DataError, InputError, MissingCrsError
from earthgate_geo.raster.classes import NODATA
from earthgate_geo.raster.grid import Grid, Window

_USUAL_FIELDS = ("class_name", "class")
"""Fields that say by their name what they hold; the first is that of our own vectors."""

_LARGE = 1000
"""Vertices from which cutting a polygon to the window is faster than burning it whole."""


_AREAS = ("Polygon", "MultiPolygon")

_DRIVER_ERRORS = (
    DataSourceError,
    DataLayerError,
    FeatureError,
    GeometryError,
    UnicodeDecodeError,
)
"""What pyogrio raises at a damaged file."""

_PIECES = 64
"""Straight pieces of an edge as long as the scene is in another CRS: a bend is missed by its
4,096th part, as it grows with the square of the length."""


class LabelShapes:
    """Shapes with class values, burnt window by window into a scene's pixels.

    A polygon covers the pixels whose centre it holds, a line those it crosses, a point its one
    pixel. Where shapes overlap the smaller one wins. Memory: all shapes, and the window.

    Args:
        shapes: Shapes in pixels of the scene, (x, y) = (column, row).
        values: Class value of each.
        named: Classes that the shapes can have.
    """

    def __init__(
        self,
        shapes: NDArray[np.object_],
        values: NDArray[np.uint8],
        *,
        named: tuple[int, ...],
    ) -> None:
        self.named = named
        largest_first = np.argsort(-shapely.area(shapes), kind="stable")
        self._shapes = shapes[largest_first]
        self._values = values[largest_first]
        self._tree = shapely.STRtree(self._shapes)
        # Lines are never cut: GDAL draws a line's pixels from its first vertex on.
        self._cut = (
            (shapely.get_num_coordinates(self._shapes) > _LARGE)
            & (shapely.get_dimensions(self._shapes) == 2)
            & shapely.is_valid(self._shapes)
        )

    def close(self) -> None:
        """Do nothing: no file is open."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the class values (row, col) of a window, 255 where there is no label."""
        edges = (window.col, window.row, window.col_stop, window.row_stop)
        hits = np.sort(self._tree.query(shapely.box(*edges)))
        shapes, values = self._shapes[hits], self._values[hits]
        cut = self._cut[hits]
        outward = (-1, -1, 1, 1)  # the cut edges must not run through the window
        shapes[cut] = shapely.clip_by_rect(shapes[cut], *np.add(edges, outward).tolist())
        left = ~shapely.is_empty(shapes)
        shape = (window.size.rows, window.size.cols)
        if not left.any():
            return np.full(shape, NODATA, np.uint8)
        burnt: NDArray[np.uint8] = rasterize(
            zip(shapes[left], values[left].tolist(), strict=True),
            out_shape=shape,
            fill=NODATA,
            transform=Affine.translation(window.col, window.row),
            dtype="uint8",
        )
        return burnt


def open_shapes(
    path: str, layer: str, *, grid: Grid, names: LabelNames, options: LabelOptions
) -> LabelShapes:
    """Read the shapes of a vector layer that may meet a grid, in the grid's pixels.

    Raises:
        InputError: The options do not fit the fields.
        ClassNameError: The model lacks a class.
        MissingCrsError: The layer has no CRS.
        DataError: The layer's CRS cannot be brought into the grid's.
    """
    info = _info(path, layer, grid)
    field = _class_field(path, list(info["fields"]), options)
    frame = _frame(path, layer, grid, info["crs"], [field] if field else [])
    if field:
        frame = frame[_said(frame[field])]
        words, where = [word(value) for value in frame[field]], f"field {field} of {path}"
    else:
        words, where = [options.label_class or ""] * len(frame), path
    known = names.values(sorted(set(words)), where)
    values = np.array([known[each] for each in words], np.uint8)
    shapes, owners = _in_pixels(frame, grid)
    return LabelShapes(shapes, values[owners], named=names.named(known.values()))


def shape_words(path: str, layer: str, options: LabelOptions) -> set[str]:
    """Return the words that a vector layer says in its class field, or the one class of all.

    An empty layer says nothing.

    Raises:
        InputError: The options do not fit the fields.
        DataError: The file is damaged.
    """
    if not shape_count(path, layer):
        return set()
    with _driver_errors(path):
        info = pyogrio.read_info(path, layer=layer)
    field = _class_field(path, list(info["fields"]), options)
    if field is None:
        return {options.label_class or ""}
    with _driver_errors(path):
        table = pyogrio.read_dataframe(path, layer=layer, columns=[field], read_geometry=False)
    return {word(value) for value in table[field][_said(table[field])].unique()}


def shape_count(path: str, layer: str) -> int:
    """Return the number of features of a vector layer.

    Raises:
        DataError: The file is damaged.
    """
    with _driver_errors(path):
        return int(pyogrio.read_info(path, layer=layer, force_feature_count=True)["features"])


@contextmanager
def _driver_errors(path: str) -> Iterator[None]:
    """Tell what a driver says of a damaged vector file in one sentence."""
    try:
        yield
    except _DRIVER_ERRORS as error:
        raise DataError(
            found=f"{path} cannot be read",
            expected="a complete file",
            fix="It is damaged or cut short: copy it again from its source",
        ) from error


def read_polygons(path: str, layer: str, grid: Grid) -> NDArray[np.object_]:
    """Return the polygons of a vector layer that may meet a grid, in the grid's pixels.

    Raises:
        MissingCrsError: The layer has no CRS.
        DataError: The layer's CRS cannot be brought into the grid's.
    """
    info = _info(path, layer, grid)
    shapes, _ = _in_pixels(_frame(path, layer, grid, info["crs"], []), grid)
    polygons: NDArray[np.object_] = shapes[shapely.get_dimensions(shapes) == 2]
    return polygons


def _info(path: str, layer: str, grid: Grid) -> dict[str, Any]:
    with _driver_errors(path):
        info: dict[str, Any] = pyogrio.read_info(path, layer=layer)
    if info["crs"] is None:
        raise MissingCrsError(
            found=f"{path} has no coordinate reference system",
            expected="one that says where its shapes lie",
            fix="Write it into the file, e.g. with ogr2ogr -a_srs EPSG:32633 fixed.gpkg "
            f"{path}, if you know it",
        )
    check_reachable(path, info["crs"], grid)
    return info


def _frame(path: str, layer: str, grid: Grid, crs_wkt: str, columns: list[str]) -> GeoDataFrame:
    extent = _extent(grid, crs_wkt)
    with _driver_errors(path):
        return pyogrio.read_dataframe(path, layer=layer, columns=columns, bbox=extent)


def _said(words: Series) -> Series:
    """Return True where a field says a class: blank text says as little as none."""
    return words.notna() & (words.astype(str).str.strip() != "")


def _class_field(path: str, fields: Sequence[str], options: LabelOptions) -> str | None:
    if options.label_class and options.field:
        raise InputError(
            found=f"--label-field {options.field} and --label-class {options.label_class}",
            expected="one of them",
        )
    if options.label_class:
        return None
    candidates = [options.field] if options.field else _USUAL_FIELDS
    for candidate in candidates:
        if candidate in fields:
            return candidate
    listed = f"the fields {', '.join(fields)}" if fields else "no fields"
    raise InputError(
        found=f"{path} has {listed}",
        expected=f"a field {options.field}" if options.field else "to know which holds the class",
        fix="Name it with --label-field, or give all one class, e.g. --label-class building",
    )


def _extent(grid: Grid, crs_wkt: str) -> tuple[float, float, float, float] | None:
    """Return the bounds of the grid in another CRS, None where they cannot be told."""
    corners = [(0, 0), (grid.size.cols, 0), (0, grid.size.rows), (grid.size.cols, grid.size.rows)]
    xs, ys = zip(*(grid.transform @ corner for corner in corners), strict=True)
    there = Transformer.from_crs(grid.crs.to_wkt(), crs_wkt, always_xy=True)
    left, bottom, right, top = there.transform_bounds(min(xs), min(ys), max(xs), max(ys))
    spans = np.array([right - left, top - bottom])
    if not np.isfinite(spans).all() or (spans < 0).any():  # beyond the CRS, or over its seam
        return None
    # PROJ samples the edges: one hundredth covers what bulges out between the samples.
    across, down = spans / 100
    return left - across, bottom - down, right + across, top + down


def _bent(frame: GeoDataFrame, grid: Grid) -> GeoSeries:
    """Return shapes that keep their edges in another CRS, where those are curves.

    Polygons lose what lies far off: not every CRS has a place for it.
    """
    shapes = frame.geometry
    extent = None if frame.crs == grid.crs.to_wkt() else _extent(grid, frame.crs.to_wkt())
    if extent is None:
        return shapes
    left, bottom, right, top = extent
    bounds = shapes.bounds
    beyond = (bounds.minx < left) | (bounds.miny < bottom)
    beyond = (beyond | (bounds.maxx > right) | (bounds.maxy > top)) & shapes.geom_type.isin(_AREAS)
    cut = shapes.copy()
    cut[beyond] = shapes[beyond].make_valid().clip_by_rect(*extent)
    return cut.segmentize(min(right - left, top - bottom) / _PIECES)


def _in_pixels(frame: GeoDataFrame, grid: Grid) -> tuple[NDArray[np.object_], NDArray[np.intp]]:
    """Return the single shapes in pixels of the grid, and the row of ``frame`` of each."""
    geometry = _bent(frame, grid).to_crs(grid.crs.to_wkt()).to_numpy()
    shapes, owners = shapely.get_parts(geometry, return_index=True)
    inverse = ~grid.transform
    turn = np.array([[inverse.a, inverse.d], [inverse.b, inverse.e]])
    shapes = shapely.transform(shapes, lambda xy: xy @ turn + (inverse.c, inverse.f))
    usable = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    return shapes[usable], owners[usable]
