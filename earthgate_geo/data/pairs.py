"""Images with their labels, as a folder or a manifest lists them."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earthgate_geo.errors import DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.raster.classes import ClassTable, LandClass

_RASTERS = frozenset(
    {".bmp", ".gif", ".img", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".vrt", ".webp"}
)
_COLORS = (
    *("#d1492e", "#3f86c6", "#5f9a4a", "#dcc38c", "#54565b"),
    *("#8a5aa8", "#e39b3b", "#57b8ad", "#c65f92", "#8f7a54"),
)
"""For classes to which nobody gave a colour, in turns."""

_SHOWN = 8


@dataclass(frozen=True)
class Pair:
    """An image and its labels, pixel on pixel."""

    image: Path
    """Any raster that GDAL reads; it needs no place on the Earth."""

    label: Path | None = None
    """A raster of codes or colours of the image's size; None if nobody labelled it."""

    row: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The pair's line of the manifest, by column; empty without one."""


def open_pairs(
    root: Path, *, where: Mapping[str, str] | None = None
) -> tuple[list[Pair], ClassTable | None]:
    """List the images of a folder, with their labels and classes if it has them.

    With a ``manifest.csv`` (columns ``image`` and ``label``, paths from the folder, ``label`` may
    be empty or absent) its lines in its order, else the files of ``images/`` by name, each with
    the file of the same stem in ``labels/``; without ``labels/`` all are unlabelled. The classes
    come from ``classes.json``: ``{"0": "water", "1": "land"}`` or a list of
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
        pairs = _matched(images, root / "labels")
    else:
        raise DataError(
            found=f"{root} holds neither images/ nor a manifest.csv",
            expected="images/ beside labels/ with files of the same names, or a manifest.csv with "
            "the columns image and label",
        )
    classes = root / "classes.json"
    return pairs, _class_table(classes) if classes.is_file() else None


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
    return [_pair(manifest, row) for row in rows]


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


def _pair(manifest: Path, row: Mapping[str, str]) -> Pair:
    root = manifest.parent
    pair = Pair(root / row["image"], root / row["label"] if row.get("label") else None, row)
    for path in (pair.image, pair.label):
        if path is not None and not path.is_file():
            raise DataError(
                found=f"{manifest} names {path}, which is not there",
                expected="paths of files, from the folder of the manifest",
            )
    return pair


def _matched(images: Path, labels: Path) -> list[Pair]:
    pictures = _rasters(images)
    if not pictures:
        raise DataError(
            found=f"{images} holds no image",
            expected=f"files that end in {', '.join(sorted(_RASTERS))}",
        )
    if not labels.is_dir():
        return [Pair(path) for path in pictures]
    drawn = _rasters(labels)
    by_stem = {path.stem: path for path in drawn}
    twice = [path for path in drawn if by_stem[path.stem] != path]
    if twice:
        raise DataError(
            found=f"{twice[0]} and {by_stem[twice[0].stem]} are labels of the same image",
            expected="one file of each name",
        )
    missing = [path for path in pictures if path.stem not in by_stem]
    if missing:
        raise DataError(
            found=f"{len(missing)} of {len(pictures)} images have no labels, "
            f"the first is {missing[0]}",
            expected=f"a file of the same name in {labels}, with any ending",
            fix="List the images that have labels in a manifest.csv, or move the others away",
        )
    return [Pair(path, by_stem[path.stem]) for path in pictures]


def _rasters(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _RASTERS)


def _some(values: list[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(values[:_SHOWN]) + more


def _class_table(path: Path) -> ClassTable:
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
