"""Maps to polygons: a GeoPackage with class names, areas, confidence and its own style."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

from earthgate_geo.errors import DataError, InputError, StorageError
from earthgate_geo.mapping.areas import PixelAreas, to_crs
from earthgate_geo.mapping.trace import Regions, Tracer
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.class_map import class_table
from earthgate_geo.raster.classes import FULL_SCALE, NODATA, ClassTable, vector_qml
from earthgate_geo.raster.cog import CLASSES_TAG
from earthgate_geo.raster.destination import Destination, publish, storage_error
from earthgate_geo.raster.grid import Grid, Size, Window
from earthgate_geo.raster.read import Scene, open_scene

STRIP_PIXELS = 1 << 21
"""Pixels that are traced at once."""

CHUNK_CORNERS = 500_000
"""Corners of polygons that are written at once: GDAL opens the file anew each time."""

_WRITE_ERRORS = (DataSourceError, DataLayerError, FeatureError)

# The table that QGIS itself makes for a layer's styles, and its way to mark the default.
_STYLE_TABLE = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256),
    f_table_schema TEXT(256),
    f_table_name TEXT(256),
    f_geometry_column TEXT(256),
    styleName TEXT(30),
    styleQML TEXT,
    styleSLD TEXT,
    useAsDefault BOOLEAN,
    description TEXT,
    owner TEXT(30),
    ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))
);
INSERT INTO gpkg_contents (table_name, data_type, identifier)
VALUES ('layer_styles', 'attributes', 'layer_styles');
"""
_STYLE_ROW = """
INSERT INTO layer_styles (
    f_table_catalog, f_table_schema, f_table_name, f_geometry_column,
    styleName, styleQML, styleSLD, useAsDefault, description, owner, ui
) VALUES ('', '', ?, 'geom', ?, ?, '', 1, 'Classes of the map', '', '')
"""


def vectorize(
    map_path: str | Path,
    gpkg_path: str | Path,
    *,
    confidence_path: str | Path | None = None,
    min_area_m2: float = 0.0,
    overwrite: bool = False,
    monitor: Monitor,
) -> dict[str, Any]:
    """Write the regions of a map as polygons: 4-connected, with the exact edges of its pixels.

    One layer, named after the file, of MultiPolygons in the CRS of the map, with the fields
    ``class_id``, ``class_name``, ``area_m2`` (on the ellipsoid, whatever the CRS; NULL where a
    polygon reaches off the Earth) and ``confidence`` (mean over the polygon, 0..1). Memory:
    strips of 2 million pixels, and the outlines of the regions that are still open; a region
    that spans the scene stays open.

    Args:
        map_path: A map that earthgate wrote.
        gpkg_path: GeoPackage to write.
        confidence_path: Its confidence layer. Without it, ``<map stem>_conf.tif`` beside the map
            is used if it is of the same run; failing that, ``confidence`` is NULL.
        min_area_m2: Smaller polygons are left out; their places stay empty.
        overwrite: Whether an existing file may be replaced.
        monitor: Told the stage ``vectorize``, in rows; may cancel.

    Returns:
        ``output``, ``polygons``, and by class name in ``classes`` ``polygons`` and ``area_m2``.

    Raises:
        InputError: The file is not a map of ours, or the confidence layer does not fit it.
        DataError: A file is damaged.
        OutputError: The destination exists, is being written, or is an input.
        StorageError: Writing failed.
        CancelledError: The monitor said so.
    """
    path = Path(gpkg_path)
    with ExitStack() as stack:
        scene = stack.enter_context(open_scene(map_path))
        classes = class_table(scene)
        confidence = _confidence(scene, confidence_path, monitor)
        inputs = [map_path]
        if confidence:
            inputs.append(stack.enter_context(confidence).path)
        destination = Destination(path, overwrite=overwrite, inputs=inputs)
        scratch = stack.enter_context(destination).scratch / path.name
        package = _Package(scratch, path, scene.grid, classes, min_area_m2)
        for regions in _regions(scene, classes, confidence, monitor):
            package.add(regions)
        package.finish()
        publish(scratch, path)
    return {
        "output": str(path),
        "polygons": int(package.polygons.sum()),
        "classes": {
            c.name: {
                "polygons": int(package.polygons[c.value]),
                "area_m2": float(package.area_m2[c.value]),
            }
            for c in classes
        },
    }


def _confidence(scene: Scene, given: str | Path | None, monitor: Monitor) -> Scene | None:
    path = given or Path(scene.path).with_name(f"{scene.name}_conf.tif")
    if given is None and not Path(path).exists():
        return None
    layer = open_scene(path)
    if layer.grid == scene.grid and (given or _run(layer) == _run(scene)):
        return layer
    layer.close()
    if given:
        raise InputError(
            found=f"{path} does not lie on the grid of {scene.path}",
            expected="the confidence layer of that map",
        )
    monitor.warn(f"{path} is of another run than {scene.path}: polygons get no confidence")
    return None


def _run(scene: Scene) -> dict[str, str]:
    """Return the tags that all layers of one run share."""
    return {
        key: value
        for key, value in scene.tags.items()
        if key.startswith("EARTHGATE_") and key != CLASSES_TAG
    }


def _regions(
    scene: Scene, classes: ClassTable, confidence: Scene | None, monitor: Monitor
) -> Iterator[Regions]:
    """Yield the regions; their measures are square metres and sums of confidence."""
    size = scene.grid.size
    areas = PixelAreas(scene.grid)
    tracer = Tracer(size.cols, measures=2)
    monitor.stage("vectorize", size.rows)
    rows = max(1, STRIP_PIXELS // size.cols)
    for row in range(0, size.rows, rows):
        window = Window(row, 0, Size(min(rows, size.rows - row), size.cols))
        values = _values(scene, window)
        if (wrong := values[(values >= len(classes)) & (values != NODATA)]).size:
            raise DataError(
                found=f"{scene.path} holds the value {wrong[0]}",
                expected=f"0..{len(classes) - 1} or {NODATA}, as its class table says",
            )
        mean = np.full(values.shape, np.nan)
        if confidence:
            stored = _values(confidence, window)
            mean = np.where(stored == NODATA, np.nan, stored / FULL_SCALE)
        yield tracer.add(values, areas.rows(row, window.size.rows), mean)
        monitor.update(window.row_stop)
    yield tracer.finish()


def _values(scene: Scene, window: Window) -> NDArray[np.uint8]:
    pixels = scene.read(window, [1])
    return np.where(pixels.valid, pixels.values[0], np.uint8(NODATA))


class _Package:
    """A GeoPackage that grows by chunks."""

    def __init__(
        self, scratch: Path, path: Path, grid: Grid, classes: ClassTable, min_area_m2: float
    ) -> None:
        self.polygons = np.zeros(len(classes), np.int64)
        self.area_m2 = np.zeros(len(classes))
        self._scratch = scratch
        self._path = path
        self._grid = grid
        self._classes = classes
        self._min_area_m2 = min_area_m2
        self._chunk: list[Regions] = []
        self._corners = 0

    def add(self, regions: Regions) -> None:
        self._chunk.append(regions)
        self._corners += int(shapely.get_num_coordinates(regions.polygons).sum())
        if self._corners > CHUNK_CORNERS:
            self._write()

    def finish(self) -> None:
        """Write what is left, and the style."""
        if self._chunk:
            self._write()
        with self._told(), closing(sqlite3.connect(self._scratch)) as package:
            package.executescript(_STYLE_TABLE)
            name = self._path.stem
            package.execute(_STYLE_ROW, (name, name, vector_qml(self._classes)))
            package.commit()
            # GDAL does not tell of a disk too full for the features or their spatial index.
            quoted = name.replace('"', '""')
            tables = (f'"{quoted}"', f'"rtree_{quoted}_geom"')
            counts = [package.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables]
        if counts != [self.polygons.sum()] * 2:
            raise self._failed()

    def _write(self) -> None:
        frame = self._frame()
        with self._told():
            pyogrio.write_dataframe(
                frame,
                self._scratch,
                layer=self._path.stem,
                driver="GPKG",
                geometry_type="MultiPolygon",
                promote_to_multi=True,
                append=self._scratch.exists(),
                GEOMETRY_NAME="geom",
                VERSION="1.3",  # GDAL before 3.7, and so older QGIS, warns of newer ones
            )
        self._chunk, self._corners = [], 0

    def _frame(self) -> GeoDataFrame:
        value = np.concatenate([regions.classes for regions in self._chunk])
        pixels = np.concatenate([regions.pixels for regions in self._chunk])
        area_m2, confidence = np.concatenate([regions.sums for regions in self._chunk], axis=1)
        polygons = np.concatenate([regions.polygons for regions in self._chunk])
        kept = ~(area_m2 < self._min_area_m2)
        self.polygons += np.bincount(value[kept], minlength=len(self.polygons))
        self.area_m2 += np.bincount(value[kept], np.nan_to_num(area_m2[kept]), len(self.area_m2))
        fields = {
            "class_id": value.astype(np.int32),
            "class_name": np.array(self._classes.names, object)[value],
            "area_m2": area_m2,
            "confidence": confidence / pixels,
        }
        # Rows run down the map, so that the turn of a ring depends on the grid.
        placed = shapely.transform(polygons[kept], lambda points: to_crs(points, self._grid))
        return GeoDataFrame(
            {name: values[kept] for name, values in fields.items()},
            geometry=shapely.orient_polygons(placed),
            crs=self._grid.crs.to_wkt(),
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (*_WRITE_ERRORS, sqlite3.Error, OSError) as error:
            raise self._failed() from error

    def _failed(self) -> StorageError:
        so_far = self._scratch.stat().st_size if self._scratch.exists() else 0
        return storage_error(self._path, 2 * so_far + 10_000_000)
