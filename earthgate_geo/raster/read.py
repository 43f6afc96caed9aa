"""Scenes: windows of pixels with their validity. The only opener of rasters for reading."""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from earthgate_geo.errors import BandError, DataError, EmptySceneError, InputError
from earthgate_geo.raster.bands import ALPHA, band_meanings, choose_bands
from earthgate_geo.raster.georeference import read_grid
from earthgate_geo.raster.grid import Grid, Size, Tiling, Window
from earthgate_geo.raster.stac_item import DescribedScene, ItemAsset, described_scene
from earthgate_geo.raster.stack import stacked

CACHE_BYTES = 128 * 1024 * 1024
"""Usual bound of GDAL's block cache."""

COARSE_PX = 1024
"""Longest side of the decimated read that statistics and estimates come from."""


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """What the user says about a file because the file does not, or says it wrongly."""

    bands: Mapping[str, int] | None = None
    """1-based file band by meaning, e.g. ``{"red": 4}``."""

    nodata: float | None = None
    """Value of pixels without data, in place of the file's own nodata tag."""

    assume_crs: str | None = None
    """CRS of a file that has none, e.g. ``EPSG:32633``."""

    assets: tuple[str, ...] = ()
    """Which assets of a STAC Item are the image: one, or one for each band."""

    placed: bool = True
    """False where the file's place on the Earth does not matter: its grid has no CRS then."""


@dataclass(frozen=True)
class Pixels:
    """A window of a scene."""

    values: NDArray[Any]
    """(band, row, col) in the file's type; zero past the edge of the scene."""

    valid: NDArray[np.bool_]
    """(row, col), True where the file has data; False past the edge of the scene."""


@dataclass(frozen=True)
class Radiometry:
    """The digital numbers of a scene that become 0 and 1, per chosen band."""

    low: tuple[float, ...]
    """1st percentile."""

    high: tuple[float, ...]
    """99th percentile."""

    def scale(self, values: NDArray[Any], *, in_place: bool = False) -> NDArray[np.float32]:
        """Map digital numbers (band, row, col) to 0..1; a band of one value becomes 0.5.

        Args:
            values: Digital numbers, of any type.
            in_place: Whether ``values``, if it is of a floating type, may be changed and returned.
        """
        wide = np.result_type(values.dtype, np.float32)
        low = np.array(self.low, wide)[:, None, None]
        span = np.array(self.high, wide)[:, None, None] - low
        flat = span <= 0
        scaled = values.astype(wide, copy=not in_place)  # changed in place: ten times faster
        scaled -= low
        scaled /= np.where(flat, 1, span)
        if flat.any():
            scaled += np.where(flat, np.array(0.5, wide), 0)
        np.clip(scaled, 0, 1, out=scaled)
        return scaled.astype(np.float32, copy=False)


def open_scene(path: str | Path, options: SceneOptions | None = None) -> "Scene":
    """Open any raster that GDAL reads, or the image that a STAC Item describes.

    Raises:
        InputError: There is no such file, or an option does not fit it.
        DataError: The file is not a raster, or one whose pixels cannot be placed or used, or the
            Item does not say which of its assets are the image.
        MissingDependencyError: It is an Item, and pystac is not installed.
    """
    options = options or SceneOptions()
    with rasterio.Env():  # without one, GDAL writes its warnings to stderr itself
        described = described_scene(str(path), options.assets)
        source = _open(str(path)) if described is None else _open_assets(described.images)
        try:
            return Scene(source, str(path), options, described)
        except BaseException:
            source.close()
            raise


def decimated(size: Size, longest_px: int) -> Size:
    """Return a size in proportion whose longer side is at most ``longest_px``; at least 1 x 1."""
    shrink = min(1.0, longest_px / max(size.rows, size.cols))
    return Size(max(1, round(size.rows * shrink)), max(1, round(size.cols * shrink)))


class Scene:
    """A raster to map: its grid, the meaning of its bands, windows of its pixels.

    Made by ``open_scene``; ``described`` is what an Item says of it. A context manager; pickled as
    path and options. Not to be read from two threads at once. Memory: the windows asked for, and
    one decimated read.
    """

    def __init__(
        self,
        source: DatasetReader,
        path: str,
        options: SceneOptions,
        described: DescribedScene | None = None,
    ) -> None:
        self.path = path
        self.name = Path(path).stem
        self.grid = (
            read_grid(source, path, assume_crs=options.assume_crs)
            if options.placed
            else Grid(Size(source.height, source.width), Affine.identity(), CRS())
        )
        self.count = int(source.count)
        dtype = _common_dtype(source.dtypes, path)
        self.dtype = str(dtype)
        self.tags: Mapping[str, str] = source.tags()
        interpretations = [c.name for c in source.colorinterp]
        self.meanings = band_meanings(interpretations, source.descriptions)
        self.item = None if described is None else described.item
        """The STAC Item that it comes from."""
        if described is not None:
            self.meanings = described.meanings(self.meanings)
        self.files: tuple[str, ...] = tuple(source.files)
        """The files that GDAL reads."""
        self.scaling = (float(source.scales[0]), float(source.offsets[0]))
        """Scale and offset by which the first band's numbers become quantities; not applied."""

        if described is not None and options.nodata is None and set(source.nodatavals) == {None}:
            told = described.nodata
            options = replace(options, nodata=told if _can_hold(dtype, told) else None)
        self._source = source
        self._options = options
        _check_options(self)
        flags = {flag for band in source.mask_flag_enums for flag in band}
        replaced = options.nodata is not None and MaskFlags.nodata in flags
        self._masked = not replaced and flags != {MaskFlags.all_valid}
        self._has_nan = dtype.kind == "f"
        self._coarse: dict[tuple[int, ...], Pixels] = {}
        self.cache_bytes = CACHE_BYTES
        """Bound of GDAL's block cache while this scene is read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[str, SceneOptions]]:
        path = Path(self.path)  # another process may have another current folder
        return open_scene, (str(path.absolute() if path.exists() else path), self._options)

    def reopened(self) -> "Scene":
        """Open the same file once more, e.g. for another thread."""
        return open_scene(self.path, self._options)

    def strip_bytes(self, rows: int) -> int:
        """Return what GDAL decodes at least for that many rows, however few columns are read.

        Blocks that span the raster are decoded whole: kept, they are decoded once for a row of
        tiles, otherwise for each tile. Files of smaller blocks need no such memory: 0.
        """
        whole = [r for r, c in self._source.block_shapes if c == self.grid.size.cols]
        if not whole:
            return 0
        decoded = min(rows + 2 * max(whole), self.grid.size.rows) * self.grid.size.cols
        return int(decoded * self.count * np.dtype(self.dtype).itemsize)

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def choose_bands(self, wanted: Sequence[str]) -> tuple[int, ...]:
        """Return the 1-based file bands for a model whose inputs are ``wanted``, in its order.

        Raises:
            BandError: The file and ``--bands`` do not say which, or its values are palette codes.
        """
        if ColorInterp.palette in self._source.colorinterp:
            raise BandError(
                found=f"{self.path} is a palette image: its values are codes, not brightness",
                expected="an image",
                fix="Turn it into colours first with gdal_translate -expand rgb",
            )
        return choose_bands(self.path, self.meanings, wanted=wanted, given=self._options.bands)

    def read(self, window: Window, bands: Sequence[int]) -> Pixels:
        """Read a window, which may reach past the scene.

        Args:
            window: Pixels to read.
            bands: 1-based file bands, in the order wanted; may repeat.

        Raises:
            InputError: The window lies wholly outside.
            DataError: The file is damaged there.
        """
        inside = window.clipped(self.grid.size)
        pixels = self._read(inside, bands, inside.size)
        if inside == window:
            return pixels
        size = window.size
        values = np.zeros((len(bands), size.rows, size.cols), self.dtype)
        valid = np.zeros((size.rows, size.cols), np.bool_)
        rows = slice(inside.row - window.row, inside.row_stop - window.row)
        cols = slice(inside.col - window.col, inside.col_stop - window.col)
        values[:, rows, cols] = pixels.values
        valid[rows, cols] = pixels.valid
        return Pixels(values, valid)

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Read the (row, col) validity of a window: GDAL's dataset mask and no NaN in any band."""
        return self.read(window, ()).valid

    def valid_share(self, window: Window) -> float:
        """Estimate the share of a window's pixels, 0..1, that are valid; past the edge none is."""
        cells = self._coarse_valid()[self._coarse_cells(window)]
        inside = window.clipped(self.grid.size).size
        covered = inside.rows * inside.cols / (window.size.rows * window.size.cols)
        return float(cells.mean()) * covered

    def has_valid(self, window: Window) -> bool:
        """Tell exactly whether a window holds a valid pixel."""
        hint = self._valid_spot(window)
        return (hint is not None and bool(self.read_valid(hint).any())) or bool(
            self.read_valid(window).any()
        )

    def radiometry(self, bands: Sequence[int]) -> Radiometry:
        """Return the percentiles of the valid pixels of one decimated read.

        Raises:
            EmptySceneError: The scene has no valid pixel.
        """
        pixels = self.preview(bands)
        if not pixels.valid.any():
            pixels = self._first_valid(bands)
        samples = pixels.values[:, pixels.valid]
        finite = [band[np.isfinite(band)] for band in samples]
        low, high = zip(
            *(np.percentile(band, (1, 99)) if band.size else (0.0, 1.0) for band in finite),
            strict=True,
        )
        return Radiometry(tuple(map(float, low)), tuple(map(float, high)))

    def preview(
        self, bands: Sequence[int], *, window: Window | None = None, longest_px: int = COARSE_PX
    ) -> Pixels:
        """Read the scene, or a window inside it, decimated to the size that ``decimated`` says.

        Nearest. The whole scene as coarse as by default is read once.
        """
        key = tuple(bands)
        is_usual = window is None and longest_px == COARSE_PX
        if is_usual and key in self._coarse:
            return self._coarse[key]
        window = window or Window(0, 0, self.grid.size)
        pixels = self._read(window, bands, decimated(window.size, longest_px))
        if is_usual:
            self._coarse[key] = pixels
        return pixels

    def digest(self) -> str:
        """Return a hex digest of the files' sizes and times, of grid, type and options.

        All files count that GDAL reads, such as masks and what a VRT names; cheap, not their
        content.
        """
        facts: list[object] = [self.grid.size, tuple(self.grid.transform), self.grid.crs.to_wkt()]
        facts += [self.count, self.dtype, self.meanings, self._options]
        for path in sorted(self.files):
            if Path(path).exists():
                stat = Path(path).stat()
                facts += [Path(path).name, stat.st_size, stat.st_mtime_ns]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _read(self, window: Window, bands: Sequence[int], size: Size) -> Pixels:
        nodata = self._options.nodata
        everything = self._has_nan or nodata is not None
        wanted = range(1, self.count + 1) if everything else sorted(set(bands))
        shape = (size.rows, size.cols)
        values = np.empty((len(wanted), *shape), self.dtype)
        valid = np.ones(shape, np.bool_)
        area = RasterioWindow(window.col, window.row, window.size.cols, window.size.rows)
        try:
            # GDAL's own bound is a share of the machine's memory; one look at a scene fills it.
            with rasterio.Env(GDAL_CACHEMAX=self.cache_bytes):
                # rasterio reads bands of one type only at once.
                step = 1 if len(set(self._source.dtypes)) > 1 else max(len(wanted), 1)
                for first in range(0, len(wanted), step):
                    part = slice(first, first + step)
                    self._source.read(list(wanted[part]), window=area, out=values[part])
                if self._masked:
                    valid &= self._source.dataset_mask(window=area, out_shape=shape) != 0
        except (RasterioIOError, CPLE_BaseError) as error:  # the latter of a mask
            raise _damaged(self.path, window) from error
        if self._has_nan:
            valid &= ~np.isnan(values).any(axis=0)
        if nodata is not None:
            pictures = [i for i, meaning in enumerate(self.meanings) if meaning != ALPHA]
            valid &= (values[pictures] != np.array(nodata, self.dtype)).any(axis=0)
        return Pixels(values[[list(wanted).index(band) for band in bands]], valid)

    def _coarse_valid(self) -> NDArray[np.bool_]:
        read = next(iter(self._coarse.values()), None) or self.preview(())
        return read.valid

    def _coarse_cells(self, window: Window) -> tuple[slice, slice]:
        inside = window.clipped(self.grid.size)
        rows, cols = self._coarse_valid().shape
        down, across = rows / self.grid.size.rows, cols / self.grid.size.cols
        return (
            slice(int(inside.row * down), -int(-inside.row_stop * down // 1)),
            slice(int(inside.col * across), -int(-inside.col_stop * across // 1)),
        )

    def _valid_spot(self, window: Window) -> Window | None:
        """Return the part of the window under its first coarse cell that looks valid."""
        rows, cols = self._coarse_cells(window)
        coarse = self._coarse_valid()
        found = np.argwhere(coarse[rows, cols])
        if not len(found):
            return None
        row, col = found[len(found) // 2] + (rows.start, cols.start)
        down, across = self.grid.size.rows / coarse.shape[0], self.grid.size.cols / coarse.shape[1]
        top, left = max(int(row * down), window.row), max(int(col * across), window.col)
        bottom = min(int((row + 1) * down) + 1, window.row_stop)
        right = min(int((col + 1) * across) + 1, window.col_stop)
        return Window(top, left, Size(bottom - top, right - left))

    def _first_valid(self, bands: Sequence[int]) -> Pixels:
        block = Size(COARSE_PX, COARSE_PX)
        for window in Tiling(self.grid.size, block, block):
            pixels = self.read(window, bands)
            if pixels.valid.any():
                return pixels
        raise EmptySceneError(
            found=f"{self.path} has no valid pixel",
            expected="pixels that are neither nodata, masked, transparent nor NaN",
            fix="Check its nodata value with gdalinfo; --nodata gives another",
        )


def _open_assets(images: Sequence[ItemAsset]) -> DatasetReader:
    if len(images) == 1:
        return _open(images[0].href)
    with ExitStack() as stack:
        parts = {each.name: stack.enter_context(_open(each.href)) for each in images}
        return _open(stacked(parts))


def _open(path: str) -> DatasetReader:
    try:
        with warnings.catch_warnings():
            # Told in one sentence by read_grid.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            source = rasterio.open(path)
    except UnicodeEncodeError as error:
        raise InputError(
            found=f"the file name {path!a} is not in UTF-8", expected="one that is", fix="Rename it"
        ) from error
    except RasterioIOError as error:
        raise _unreadable(path) from error
    if source.count == 0:
        inner = source.subdatasets
        source.close()
        raise DataError(
            found=f"{path} is a container of {len(inner)} rasters",
            expected="one raster",
            fix=f"Name one of them, e.g. {inner[0]}" if inner else "",
        )
    return source


def _unreadable(path: str) -> InputError | DataError:
    try:
        size_bytes = Path(path).stat().st_size
    except OSError:
        if not path.startswith("/vsi") and "://" not in path:
            return InputError(found=f"{path} does not exist", expected="a raster file")
        size_bytes = -1
    if size_bytes > 0 and not os.access(path, os.R_OK):
        return InputError(
            found=f"{path} may not be read", expected="a raster file", fix="Check its permissions"
        )
    if size_bytes == 0:
        return DataError(
            found=f"{path} is empty (0 bytes)", expected="a raster file", fix="Copy it again"
        )
    return DataError(
        found=f"{path} cannot be opened as a raster",
        expected="a file that GDAL reads, such as GeoTIFF, VRT or JPEG 2000",
        fix=f"See what gdalinfo says about it: gdalinfo {path}",
    )


def _damaged(path: str, window: Window) -> DataError:
    rows = f"rows {window.row} to {window.row_stop - 1}"
    cols = f"columns {window.col} to {window.col_stop - 1}"
    fix = "It is damaged or cut short: copy it again from its source"
    if path.lower().endswith(".vrt"):
        fix = "Check that the files it names are there and complete"
    return DataError(
        found=f"{path} cannot be read at {rows}, {cols}", expected="a complete file", fix=fix
    )


def _common_dtype(dtypes: Sequence[str], path: str) -> np.dtype[Any]:
    if any(name.startswith("complex") for name in dtypes):
        raise DataError(
            found=f"{path} holds complex numbers",
            expected="an image of real numbers",
            fix="Derive one first, e.g. gdal_translate "
            f"DERIVED_SUBDATASET:AMPLITUDE:{path} amplitude.tif",
        )
    return np.dtype(np.result_type(*dtypes))


def _can_hold(dtype: np.dtype[Any], value: float | None) -> bool:
    if value is None or dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max and float(value).is_integer())


def _check_options(scene: Scene) -> None:
    options = scene._options
    for meaning, band in (options.bands or {}).items():
        if not 1 <= band <= scene.count:
            raise BandError(
                found=f"--bands {meaning}={band}, but {scene.path} has {scene.count} bands",
                expected=f"a number in 1..{scene.count}",
            )
    dtype = np.dtype(scene.dtype)
    if not _can_hold(dtype, options.nodata):
        limits = np.iinfo(dtype)
        raise InputError(
            found=f"--nodata {options.nodata:g}, a value that {scene.path} cannot hold",
            expected=f"a whole number in {limits.min}..{limits.max}",
        )
