"""STAC Items of maps, and the Collection of a folder of them. Needs pystac, an extra.

Core STAC 1.1 through pystac; the fields of the extensions projection 2.0, raster 2.0,
classification 2.0 and processing 1.2 are written here, as pystac knows some in older versions.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyproj

from earthgate_geo.raster.classes import FULL_SCALE, NODATA
from earthgate_geo.raster.destination import storage_error
from earthgate_geo.raster.footprint import footprint
from earthgate_geo.raster.grid import Grid
from earthgate_geo.raster.read import Scene, open_scene
from earthgate_geo.raster.stac_item import COLLECTION_NAME, missing_pystac

try:
    import pystac
    from pystac.utils import datetime_to_str
except ImportError as error:
    raise missing_pystac("a STAC Item") from error

Document = Mapping[str, Any]

_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
_OF_A_MAP = ("projection/v2.0.0", "raster/v2.0.0", "classification/v2.0.0", "processing/v1.2.0")

WORLD = (-180.0, -90.0, 180.0, 90.0)
"""West, south, east, north."""

_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_GEOJSON = "application/geo+json"
_MEDIA_TYPES = {
    ".tif": _COG,
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/vnd.flatgeobuf",
    ".parquet": "application/vnd.apache.parquet",
    ".html": "text/html",
}

_ASSETS = {
    "map": ("Class of every pixel", ["data"]),
    "confidence": ("Probability of that class", ["confidence"]),
    "probs": ("Probability of each class", ["probability"]),
    "vector": ("Polygons of the classes", ["data"]),
    "report": ("Report of the adaptation", ["metadata"]),
}
"""Title and roles of the assets of a map's Item, by role of the output; others are no assets."""


def write_map_item(
    path: Path, document: Document, *, scene: Scene, built: Path, collection: str | None = None
) -> None:
    """Write the Item of a map.

    Its geometry is the outline of the mapped pixels' window, its time that of the source's Item,
    else the TIFF tag DateTime, else that of the scene's file, which its description then says.

    Args:
        path: File to write.
        document: The result document of the map, with the final ``outputs``.
        scene: What was mapped.
        built: The map, wherever it lies yet.
        collection: Id of the Collection beside it, if it belongs to one.

    Raises:
        StorageError: The file cannot be written.
    """
    outputs = {role: Path(file) for role, file in document["outputs"].items()}
    place = outputs["stac"]
    with open_scene(built) as shown:
        area, tags = footprint(shown), shown.tags
    times, note = _times(scene, built)
    item = pystac.Item(
        id=place.stem,
        geometry=None if area is None else dict(area.geometry),
        bbox=None if area is None else list(area.bbox),
        datetime=times.pop("datetime", None),
        properties={
            "title": place.stem,
            "description": f"Classes of the scene {document['scene']}.{note}",
            **{key: datetime_to_str(moment) for key, moment in times.items()},
            "gsd": document["grid"]["gsd"][0],
            **_projection(scene.grid),
            **_processing(tags),
        },
        stac_extensions=extensions(_OF_A_MAP),
    )
    for role, file in outputs.items():
        if role in _ASSETS:
            item.add_asset(role, _map_asset(role, relative(file, place), document))
    if scene.item is not None:
        link(item, "derived_from", relative(scene.item.href, place))
    if collection is not None:
        item.collection_id = collection
        for rel in ("root", "parent", "collection"):
            link(item, rel, f"./{COLLECTION_NAME}", "application/json")
    write(path, item.to_dict(include_self_link=False, transform_hrefs=False))


def write_collection(path: Path, items: Sequence[Path], *, name: str) -> None:
    """Write the Collection of Items that lie in one folder.

    Args:
        path: File to write.
        items: Their files, under their final names; at least one.
        name: Its id.

    Raises:
        StorageError: The file cannot be written.
    """
    found = [pystac.Item.from_file(str(item)) for item in items]
    collection = pystac.Collection(
        id=name,
        title=name,
        description=f"Land cover maps of {len(found)} scenes, made with earthgate.",
        extent=_extent(found),
        license="other",  # that of the scenes, which nobody told us
    )
    for item in items:
        link(collection, "item", f"./{item.name}")
    link(collection, "root", f"./{COLLECTION_NAME}", "application/json")
    write(path, collection.to_dict(include_self_link=False, transform_hrefs=False))


def extensions(names: Sequence[str]) -> list[str]:
    """Return the addresses of extensions, given like ``raster/v2.0.0``."""
    return [_EXTENSION.format(name) for name in names]


def link(
    owner: pystac.Item | pystac.Collection, rel: str, href: str, media_type: str = _GEOJSON
) -> None:
    """Add a link, without reading what it leads to; of all kinds but ``item`` there is one."""
    added = pystac.Link(rel, href, media_type=media_type)
    owner.links = [*(each for each in owner.links if each.rel != rel or rel == "item"), added]


def write(path: Path, document: Document) -> None:
    """Write a document.

    Raises:
        StorageError: The disk refuses.
    """
    content = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    try:
        path.write_bytes(content)
    except OSError as error:
        raise storage_error(path, len(content)) from error


def relative(href: str | Path, place: Path) -> str:
    """Return what leads from a file at ``place`` to a file or address."""
    if "://" in str(href):
        return str(href)
    try:
        found = os.path.relpath(Path(href).absolute(), place.absolute().parent)
    except ValueError:  # another drive of Windows
        return Path(href).absolute().as_posix()
    text = Path(found).as_posix()
    return text if text.startswith("..") else f"./{text}"


def _map_asset(role: str, href: str, document: Document) -> pystac.Asset:
    classes = classification(document["classes"])
    pixels = {
        "data_type": "uint8",
        "nodata": NODATA,
        "raster:spatial_resolution": document["grid"]["gsd"][0],
    }
    probability = pixels | {"raster:scale": 1 / FULL_SCALE}
    told: dict[str, dict[str, Any]] = {
        "map": pixels | {"classification:classes": classes},
        "confidence": probability,
        "probs": probability | {"bands": [{"name": each["name"]} for each in classes]},
    }
    title, roles = _ASSETS[role]
    return pystac.Asset(
        href=href,
        title=title,
        media_type=_MEDIA_TYPES[Path(href).suffix.lower()],
        roles=roles,
        extra_fields=told.get(role, {}),
    )


def classification(classes: Sequence[Document]) -> list[dict[str, Any]]:
    """Return the classes of a class table, given as JSON values, as the extension has them."""
    return [
        {
            "value": entry["value"],
            "name": re.sub(r"[^0-9A-Za-z_-]", "_", entry["name"]),
            "title": entry["name"],
            "description": entry["name"],
            "color_hint": entry["color"][1:].upper(),
        }
        for entry in classes
    ]


def _projection(grid: Grid) -> dict[str, Any]:
    authority = grid.crs.to_authority()
    code = ":".join(authority) if authority else None
    wkt = {} if code else {"proj:wkt2": pyproj.CRS.from_wkt(grid.crs.to_wkt()).to_wkt()}
    return {
        "proj:code": code,
        **wkt,
        "proj:shape": [grid.size.rows, grid.size.cols],
        "proj:transform": list(grid.transform[:6]),
    }


def _processing(tags: Mapping[str, str]) -> dict[str, Any]:
    adapter = tags.get("EARTHGATE_ADAPTER")
    also = f" and the adapter {adapter}" if adapter else ""
    return {
        "processing:lineage": f"Mapped with the model {tags['EARTHGATE_MODEL']}{also}.",
        "processing:software": {"earthgate": tags["EARTHGATE_VERSION"]},
    }


def _times(scene: Scene, built: Path) -> tuple[dict[str, datetime], str]:
    """Return when the scene was taken, as far as known, and a sentence where it is not."""
    if scene.item is not None and scene.item.times:
        return dict(scene.item.times), ""
    tag = scene.tags.get("TIFFTAG_DATETIME", "")
    try:
        # The tag has no time zone.
        taken = datetime.strptime(tag.strip(), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        file = Path(scene.path)
        kind, path = ("scene's", file) if file.exists() else ("map's", built)
        taken = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
        note = f" The datetime is that of the {kind} file, as the scene does not tell its own."
        return {"datetime": taken}, note
    return {"datetime": taken}, " The datetime is the TIFF tag's, taken as UTC."


def _extent(items: Sequence[pystac.Item]) -> pystac.Extent:
    boxes = [tuple(item.bbox) for item in items if item.bbox]
    west, south, east, north = zip(*boxes, strict=True) if boxes else ([each] for each in WORLD)
    box = [min(west), min(south), max(east), max(north)]
    if any(left > right for left, right in zip(west, east, strict=True)):  # the date line
        box[0], box[2] = WORLD[0], WORLD[2]
    times = [moment for item in items for moment in _moments(item)]
    return pystac.Extent(
        pystac.SpatialExtent([box]), pystac.TemporalExtent([[min(times), max(times)]])
    )


def _moments(item: pystac.Item) -> list[datetime]:
    common = item.common_metadata
    found = (item.datetime, common.start_datetime, common.end_datetime)
    return [moment for moment in found if moment is not None]
