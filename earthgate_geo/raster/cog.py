"""Rows in order to a Cloud Optimized GeoTIFF under its final name. The only writer of rasters."""

import os
import shutil
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what rasterio.shutil.copy raises; it has no public name
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window as RasterioWindow

from earthgate_geo.errors import DataError, InputError, StorageError
from earthgate_geo.raster.classes import NODATA, ClassTable, aux_xml, qml
from earthgate_geo.raster.destination import publish, sidecars, storage_error
from earthgate_geo.raster.grid import Grid
from earthgate_geo.raster.read import CACHE_BYTES

CLASSES_TAG = "EARTHGATE_CLASSES"
"""Dataset tag that holds the class table of a map."""

BLOCK_PX = 512

_CREATION = {
    "BIGTIFF": ("YES", "NO", "IF_NEEDED", "IF_SAFER"),
    "BLOCKSIZE": ("128", "256", "512", "1024", "2048"),
    "COMPRESS": ("NONE", "DEFLATE", "ZSTD", "LZW", "LZMA"),
    "LEVEL": tuple(str(level) for level in range(1, 13)),
    "NUM_THREADS": ("ALL_CPUS", *(str(threads) for threads in range(1, 17))),
    "PREDICTOR": ("YES", "NO", "STANDARD"),
}
"""Options that keep every pixel. GDAL ignores what it does not know, and aborts on BLOCKSIZE=0."""

_DEFAULTS = {
    "BIGTIFF": "IF_SAFER",
    "BLOCKSIZE": str(BLOCK_PX),
    "COMPRESS": "DEFLATE",
    "NUM_THREADS": "ALL_CPUS",
}

_DEFLATE_LEVEL = "5"
"""Maps take 8 % more than at GDAL's 6, in 0.6 of the time."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A uint8 raster to write."""

    path: Path
    """Its final name."""

    bands: int = 1
    """Number of bands."""

    nodata: int = NODATA
    """Value of pixels without data."""

    classes: ClassTable | None = None
    """Makes a map of the first band: palette, names, class table in the tags, sidecars."""

    scale: float = 1.0
    """What a stored 1 stands for."""

    descriptions: tuple[str, ...] = ()
    """Names of the bands."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """Dataset tags."""


class LayerWriter:
    """Writes the rows of a layer, top to bottom, on an exact grid.

    ``write_rows`` fills a scratch file, ``finish`` makes the COG out of it and reads it back,
    ``publish`` gives it its name; until then nothing stands there. GDAL does not tell of a full
    disk for certain (compressed blocks are written by its threads, and the COG driver can return
    a file without its end), so every row is compared with a checksum taken when it came in.

    Memory: one row of blocks twice, and GDAL's cache of at most 128 MB.

    Args:
        layer: What to write.
        grid: Where its pixels lie.
        scratch: Folder for intermediate files, on the disk of ``layer.path``.
        creation: Options of GDAL's COG driver, in place of our own.

    Raises:
        InputError: A creation option is unknown or would change pixels; or the name is no TIFF's.
    """

    def __init__(
        self,
        layer: Layer,
        grid: Grid,
        *,
        scratch: Path,
        creation: Mapping[str, str] | None = None,
    ) -> None:
        if layer.path.suffix.lower() not in {".tif", ".tiff"}:
            raise InputError(found=f"{layer.path} as a raster to write", expected="a name in .tif")
        self.layer = layer
        self.grid = grid
        self.counts = np.zeros(256, np.int64)
        """Pixels of the first band by value, so far."""
        self._creation = check_creation(creation or {})
        self._rows = scratch / f"{layer.path.stem}.rows.tif"
        self._cog = scratch / f"{layer.path.stem}.cog.tif"
        self._block = np.empty((layer.bands, BLOCK_PX, grid.size.cols), np.uint8)
        self._filled = 0
        self._flushed = 0
        self._checksums: list[int] = []
        self._target: DatasetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._target:
            with suppress(RasterioError, CPLE_BaseError), rasterio.Env():
                self._target.close()
        for path in (self._rows, self._cog):
            for left in (path, *sidecars(path)):
                left.unlink(missing_ok=True)

    def write_rows(self, first_row: int, rows: NDArray[np.uint8]) -> None:
        """Take the next rows (band, row, col), any number of them.

        Raises:
            InputError: They are not the next ones, or do not fit the layer.
            StorageError: They cannot be written, e.g. on a full disk.
        """
        expected = self._flushed + self._filled
        bands, count, cols = rows.shape
        fits = (bands, cols) == (self.layer.bands, self.grid.size.cols) and rows.dtype == np.uint8
        if first_row != expected or expected + count > self.grid.size.rows or not fits:
            raise InputError(
                found=f"rows {first_row} to {first_row + count - 1}, {rows.shape} of {rows.dtype}",
                expected=f"rows from {expected} on, ({self.layer.bands}, n, {self.grid.size.cols})"
                f" of uint8, {self.grid.size.rows} rows in all",
            )
        taken = 0
        while taken < count:
            part = rows[:, taken : taken + BLOCK_PX - self._filled]
            self._block[:, self._filled : self._filled + part.shape[1]] = part
            self._filled += part.shape[1]
            taken += part.shape[1]
            if self._filled == BLOCK_PX or self._flushed + self._filled == self.grid.size.rows:
                self._flush()

    def finish(self) -> None:
        """Build the COG in the scratch folder and read all of it back.

        Raises:
            InputError: Rows are missing.
            StorageError: It cannot be written, or is not what was written.
        """
        if self._flushed != self.grid.size.rows or not self._target:
            raise InputError(
                found=f"{self._flushed} rows of {self.layer.path}",
                expected=f"all {self.grid.size.rows}",
            )
        resampling = "MODE" if self.layer.classes else "AVERAGE"
        with self._storage_errors():
            self._target.close()
            self._target = None
            self._require(self._cog_bytes())
            copy_raster(
                self._rows,
                self._cog,
                driver="COG",
                OVERVIEWS="IGNORE_EXISTING",
                OVERVIEW_RESAMPLING=resampling,
                **self._creation,
            )
            self._rows.unlink()
            with self._cog.open("rb+") as file:
                os.fsync(file.fileno())  # a network disk may say only here that it is full
            self._write_sidecars()
        self._verify()

    def publish(self) -> None:
        """Give the finished COG and its sidecars their names; those of an older file go.

        Raises:
            OutputError: The older file is open in another program.
            StorageError: The disk refuses.
        """
        publish(self._cog, self.layer.path)

    def _flush(self) -> None:
        strip = self._block[:, : self._filled]
        # What GDAL still holds in its cache has not met the disk yet.
        due_bytes = min(self._raw_bytes(self._flushed), CACHE_BYTES) + strip.nbytes
        area = RasterioWindow(0, self._flushed, strip.shape[2], strip.shape[1])
        with self._storage_errors():
            self._require(due_bytes, told=self._all_bytes())
            if not self._target:
                self._target = self._create()
                self._describe(self._target)
            self._target.write(strip, window=area)
        self._checksums.append(_checksum(strip))
        for row in strip[0]:
            self.counts += np.bincount(row, minlength=256)
        self._flushed += self._filled
        self._filled = 0

    def _create(self) -> DatasetWriter:
        return rasterio.open(
            self._rows,
            "w",
            driver="GTiff",
            height=self.grid.size.rows,
            width=self.grid.size.cols,
            count=self.layer.bands,
            dtype="uint8",
            crs=self.grid.crs,
            transform=self.grid.transform,
            nodata=self.layer.nodata,
            photometric="MINISBLACK",
            tiled=True,
            blockxsize=BLOCK_PX,
            blockysize=BLOCK_PX,
            compress="ZSTD",
            zstd_level=1,
            num_threads="ALL_CPUS",
            bigtiff="IF_SAFER",
        )

    def _describe(self, target: DatasetWriter) -> None:
        layer = self.layer
        target.update_tags(**layer.tags)
        if layer.classes:
            target.write_colormap(1, layer.classes.colormap())
            target.update_tags(**{CLASSES_TAG: layer.classes.to_json()})
        for band, text in enumerate(layer.descriptions, 1):
            target.set_band_description(band, text)
        target.scales = (layer.scale,) * layer.bands

    def _write_sidecars(self) -> None:
        classes, aux = self.layer.classes, self._cog.with_name(f"{self._cog.name}.aux.xml")
        # GDAL writes one where a TIFF cannot hold the CRS; ours holds the classes as well.
        aux.unlink(missing_ok=True)
        empty = "<PAMDataset />"
        root = ET.fromstring(aux_xml(classes, self.counts.tolist()) if classes else empty)
        with rasterio.open(self._cog) as cog:
            if cog.crs != self.grid.crs:
                srs = ET.Element("SRS", dataAxisToSRSAxisMapping="1,2")
                srs.text = self.grid.crs.to_wkt()
                root.insert(0, srs)
        if len(root):
            aux.write_text(ET.tostring(root, encoding="unicode"), encoding="utf-8")
        if classes:
            self._cog.with_suffix(".qml").write_text(qml(classes), encoding="utf-8")

    def _verify(self) -> None:
        found = f"{self.layer.path} did not come back from the disk as it was written"
        try:
            with (
                rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
                rasterio.open(self._cog, num_threads="ALL_CPUS") as cog,
            ):
                place, checksums = (cog.transform, cog.crs), list(_checksums(cog))
                for level in range(len(cog.overviews(1))):
                    with rasterio.open(self._cog, overview_level=level) as overview:
                        list(_checksums(overview))  # reads all of it
        except (RasterioError, CPLE_BaseError) as error:
            raise self._failed(found) from error
        if checksums != self._checksums:
            raise self._failed(found)
        if place != (self.grid.transform, self.grid.crs):
            raise DataError(
                found=f"a GeoTIFF cannot hold the transform or CRS of {self.layer.path}",
                expected="a common CRS",
                fix="Warp the scene to one first with gdalwarp -t_srs",
            )

    def _raw_bytes(self, rows: int) -> int:
        return rows * self.grid.size.cols * self.layer.bands

    def _cog_bytes(self) -> int:
        """Estimate the COG, its overviews and the driver's temporary copy of those."""
        packed = self._rows.stat().st_size
        if self._creation["COMPRESS"] == "NONE":
            packed = self._raw_bytes(self.grid.size.rows)
        return int(packed * 1.6) + 65_536

    def _all_bytes(self) -> int:
        """Bound what the layer takes in all: rows, COG, overviews, all incompressible."""
        return int(self._raw_bytes(self.grid.size.rows) * 2.6) + 65_536

    def _require(self, needed_bytes: int, *, told: int | None = None) -> None:
        if shutil.disk_usage(self._rows.parent).free < needed_bytes:
            raise storage_error(self.layer.path, told or needed_bytes)

    def _failed(self, found: str = "") -> StorageError:
        return storage_error(self.layer.path, self._all_bytes(), found=found)

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                yield
        except StorageError:
            raise
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise self._failed() from error


def check_creation(creation: Mapping[str, str]) -> dict[str, str]:
    """Return the options for GDAL's COG driver: ``creation`` over our own.

    Raises:
        InputError: One is unknown or would change pixels.
    """
    chosen = {key.upper(): value.upper() for key, value in creation.items()}
    for key, value in chosen.items():
        known = _CREATION.get(key, ())
        if value not in known:
            raise InputError(
                found=f"--co {key}={value}", expected=f"one of {', '.join(known or _CREATION)}"
            )
    options = _DEFAULTS | chosen
    return options if options["COMPRESS"] != "DEFLATE" else {"LEVEL": _DEFLATE_LEVEL} | options


def _checksums(source: DatasetReader) -> Iterator[int]:
    for row in range(0, source.height, BLOCK_PX):
        area = RasterioWindow(0, row, source.width, min(BLOCK_PX, source.height - row))
        yield _checksum(source.read(window=area))


def _checksum(strip: NDArray[np.uint8]) -> int:
    return zlib.crc32(np.ascontiguousarray(strip).data)
