"""What of a benchmark dataset a setting uses, and what of it lies on disk. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from earthgate_geo.data.label_codes import Code
from earthgate_geo.data.pairs import Pair

OTHER_NAME = "other"
"""Class name of a code that is known to be none of the classes that the labels name."""

UNKNOWN_NAME = "unknown"
"""Class name of a code whose pixels neither train nor count."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images of a dataset and what their labels say.

    ``open_part`` of ``earthgate_geo.data.benchmarks.finder`` finds the files.
    """

    dataset: str
    """Name of the dataset; its folder below the root, and the layout in it, follow from it."""

    split: str
    """Which of its images, in the dataset's own words."""

    labels: Mapping[Code, str]
    """Class name, ``other`` or ``unknown`` by label code."""

    rest: str | None = None
    """The same for every code that ``labels`` leaves out; None refuses such a code."""

    tiles: tuple[str, ...] = ()
    """Only these of the split's images, by name; all without."""

    borders: Literal["kept", "eroded"] = "kept"
    """Whether the borders between objects are labelled; where a dataset's eroded labels are
    absent, its complete ones serve."""

    bands: tuple[int, ...] = (1, 2, 3)
    """File bands, 1-based, that the network sees."""

    scaling: Literal["byte", "scene"] = "byte"
    """Whether pixels are bytes, or stretched by the statistics of their image."""

    heights: bool = False
    """Whether the dataset's heights go with the images."""

    patch_px: int | None = None
    """Side of the patches that larger images are cut into; None keeps them whole."""

    images: int | None = None
    """Images that the publication counts; None where it does not say."""

    patches: int | None = None
    """Patches that the publication counts after cutting; None where it does not say."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What of a part lies on disk."""

    pairs: tuple[Pair, ...] = ()
    """Images that are there with their labels, in the dataset's order."""

    missing: tuple[str, ...] = ()
    """Paths of the files and folders that should be there and are not."""

    remarks: tuple[str, ...] = ()
    """What is not as in the publication."""
