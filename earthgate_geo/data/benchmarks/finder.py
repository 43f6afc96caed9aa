"""One door to the benchmark datasets: from a part to its files and their meaning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from earthgate_geo.data.benchmarks import folders, isprs, loveda, places
from earthgate_geo.data.benchmarks.part import OTHER_NAME, UNKNOWN_NAME, Found, Part
from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.pairs import Pair
from earthgate_geo.errors import ClassNameError, DataError
from earthgate_geo.metrics import OTHER, UNKNOWN

_Finder = Callable[[Path, Part], Found]

_HOMES: dict[str, tuple[str, _Finder]] = {
    "casid": ("CASID", folders.find),
    "deepglobe": ("DeepGlobe", folders.find),
    "hunan": ("HunanMultimodalDataset", folders.find),
    "loveda": ("LoveDA", loveda.find),
    "massachusetts": ("Massachusetts", folders.find),
    "places": ("fair_buildings", places.find),
    "potsdam": ("Potsdam", isprs.find_potsdam),
    "rescuenet": ("RescueNet", folders.find),
    "vaihingen": ("Vaihingen", isprs.find_vaihingen),
    "whu-aerial": ("WHU-Building", folders.find),
    "whu-satellite": ("WHU-Building", folders.find),
}
"""Folder of a dataset below the root, and who knows what lies in it."""


@dataclass(frozen=True, kw_only=True)
class PartData:
    """A part that is there: feed it to ``data.patches.cut`` and ``PatchDataset``."""

    pairs: tuple[Pair, ...]
    """Images with their labels, in the dataset's order."""

    codes: LabelCodes
    """What the labels mean in the classes that were asked for."""

    remarks: tuple[str, ...] = ()
    """What is not as in the publication."""


def find_part(root: Path, part: Part) -> Found:
    """Look for the files of a part; only folders and lists are read.

    Args:
        root: Folder that holds one folder per dataset.
        part: Which images.

    Raises:
        DataError: The dataset's own list of its files cannot be read.
    """
    folder, find = _HOMES[part.dataset]
    home = root / folder
    return find(home, part) if home.is_dir() else Found(missing=(str(home),))


def open_part(root: Path, part: Part, *, classes: Sequence[str]) -> PartData:
    """Return the images of a part and what their labels mean in ``classes``.

    Args:
        root: Folder that holds one folder per dataset.
        part: Which images.
        classes: Class names by value: a setting's, or those of a model that has them all.

    Raises:
        DataError: Some of it is missing; the sentence names the first and says how many.
        ClassNameError: The labels name a class that is not in ``classes``.
    """
    codes = _codes(part, classes)
    found = find_part(root, part)
    if found.missing or not found.pairs:
        first, *others = found.missing or (f"an image of {part.dataset} {part.split}",)
        raise DataError(
            found=f"{first} is missing" + (f", and {len(others)} more" if others else ""),
            expected=f"{part.dataset} {part.split} as it is published",
            fix=f"See what is there: earthgate bench --check {root}",
        )
    return PartData(pairs=found.pairs, codes=codes, remarks=found.remarks)


def _codes(part: Part, classes: Sequence[str]) -> LabelCodes:
    values = {OTHER_NAME: OTHER, UNKNOWN_NAME: UNKNOWN}
    values |= {name: value for value, name in enumerate(classes)}
    absent = sorted({*part.labels.values(), part.rest or UNKNOWN_NAME} - values.keys())
    if absent:
        raise ClassNameError(
            found=f"{part.dataset} labels {', '.join(absent)}",
            expected=f"some of {', '.join(classes)}",
        )
    return LabelCodes(
        values={code: values[name] for code, name in part.labels.items()},
        rest=None if part.rest is None else values[part.rest],
    )
