"""Labels of a scene: shapes or a raster of codes, read in the scene's own pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyogrio
from numpy.typing import NDArray
from pyogrio.errors import DataSourceError
from rasterio._err import CPLE_BaseError  # has no public name
from rasterio.shutil import exists as raster_exists

from earthgate_geo.data.label_names import LabelNames, LabelOptions
from earthgate_geo.data.label_raster import open_codes
from earthgate_geo.data.label_shapes import open_shapes
from earthgate_geo.errors import DataError, InputError, LabelsElsewhereError
from earthgate_geo.metrics import OTHER
from earthgate_geo.raster.classes import NODATA, ClassTable
from earthgate_geo.raster.grid import Grid, Size, Window

__all__ = ["LabelLayer", "LabelOptions", "open_labels"]

_BLOCK_PX = 512
_CELL_PX = 64
_SMALL_SCENE_PX = 8192


class _Source(Protocol):
    @property
    def named(self) -> tuple[int, ...]: ...

    def read(self, window: Window) -> NDArray[np.uint8]: ...

    def close(self) -> None: ...


class LabelLayer:
    """What is known of a scene's pixels.

    Made by ``open_labels``; no file is open before the first read. Memory: the shapes, or nothing
    of a raster, and a few positions.

    Args:
        source: Reads windows inside the scene.
        size: Of the scene.
        classes: The classes of the model.
    """

    def __init__(self, source: _Source, size: Size, classes: ClassTable) -> None:
        self._source = source
        self._size = size
        self._classes = classes
        self.named = source.named
        """Values of the classes that the labels name: ``OTHER`` is none of these."""
        self._counts = np.zeros(256, np.int64)
        self._positions: list[tuple[int, int, int]] = []
        for window in _blocks(size):
            self._survey(window)
        self.close()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the labels of a window, which may reach past the scene.

        Returns:
            Class values (row, col); 254 (``OTHER``) where the labels say that a pixel is none
            of the classes they name; 255 where nothing is known and past the edge.

        Raises:
            InputError: The window lies wholly outside the scene.
            DataError: A raster of labels is damaged there.
        """
        inside = window.clipped(self._size)
        known = self._source.read(inside)
        if inside == window:
            return known
        labels = np.full((window.size.rows, window.size.cols), NODATA, np.uint8)
        row, col = inside.row - window.row, inside.col - window.col
        labels[row : row + inside.size.rows, col : col + inside.size.cols] = known
        return labels

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._source.close()

    def positions(self) -> list[tuple[int, int, int]]:
        """Return labelled pixels as (row, col, class value), spread over everything labelled.

        One per class, ``OTHER`` too, in each cell of 64 px where it occurs (512 px in scenes
        beyond 8192 px), from the middle of its pixels there.
        """
        return list(self._positions)

    def class_pixels(self) -> dict[str, int]:
        """Return the number of labelled pixels by class name, ``other`` last if it occurs."""
        counts = dict(zip(self._classes.names, self._counts.tolist(), strict=False))
        other = int(self._counts[OTHER])
        return counts | ({"other": other} if other else {})

    def _survey(self, window: Window) -> None:
        labels = self._source.read(window)
        counts = np.bincount(labels.ravel(), minlength=256)
        counts[NODATA] = 0
        self._counts += counts
        if not counts.any():
            return
        cell = _CELL_PX if max(self._size.rows, self._size.cols) <= _SMALL_SCENE_PX else _BLOCK_PX
        for row in range(0, window.size.rows, cell):
            for col in range(0, window.size.cols, cell):
                part = labels[row : row + cell, col : col + cell]
                for value in np.flatnonzero(np.bincount(part.ravel(), minlength=255)[:255]):
                    spots = np.flatnonzero(part == value)
                    down, across = divmod(int(spots[len(spots) // 2]), part.shape[1])
                    spot = (window.row + row + down, window.col + col + across, int(value))
                    self._positions.append(spot)


def open_labels(
    path: str | Path, grid: Grid, classes: ClassTable, options: LabelOptions
) -> LabelLayer:
    """Open polygons, lines, points or a raster of codes as the labels of a scene.

    Another CRS, resolution or orientation is brought onto the scene's grid; shapes are burnt,
    rasters read nearest. The whole scene is gone through once.

    Args:
        path: Vector or raster file.
        grid: Grid of the scene.
        classes: The classes of the model.
        options: What the user says about the file.

    Raises:
        InputError: There is no such file, or the options do not fit it.
        ClassNameError: The labels name a class that the model lacks.
        LabelsElsewhereError: None of the labels lies inside the scene.
        DataError: The file cannot be read as labels.
        MissingCrsError: The file has no CRS.
    """
    text = str(path)
    if not text.startswith("/vsi") and not Path(text).exists():
        raise InputError(found=f"{text} does not exist", expected="labels, vector or raster")
    names = LabelNames(classes, options.label_map)
    layer = shapes_layer(text)
    source: _Source
    if layer is None:
        source = open_codes(text, grid=grid, names=names, options=options)
    else:
        source = open_shapes(text, layer, grid=grid, names=names, options=options)
    labels = LabelLayer(source, grid.size, classes)
    if not labels.positions():
        raise LabelsElsewhereError(
            found=f"{text} has no label inside the scene",
            expected="labels that overlap it",
            fix="Look at both in QGIS; one of the files may name a wrong CRS",
        )
    return labels


def shapes_layer(path: str) -> str | None:
    """Return the one layer of a vector file that has shapes, None if it is no vector file."""
    try:
        layers = pyogrio.list_layers(path)
    except DataSourceError as error:
        if _is_raster(path):
            return None
        raise DataError(
            found=f"{path} can be opened neither as a vector nor as a raster",
            expected="a complete file such as GeoPackage, GeoJSON, Shapefile or GeoTIFF",
        ) from error
    if not len(layers):
        return None
    drawn = [name for name, kind in layers if kind is not None]
    if not drawn:
        raise DataError(
            found=f"{path} has no geometries, only a table",
            expected="polygons, lines, points or a raster",
        )
    if len(drawn) > 1:
        raise DataError(
            found=f"{path} has the layers {', '.join(drawn)}",
            expected="one layer of labels",
            fix=f"Write one to a file of its own: ogr2ogr labels.gpkg {path} {drawn[0]}",
        )
    return str(drawn[0])


def _is_raster(path: str) -> bool:
    try:
        return bool(raster_exists(path))
    except CPLE_BaseError:  # of a damaged vector, too
        return False


def _blocks(size: Size) -> Iterator[Window]:
    for row in range(0, size.rows, _BLOCK_PX):
        for col in range(0, size.cols, _BLOCK_PX):
            yield Window(row, col, Size(_BLOCK_PX, _BLOCK_PX)).clipped(size)
