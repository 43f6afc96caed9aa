"""Polygons with fields as files: GeoPackage with its style, FlatGeobuf, GeoParquet."""

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyarrow import parquet
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

from earthgate_geo.errors import OutputError, StorageError
from earthgate_geo.raster.classes import ClassTable, vector_qml
from earthgate_geo.raster.destination import storage_error

Polygons = NDArray[np.object_]

FIELDS = pa.schema(
    {
        "class_id": pa.int32(),
        "class_name": pa.string(),
        "area_m2": pa.float64(),
        "confidence": pa.float64(),
    }
)
"""What is told of a polygon, in every format."""

_WRITE_ERRORS = (DataSourceError, DataLayerError, FeatureError, sqlite3.Error, OSError)

_NO_FIRST = "`~!@#$%^&*()+-={}|[]\\:\";'<>?,./"
"""What GDAL does not let the name of a GeoPackage's layer begin with."""

_ONE_PART = struct.pack("<BII", 1, 6, 1)
"""Start of a little-endian MultiPolygon of one polygon."""

_BATCH = 1024
"""Polygons that are copied at once."""

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


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a file of polygons is about."""

    path: Path
    """Where it will lie in the end."""

    crs_wkt: str
    """CRS of the coordinates."""

    classes: ClassTable
    """The classes, for the style."""

    @property
    def name(self) -> str:
        """Name of the layer: that of the file, as far as GeoPackage allows it."""
        stem = self.path.stem.lstrip(_NO_FIRST)
        reserved = stem.lower().startswith(("gpkg", "sqlite_"))
        return f"map_{stem}" if reserved or not stem else stem


class VectorFile(Protocol):
    """A file that grows by chunks; one without polygons makes an empty layer."""

    def add(self, polygons: Polygons, fields: pa.Table) -> None:
        """Write polygons, of shape (polygon,), as MultiPolygons, and their ``FIELDS``."""

    def finish(self) -> None:
        """Write what is left, once all polygons are added."""

    def close(self) -> None:
        """Let go of the file, finished or not."""


def create(layer: Layer, built: Path) -> VectorFile:
    """Begin the file of a layer, in the format that its ending names.

    Its methods raise StorageError.

    Args:
        layer: The layer.
        built: Where the file is built, in a folder of its own.

    Raises:
        OutputError: The ending is none of .gpkg, .fgb and .parquet.
    """
    formats: dict[str, Callable[[Layer, Path], VectorFile]] = {
        ".gpkg": _GeoPackage,
        ".fgb": _FlatGeobuf,
        ".parquet": _GeoParquet,
    }
    ending = layer.path.suffix.lower()
    if ending not in formats:
        raise OutputError(
            found=f"{layer.path} for the polygons",
            expected="a name ending in .gpkg, .fgb or .parquet",
        )
    return formats[ending](layer, built)


class _GeoPackage:
    """A GeoPackage with a style that QGIS takes for the usual one."""

    def __init__(self, layer: Layer, built: Path) -> None:
        self._layer = layer
        self._built = built
        self.count = 0

    def add(self, polygons: Polygons, fields: pa.Table) -> None:
        self.count += len(polygons)
        with _told(self._layer, self._built):
            pyogrio.write_arrow(
                fields.append_column("geom", _wkb(polygons)),
                self._built,
                layer=self._layer.name,
                driver="GPKG",
                geometry_name="geom",
                geometry_type="MultiPolygon",
                crs=self._layer.crs_wkt,
                append=self._built.exists(),
                VERSION="1.3",  # GDAL before 3.7, and so older QGIS, warns of newer ones
            )

    def finish(self) -> None:
        name = self._layer.name
        with _told(self._layer, self._built), closing(sqlite3.connect(self._built)) as package:
            package.executescript(_STYLE_TABLE)
            package.execute(_STYLE_ROW, (name, name, vector_qml(self._layer.classes)))
            package.commit()
            # GDAL does not tell of a disk too full for the features or their spatial index.
            quoted = name.replace('"', '""')
            tables = (f'"{quoted}"', f'"rtree_{quoted}_geom"')
            counts = [package.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables]
        if counts != [self.count] * 2:
            raise _failed(self._layer, self._built)

    def close(self) -> None:
        """Do nothing: GDAL opens the file anew for every chunk."""


class _FlatGeobuf:
    """A FlatGeobuf; GDAL writes it in one go, so that its features wait in a GeoPackage."""

    def __init__(self, layer: Layer, built: Path) -> None:
        self._layer = layer
        self._built = built
        self._waiting = built.with_name(f"{built.name}.gpkg")
        self._package = _GeoPackage(layer, self._waiting)

    def add(self, polygons: Polygons, fields: pa.Table) -> None:
        self._package.add(polygons, fields)

    def finish(self) -> None:
        self._package.finish()
        with _told(self._layer, self._built):
            waiting = pyogrio.open_arrow(self._waiting, layer=self._layer.name, batch_size=_BATCH)
            with waiting as (about, features):
                pyogrio.write_arrow(
                    features,
                    self._built,
                    layer=self._layer.name,
                    driver="FlatGeobuf",
                    geometry_name=about["geometry_name"],
                    geometry_type="MultiPolygon",
                    crs=self._layer.crs_wkt,
                )
            # The header says 0 for none and for unknown.
            written = pyogrio.read_info(self._built, force_feature_count=True)["features"]
        if written != self._package.count:
            raise _failed(self._layer, self._built)

    def close(self) -> None:
        """Do nothing, as there."""


class _GeoParquet:
    """A GeoParquet 1.1 file; a chunk is a row group, with the bounds of its polygons."""

    def __init__(self, layer: Layer, built: Path) -> None:
        self._layer = layer
        self._built = built
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        bbox = pa.struct([(name, pa.float64()) for name in _BOUNDS])
        schema = FIELDS.append(pa.field("geometry", pa.binary())).append(pa.field("bbox", bbox))
        with _told(layer, built):
            self._writer = parquet.ParquetWriter(
                built, schema, compression="zstd", use_dictionary=["class_name"]
            )

    def add(self, polygons: Polygons, fields: pa.Table) -> None:
        bounds = shapely.bounds(polygons).reshape(-1, 4)
        self._bounds[:2] = np.min([self._bounds[:2], *bounds[:, :2]], axis=0)
        self._bounds[2:] = np.max([self._bounds[2:], *bounds[:, 2:]], axis=0)
        table = fields.append_column("geometry", _wkb(polygons)).append_column(
            "bbox", pa.StructArray.from_arrays(list(bounds.T), _BOUNDS)
        )
        with _told(self._layer, self._built):
            self._writer.write_table(table)

    def finish(self) -> None:
        column = {
            "encoding": "WKB",
            "geometry_types": ["MultiPolygon"],
            "crs": pyproj.CRS.from_wkt(self._layer.crs_wkt).to_json_dict(),
            "orientation": "counterclockwise",
            "covering": {"bbox": {name: ["bbox", name] for name in _BOUNDS}},
        }
        if np.isfinite(self._bounds).all():
            column["bbox"] = self._bounds.tolist()
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        with _told(self._layer, self._built):
            self._writer.add_key_value_metadata({"geo": json.dumps(geo)})
            self._writer.close()

    def close(self) -> None:
        with suppress(OSError):  # of a disk that is full
            self._writer.close()


_BOUNDS = ("xmin", "ymin", "xmax", "ymax")


def _wkb(polygons: Polygons) -> pa.Array:
    """Return MultiPolygons of one part each."""
    parts = shapely.to_wkb(polygons, byte_order=1)
    return pa.array([_ONE_PART + part for part in parts], pa.binary())


@contextmanager
def _told(layer: Layer, built: Path) -> Iterator[None]:
    try:
        yield
    except _WRITE_ERRORS as error:
        raise _failed(layer, built) from error


def _failed(layer: Layer, built: Path) -> StorageError:
    so_far = sum(file.stat().st_size for file in built.parent.glob(f"{built.name}*"))
    return storage_error(layer.path, 2 * so_far + 10_000_000)
