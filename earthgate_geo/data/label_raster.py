"""Labels as a raster of class codes."""

import warnings
from collections.abc import Container, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning

from earthgate_geo.data.label_names import LabelNames, LabelOptions, word
from earthgate_geo.data.warped import WarpedBand
from earthgate_geo.errors import DataError, InputError, MissingCrsError
from earthgate_geo.raster.classes import NODATA, ClassTable
from earthgate_geo.raster.grid import Grid, Size, Tiling, Window
from earthgate_geo.raster.read import Scene, open_scene

_BLOCK = Size(512, 512)
_MOST_CODES = 256


class CodeRaster:
    """A raster of class codes, read window by window in a scene's pixels, nearest.

    Memory: the window.

    Args:
        band: The raster on the scene's grid.
        values: Class value by code; every other code is unknown.
        named: Classes that the raster can show.
    """

    def __init__(
        self, band: WarpedBand, values: Mapping[Any, int], *, named: tuple[int, ...]
    ) -> None:
        self._band = band
        self._values = values
        self.named = named

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._band.close()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the class values (row, col) of a window inside the scene, 255 where unknown."""
        pixels = self._band.read(window)
        read = np.full(pixels.valid.shape, NODATA, np.uint8)
        for code, value in self._values.items():
            read[pixels.values[0] == code] = value
        read[~pixels.valid] = NODATA
        return read


def open_codes(path: str, *, grid: Grid, names: LabelNames, options: LabelOptions) -> CodeRaster:
    """Open a raster of labels and learn the codes that it holds inside a grid.

    Codes mean what the label map says, else what the raster's own class table says, else, without
    a label map, the model's class of that value. Nodata is unknown unless the map or the table
    names it.

    Raises:
        InputError: There is no such file, or an option is meant for vectors.
        ClassNameError: The model lacks a class.
        DataError: The file is not a raster, or not one of class codes.
    """
    if options.field or options.label_class:
        raise InputError(
            found=f"--label-field or --label-class with {path}, which is a raster",
            expected="classes by code",
            fix="Say which code is which class, e.g. --label-map 1=building,0=other",
        )
    with _opened(path) as raster:
        if (count := raster.count - raster.meanings.count("alpha")) != 1:
            raise DataError(found=f"{path} has {count} bands", expected="one band of class codes")
        table = raster.tags.get("EARTHGATE_CLASSES")
        own = {entry.value: entry.name for entry in ClassTable.from_json(table)} if table else {}
        band = WarpedBand(
            raster,
            grid,
            resampling=Resampling.nearest,
            nodata_is_data=names_nodata(path, {*(options.label_map or {}), *map(word, own)}),
        )
    meant = {code: _meaning(code, own, options.label_map or {}) for code in _codes(band, grid.size)}
    values = names.values(sorted(set(meant.values())), path)
    shown = [names.value(name) for name in own.values()]
    if not own and not options.label_map:
        shown = list(range(len(names.classes)))
    return CodeRaster(
        band,
        {code: values[name] for code, name in meant.items()},
        named=names.named([*values.values(), *(value for value in shown if value is not None)]),
    )


def _opened(path: str) -> Scene:
    try:
        return open_scene(path)
    except MissingCrsError as error:
        raise MissingCrsError(
            found=error.found,
            expected=error.expected,
            fix=f"Write it into the file, e.g. with gdal_edit.py -a_srs EPSG:32633 {path}, "
            "if you know it",
        ) from error


def names_nodata(path: str, codes: Container[str]) -> bool:
    """Tell whether the nodata value of a raster of labels is among the codes that mean a class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # labels may have no place
        with rasterio.open(path) as file:
            return file.nodata is not None and word(file.nodata) in codes


def _codes(band: WarpedBand, size: Size) -> list[Any]:
    codes: set[Any] = set()
    with closing(band):
        for window in Tiling(size, _BLOCK, _BLOCK):
            pixels = band.read(window)
            codes.update(pd.unique(pixels.values[0][pixels.valid]).tolist())
            if len(codes) > _MOST_CODES:
                raise DataError(
                    found=f"{band.path} holds more than {_MOST_CODES} different values",
                    expected="class codes",
                )
    return sorted(codes - {NODATA})


def _meaning(code: Any, own: Mapping[int, str], label_map: Mapping[str, str]) -> str:
    text = word(code)
    return text if text in label_map else own.get(code, text)
