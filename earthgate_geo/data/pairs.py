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
_LABELS, _DSM = "_labels", "_dsm"
COMPANIONS = (_LABELS, "_truth", _DSM)
"""Endings of files beside a scene that are no scenes."""

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

    height: Path | None = None
    """A raster whose first band holds heights; None where nobody measured any."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it has: image, labels, heights."""
        return tuple(path for path in (self.image, self.label, self.height) if path is not None)


def open_pairs(
    root: Path, *, where: Mapping[str, str] | None = None, heights: bool = False
) -> tuple[list[Pair], ClassTable | None]:
    """List the images of a folder, with their labels and classes if it has them.

    With a ``manifest.csv`` (columns ``image`` and ``label``, paths from the folder, ``label`` may
    be empty or absent, and so may ``dsm``; images of one ``scene`` share their statistics) its
    lines in its order, else the files of ``images/`` by name, each with the file of the same stem
    in ``labels/`` and in ``dsm/``, else the rasters in the folder itself, each with
    ``<stem>_labels`` and ``<stem>_dsm`` beside it, where files that end in ``_labels``, ``_truth``
    or ``_dsm`` are no images. The classes come from ``classes.json``:
    ``{"0": "water", "1": "land"}`` or a list of
    ``{"value": 0, "name": "water", "color": "#3f86c6"}``, where the colours may be left out.

    Args:
        root: The folder.
        where: Wanted value by column of the manifest; all of them must hold.
        heights: Whether heights are looked for; without, no pair has any.

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
        pairs = _listed(manifest, where or {}, ("label", "dsm") if heights else ("label",))
    elif where:
        column, value = next(iter(where.items()))
        raise InputError(
            found=f"a choice by {column}={value} in {root}, which has no manifest.csv",
            expected="a manifest with that column",
        )
    elif images.is_dir():
        pairs = _matched(
            _rasters(images), (root / "labels", ""), (root / "dsm", ""), heights=heights
        )
        if not pairs:
            raise DataError(
                found=f"{images} holds no image",
                expected=f"files that end in {', '.join(sorted(_RASTERS))}",
            )
    else:
        scenes = [path for path in _rasters(root) if not path.stem.endswith(COMPANIONS)]
        pairs = _matched(scenes, (root, _LABELS), (root, _DSM), heights=heights)
        if not pairs:
            raise DataError(
                found=f"{root} holds neither images nor images/ nor a manifest.csv",
                expected="scene.tif beside scene_labels.gpkg or scene_labels.tif, images/ beside "
                "labels/ with files of the same names, or a manifest.csv with the columns image "
                "and label",
            )
    classes = root / "classes.json"
    return pairs, read_classes(classes) if classes.is_file() else None


def _listed(manifest: Path, where: Mapping[str, str], beside: Sequence[str]) -> list[Pair]:
    """Read a manifest and of its columns of files beside the images those of ``beside``."""
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
    pairs = [_pair(manifest.parent, row, beside) for row in rows]
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


def _pair(root: Path, row: Mapping[str, str], beside: Sequence[str]) -> Pair:
    files = {column: root / row[column] for column in beside if row.get(column)}
    return Pair(root / row["image"], files.get("label"), row, files.get("dsm"))


def _missing(pairs: list[Pair]) -> list[Path]:
    files = dict.fromkeys(path for pair in pairs for path in pair.files)
    return [path for path in files if not path.is_file()]


_Place = tuple[Path, str]
"""A folder, and what the stems of its files end in after the image's."""


def _matched(pictures: list[Path], labels: _Place, dsm: _Place, *, heights: bool) -> list[Pair]:
    """Pair images with the files that have their stem."""
    drawn = _beside(pictures, labels, _RASTERS | _VECTORS, called="labels")
    measured = _beside(pictures, dsm, _RASTERS, called="heights") if heights else {}
    return [Pair(path, drawn.get(path), height=measured.get(path)) for path in pictures]


def _beside(
    pictures: list[Path], place: _Place, suffixes: frozenset[str], *, called: str
) -> dict[Path, Path]:
    """Return the files of a folder that belong to an image, by image."""
    folder, ending = place
    if not folder.is_dir():
        return {}
    by_stem: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for path in pictures:
        images.setdefault(path.stem + ending, path)
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes):
        other = by_stem.setdefault(path.stem, path)
        if other != path and path.stem in images:
            raise DataError(
                found=f"{other} and {path} are {called} of the same image",
                expected="one file of each name",
            )
    for path in pictures:
        other = images[path.stem + ending]
        if other != path and path.stem + ending in by_stem:
            raise DataError(
                found=f"{other} and {path} have the same {called}, {by_stem[path.stem + ending]}",
                expected="one image of each name",
                fix="Move the copy elsewhere",
            )
    stems = {path: path.stem + ending for path in pictures}
    return {path: by_stem[stem] for path, stem in stems.items() if stem in by_stem}


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
