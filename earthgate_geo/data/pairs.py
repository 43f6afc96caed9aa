"""Images with their labels, as a folder or a manifest lists them."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earthgate_geo.errors import DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.raster.classes import ClassTable, LandClass

_RASTERS = frozenset(
    {".bmp", ".gif", ".img", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".vrt", ".webp"}
)
_VECTORS = frozenset({".fgb", ".geojson", ".gpkg", ".shp"})
COMPANIONS = ("_labels", "_truth", "_dsm")
"""Endings of files beside a scene that are no scenes; the first are its labels."""

_COLORS = (
    *("#d1492e", "#3f86c6", "#5f9a4a", "#dcc38c", "#54565b"),
    *("#8a5aa8", "#e39b3b", "#57b8ad", "#c65f92", "#8f7a54"),
)
"""For classes to which nobody gave a colour, in turns."""

_SHOWN = 8


@dataclass(frozen=True)
class Pair:
    """An image and its labels."""

    image: Path
    """Any raster that GDAL reads; it needs no place on the Earth."""

    label: Path | None = None
    """A vector or a raster of codes or colours; None if nobody labelled it."""

    row: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The pair's line of the manifest, by column; empty without one."""


def open_pairs(
    root: Path, *, where: Mapping[str, str] | None = None
) -> tuple[list[Pair], ClassTable | None]:
    """List the images of a folder, with their labels and classes if it has them.

    With a ``manifest.csv`` (columns ``image`` and ``label``, paths from the folder, ``label`` may
    be empty or absent; images of one ``scene`` share their statistics) its lines in its order,
    else the files of ``images/`` by name, each with the file of the same stem in ``labels/``, else
    the rasters in the folder itself, each with ``<stem>_labels`` beside it, where files that end
    in ``_labels``, ``_truth`` or ``_dsm`` are no images. The classes come from ``classes.json``:
    ``{"0": "water", "1": "land"}`` or a list of
    ``{"value": 0, "name": "water", "color": "#3f86c6"}``, where the colours may be left out.

    Args:
        root: The folder.
        where: Wanted value by column of the manifest; all of them must hold.

    Returns:
        The pairs, at least one, and the classes, None without a ``classes.json``.

    Raises:
        InputError: There is no such folder, or ``where`` fits no line or no manifest.
        DataError: The folder is not laid out so, a file is missing, or the classes are unclear.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(found=f"{root} is not a folder", expected="a folder of training images")
    manifest, images = root / "manifest.csv", root / "images"
    if manifest.is_file():
        pairs = _listed(manifest, where or {})
    elif where:
        column, value = next(iter(where.items()))
        raise InputError(
            found=f"a choice by {column}={value} in {root}, which has no manifest.csv",
            expected="a manifest with that column",
        )
    elif images.is_dir():
        pairs = _matched(_rasters(images), root / "labels", ending="")
        if not pairs:
            raise DataError(
                found=f"{images} holds no image",
                expected=f"files that end in {', '.join(sorted(_RASTERS))}",
            )
    else:
        scenes = [path for path in _rasters(root) if not path.stem.endswith(COMPANIONS)]
        pairs = _matched(scenes, root, ending=COMPANIONS[0])
        if not pairs:
            raise DataError(
                found=f"{root} holds neither images nor images/ nor a manifest.csv",
                expected="scene.tif beside scene_labels.gpkg or scene_labels.tif, images/ beside "
                "labels/ with files of the same names, or a manifest.csv with the columns image "
                "and label",
            )
    classes = root / "classes.json"
    return pairs, read_classes(classes) if classes.is_file() else None


def _listed(manifest: Path, where: Mapping[str, str]) -> list[Pair]:
    columns, rows = _table(manifest)
    if "image" not in columns:
        raise DataError(
            found=f"{manifest} has the columns {_some(columns)}",
            expected="a column image, and label where there are labels",
        )
    if not rows:
        raise DataError(found=f"{manifest} lists no image", expected="one line per image")
    for column, value in where.items():
        if column not in columns:
            raise InputError(
                found=f"{manifest} has no column {column}", expected=f"one of {_some(columns)}"
            )
        values = sorted({row[column] for row in rows})
        rows = [row for row in rows if row[column] == value]
        if not rows:
            raise InputError(
                found=f"no line of {manifest} has {_some([f'{c}={v}' for c, v in where.items()])}",
                expected=f"{column} among {_some(values)}",
            )
    pairs = [_pair(manifest.parent, row) for row in rows]
    missing = _missing(pairs)
    if missing:
        error = DataError(
            found=f"{manifest} names {len(missing)} files that are not there"
            if len(missing) > 1
            else f"{manifest} names {missing[0]}, which is not there",
            expected="paths of files, from the folder of the manifest",
        )
        for path in missing if len(missing) > 1 else ():
            error.add_note(f"{path} is not there.")
        raise error
    return pairs


def _table(manifest: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, restval="")
            rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            found=f"{manifest} is not a table in UTF-8",
            expected="comma-separated text",
            fix="Save it again as CSV UTF-8",
        ) from error
    return list(table.fieldnames or ()), rows


def _pair(root: Path, row: Mapping[str, str]) -> Pair:
    return Pair(root / row["image"], root / row["label"] if row.get("label") else None, row)


def _missing(pairs: list[Pair]) -> list[Path]:
    files = dict.fromkeys(path for pair in pairs for path in (pair.image, pair.label) if path)
    return [path for path in files if not path.is_file()]


def _matched(pictures: list[Path], folder: Path, *, ending: str) -> list[Pair]:
    """Pair images with the label files of ``folder`` that have their stem and the ending."""
    if not folder.is_dir():
        return [Pair(path) for path in pictures]
    drawn = sorted(p for p in folder.iterdir() if p.suffix.lower() in _RASTERS | _VECTORS)
    by_stem: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for path in pictures:
        images.setdefault(path.stem + ending, path)
    for path in drawn:
        other = by_stem.setdefault(path.stem, path)
        if other != path and path.stem in images:
            raise DataError(
                found=f"{other} and {path} are labels of the same image",
                expected="one file of each name",
            )
    for path in pictures:
        other = images[path.stem + ending]
        if other != path and path.stem + ending in by_stem:
            raise DataError(
                found=f"{other} and {path} have the same labels, {by_stem[path.stem + ending]}",
                expected="one image of each name",
                fix="Move the copy elsewhere",
            )
    return [Pair(path, by_stem.get(path.stem + ending)) for path in pictures]


def _rasters(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _RASTERS)


def _some(values: list[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(values[:_SHOWN]) + more


def is_raster(path: Path) -> bool:
    """Tell by the ending whether a file is a raster."""
    return path.suffix.lower() in _RASTERS


def table_of(names: Sequence[str]) -> ClassTable:
    """Return the classes of some names, by their order, each with a colour of its own."""
    entries = [{"value": value, "name": name} for value, name in enumerate(names)]
    return ClassTable(tuple(_classes(entries)))


def read_classes(path: Path) -> ClassTable:
    """Read a ``classes.json``, in either form that ``open_pairs`` names.

    Raises:
        DataError: The file is not of these forms.
    """
    try:
        return ClassTable(tuple(_classes(json.loads(path.read_text(encoding="utf-8-sig")))))
    except InputError as error:
        raise DataError(found=f"{path} has {error.found}", expected=error.expected) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            found=f"{path} is not a list of classes",
            expected='{"0": "water", "1": "land"} or [{"value": 0, "name": "water"}, ...]',
        ) from error


def _classes(document: Any) -> list[LandClass]:
    """Read the two forms; the codes of unlabelled pixels may be among the names."""
    if isinstance(document, dict):
        names = document.get("classes", document)
        document = [{"value": int(value), "name": str(name)} for value, name in names.items()]
    return [
        LandClass(
            value=int(entry["value"]),
            name=str(entry["name"]),
            color=str(entry.get("color") or _COLORS[index % len(_COLORS)]).lower(),
        )
        for index, entry in enumerate(sorted(document, key=lambda entry: int(entry["value"])))
        if int(entry["value"]) not in (OTHER, UNKNOWN)
    ]
