"""Which settings can run on the data at hand."""

from pathlib import Path
from typing import Any

from earthgate_geo.bench.settings import SETTINGS
from earthgate_geo.data.benchmarks.finder import find_part
from earthgate_geo.data.benchmarks.part import Found, Part
from earthgate_geo.data.patches import cut
from earthgate_geo.errors import EarthgateError, InputError

Document = dict[str, Any]

_SHOWN = 3
"""Missing paths that are listed of a part."""


def check_settings(root: Path) -> Document:
    """Say what a folder of datasets holds, setting by setting.

    Images are counted by name; only those whose patches a paper counts are opened, for their
    size.

    Args:
        root: Folder that holds one folder per dataset.

    Returns:
        ``root`` and ``settings``, each with ``name``, ``found`` (nothing that should be there is
        missing), ``complete`` (and every count is the published one) and ``parts`` by role:
        ``dataset``, ``split``, ``images`` and ``patches`` (``found`` and ``published``, None
        where unknown), ``missing`` (the first paths), ``missing_count`` and ``remarks``: what is
        not as published, or cannot be read.

    Raises:
        InputError: There is no such folder.
    """
    if not root.is_dir():
        raise InputError(found=f"{root} is not a folder", expected="a folder of datasets")
    looked: dict[tuple[object, ...], Document] = {}
    settings = []
    for setting in SETTINGS.values():
        parts = {}
        for role, part in setting.parts.items():
            key = (part.dataset, part.split, part.tiles, part.borders, part.heights)
            if key not in looked:
                looked[key] = _look(root, part)
            parts[role] = looked[key]
        states = {
            state: all(part[state] for part in parts.values()) for state in ("found", "complete")
        }
        settings.append({"name": setting.name, **states, "parts": parts})
    return {"root": str(root), "settings": settings}


def _look(root: Path, part: Part) -> Document:
    try:
        found = find_part(root, part)
        patches = _patches(found, part)
    except EarthgateError as error:
        found, patches = Found(remarks=(str(error),)), None
    counts = {
        "images": {"found": len(found.pairs), "published": part.images},
        "patches": {"found": patches, "published": part.patches},
    }
    runs = bool(found.pairs) and not found.missing
    return {
        "dataset": part.dataset,
        "split": part.split,
        "found": runs,
        "complete": runs and all(c["published"] in (None, c["found"]) for c in counts.values()),
        **counts,
        "missing": list(found.missing[:_SHOWN]),
        "missing_count": len(found.missing),
        "remarks": list(found.remarks),
    }


def _patches(found: Found, part: Part) -> int | None:
    if part.patch_px is None or part.patches is None or not found.pairs:
        return None
    return len(cut(found.pairs, part.patch_px))
