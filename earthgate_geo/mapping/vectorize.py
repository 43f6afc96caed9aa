"""Maps to polygons with class names, areas and confidence."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from earthgate_geo.errors import DataError, InputError
from earthgate_geo.mapping.areas import PixelAreas, to_crs
from earthgate_geo.mapping.simplify import BLOCK_PX, Simplifier
from earthgate_geo.mapping.trace import Place, Regions, Tracer
from earthgate_geo.mapping.vector_files import FIELDS, Layer, VectorFile, create
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.class_map import class_table
from earthgate_geo.raster.classes import FULL_SCALE, NODATA, ClassTable
from earthgate_geo.raster.cog import CLASSES_TAG
from earthgate_geo.raster.destination import Destination, publish
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import Scene, open_scene
from earthgate_geo.request import VectorOptions

STRIP_PIXELS = 1 << 21
"""Pixels that are traced at once."""

BAND_ROWS = BLOCK_PX
"""Rows at whose multiples open regions may be cut: simplified outlines have points there."""

TILE_PX = 4 * BAND_ROWS
"""Side of the tiles at whose borders polygons are cut, if asked for."""

OPEN_CORNERS = 4_000_000
"""Corners of open regions past which they are cut; one of so many takes up to 1.5 GB to write."""

CHUNK_CORNERS = 500_000
"""Corners of polygons that are written at once: GDAL opens the file anew each time."""


def vectorize(
    map_path: str | Path,
    path: str | Path,
    *,
    options: VectorOptions | None = None,
    confidence_path: str | Path | None = None,
    overwrite: bool = False,
    monitor: Monitor,
) -> dict[str, Any]:
    """Write the regions of a map as polygons: 4-connected, with the edges of its pixels.

    One layer, named after the file, of MultiPolygons in the CRS of the map, with the fields
    ``class_id``, ``class_name``, ``area_m2`` (of the pixels, on the ellipsoid, whatever the CRS;
    NULL where a polygon reaches off the Earth) and ``confidence`` (mean over the polygon, 0..1).
    A GeoPackage, FlatGeobuf or GeoParquet, as the ending says.

    Memory: strips of 2 million pixels, and the outlines of the regions that are still open. Past 4
    million corners, open regions are cut at the next multiple of 1024 rows, with a warning.

    Args:
        map_path: A map that earthgate wrote.
        path: File to write: .gpkg, .fgb or .parquet.
        options: What is left out, simplified or cut; nothing without. Places of polygons that are
            left out stay empty. Simplified neighbours keep one line, without gaps or overlaps.
            Polygons are cut at multiples of 4096 rows and columns.
        confidence_path: Its confidence layer. Without it, ``<map stem>_conf.tif`` beside the map
            is used if it is of the same run; failing that, ``confidence`` is NULL.
        overwrite: Whether an existing file may be replaced.
        monitor: Told the stage ``vectorize``, in rows of the map or its columns of tiles; may
            cancel.

    Returns:
        ``output``, ``polygons``, and by class name in ``classes`` ``polygons`` and ``area_m2``.

    Raises:
        InputError: The file is not a map of ours, or the confidence layer does not fit it.
        DataError: A file is damaged.
        OutputError: The destination exists, is being written, is an input, or has another ending.
        StorageError: Writing failed.
        CancelledError: The monitor said so.
    """
    path, options = Path(path), options or VectorOptions()
    with ExitStack() as stack:
        scene = stack.enter_context(open_scene(map_path))
        classes = class_table(scene)
        confidence = _confidence(scene, confidence_path, monitor)
        inputs = [map_path]
        if confidence:
            inputs.append(stack.enter_context(confidence).path)
        destination = Destination(path, overwrite=overwrite, inputs=inputs)
        scratch = stack.enter_context(destination).scratch / path.name
        layer = Layer(path=path, crs_wkt=scene.grid.crs.to_wkt(), classes=classes)
        file = stack.enter_context(closing(create(layer, scratch)))
        polygons = _Polygons(file, classes, options.min_area_m2)
        for regions in _regions(_Map(scene, confidence, len(classes)), options, monitor):
            polygons.add(regions)
        polygons.finish()
        publish(scratch, path)
    return {
        "output": str(path),
        "polygons": int(polygons.count.sum()),
        "classes": {
            c.name: {
                "polygons": int(polygons.count[c.value]),
                "area_m2": float(polygons.area_m2[c.value]),
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


@dataclass(frozen=True)
class _Map:
    """Classes and confidence by window."""

    scene: Scene
    confidence: Scene | None
    class_count: int

    def classes(self, window: Window) -> NDArray[np.uint8]:
        values = _values(self.scene, window)
        if (wrong := values[(values >= self.class_count) & (values != NODATA)]).size:
            raise DataError(
                found=f"{self.scene.path} holds the value {wrong[0]}",
                expected=f"0..{self.class_count - 1} or {NODATA}, as its class table says",
            )
        return values

    def confidences(self, window: Window) -> NDArray[np.float64]:
        if self.confidence is None:
            return np.full((window.size.rows, window.size.cols), np.nan)
        stored = _values(self.confidence, window)
        return np.where(stored == NODATA, np.nan, stored / FULL_SCALE)

    def placed(self, window: Window) -> Place:
        """Return what takes pixels of a window to the CRS."""
        first = np.array([window.col, window.row])
        return lambda points: to_crs(points + first, self.scene.grid)


def _values(scene: Scene, window: Window) -> NDArray[np.uint8]:
    pixels = scene.read(window, [1])
    return np.where(pixels.valid, pixels.values[0], np.uint8(NODATA))


def _regions(source: _Map, options: VectorOptions, monitor: Monitor) -> Iterator[Regions]:
    """Yield the regions; their measures are square metres and sums of confidence."""
    size = source.scene.grid.size
    step = TILE_PX if options.cut_at_tiles else max(size.rows, size.cols)
    tiles = [
        Window(row, col, Size(min(step, size.rows - row), min(step, size.cols - col)))
        for row in range(0, size.rows, step)
        for col in range(0, size.cols, step)
    ]
    monitor.stage("vectorize", sum(tile.size.rows for tile in tiles))
    areas = PixelAreas(source.scene.grid)
    done, may_grow = 0, not options.cut_at_tiles
    for tile in tiles:
        tracer = Tracer(tile.size.cols, measures=2, place=source.placed(tile))
        for strip, kept in _strips(source, tile, options.simplify_m):
            if strip.row % BAND_ROWS == 0 and tracer.open_corners > OPEN_CORNERS:
                yield tracer.finish()
                if may_grow:
                    monitor.warn(_cut_at(source.scene.path, strip.row))
                may_grow = False
            measures = areas.within(strip), source.confidences(strip)
            yield tracer.add(source.classes(strip), *measures, kept=kept)
            monitor.update(done + strip.row_stop - tile.row)
        yield tracer.finish()
        done += tile.size.rows


def _cut_at(path: str, row: int) -> str:
    return (
        f"{path} has regions of over {OPEN_CORNERS} corners: to bound memory, polygons end at "
        f"row {row}, and wherever that recurs; --cut-at-tiles ends them at a regular grid instead"
    )


def _strips(
    source: _Map, tile: Window, simplify_m: float
) -> Iterator[tuple[Window, NDArray[np.bool_] | None]]:
    """Cut a tile into strips; with each goes what simplified outlines keep of its corners."""
    rows = max(1, STRIP_PIXELS // tile.size.cols)
    simplifier = Simplifier(source.classes, source.scene.grid.gsd(), simplify_m)
    for band in _cut(tile, BAND_ROWS):
        kept = simplifier.kept(band) if simplify_m else None
        for strip in _cut(band, rows):
            here = slice(strip.row - band.row, strip.row_stop - band.row)
            yield strip, kept if kept is None else kept[here]


def _cut(window: Window, rows: int) -> Iterator[Window]:
    for row in range(window.row, window.row_stop, rows):
        size = Size(min(rows, window.row_stop - row), window.size.cols)
        yield Window(row, window.col, size)


class _Polygons:
    """Regions on their way to a file, in chunks."""

    def __init__(self, file: VectorFile, classes: ClassTable, min_area_m2: float) -> None:
        self.count = np.zeros(len(classes), np.int64)
        self.area_m2 = np.zeros(len(classes))
        self._file = file
        self._names = pa.array(classes.names)
        self._min_area_m2 = min_area_m2
        self._chunk: list[Regions] = []
        self._corners = 0

    def add(self, regions: Regions) -> None:
        self._chunk.append(regions)
        self._corners += int(shapely.get_num_coordinates(regions.polygons).sum())
        if self._corners > CHUNK_CORNERS:
            self._write()

    def finish(self) -> None:
        if self._chunk:
            self._write()
        self._file.finish()

    def _write(self) -> None:
        value = np.concatenate([regions.classes for regions in self._chunk])
        pixels = np.concatenate([regions.pixels for regions in self._chunk])
        area_m2, confidence = np.concatenate([regions.sums for regions in self._chunk], axis=1)
        polygons = np.concatenate([regions.polygons for regions in self._chunk])
        self._chunk, self._corners = [], 0
        kept = ~(area_m2 < self._min_area_m2)
        value, area_m2, mean = value[kept], area_m2[kept], (confidence / pixels)[kept]
        self.count += np.bincount(value, minlength=len(self.count))
        self.area_m2 += np.bincount(value, np.nan_to_num(area_m2), len(self.area_m2))
        fields = [
            pa.array(value, pa.int32()),
            self._names.take(pa.array(value)),
            pa.array(area_m2, from_pandas=True),  # NaN becomes NULL
            pa.array(mean, from_pandas=True),
        ]
        self._file.add(polygons[kept], pa.table(fields, schema=FIELDS))
