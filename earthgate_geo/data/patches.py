"""Images cut into patches, and the dataset that reads them with their labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.pairs import Pair
from earthgate_geo.errors import BandError, DataError, InputError
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.raster.grid import Size, Tiling, Window
from earthgate_geo.raster.read import Pixels, Radiometry, Scene, SceneOptions, open_scene

Scaling = Literal["byte", "scene"]
"""What becomes 0 and 1: 0 and 255, or the percentiles of the whole image as in mapping."""

_GRAY = 0.5
_KEPT_BYTES = 256_000_000
_RGB = ("red", "green", "blue")
_BYTES = Radiometry((0.0,), (255.0,))


@dataclass(frozen=True)
class Patch:
    """A part of a pair."""

    pair: Pair
    """The image and its labels."""

    window: Window | None = None
    """The part, inside the image; None is the whole image."""


def cut(pairs: Iterable[Pair], patch_px: int) -> list[Patch]:
    """Cut images into square patches that cover them, the last row and column moved inward.

    An image smaller than a patch gives one of its own size. Every file is opened once.

    Source:
        The ISPRS tiles of Earth-Adapter and CrossEarth, arXiv:2410.22629, which a converter cuts
        at multiples of the patch: a tile of 6000 px gives 12 x 12 patches of 512 px.

    Raises:
        InputError: A file is not there.
        DataError: A file is not a raster, or labels are not of their image's size.
    """
    patches = []
    square = Size(patch_px, patch_px)
    for pair in pairs:
        with _open(pair.image) as image:
            size = image.grid.size
        if pair.label is not None:
            with _open(pair.label) as labels:
                _check_size(pair, image, labels)
        patches += [Patch(pair, window.clipped(size)) for window in Tiling(size, square, square)]
    return patches


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches with their labels, as a network trains on them or is scored on them.

    No file stays open: opening takes longer than reading a small one. Memory: the first patches
    stay, up to 256 MB in each process. Pickled without them.

    Args:
        patches: What to read.
        codes: What the labels mean; needed where a pair has labels.
        bands: Three 1-based file bands; without, each file says which are red, green and blue,
            and one band is shown three times.
        scaling: ``byte`` divides by 255, as the papers do; ``scene`` scales every image by its
            own 1st and 99th percentile, as mapping does.

    Raises:
        InputError: There are labels without ``codes``.
    """

    def __init__(
        self,
        patches: Sequence[Patch],
        *,
        codes: LabelCodes | None = None,
        bands: tuple[int, ...] | None = None,
        scaling: Scaling = "byte",
    ) -> None:
        labelled = [patch.pair.label for patch in patches if patch.pair.label is not None]
        if codes is None and labelled:
            raise InputError(
                found=f"the labels {labelled[0]} without a table of codes",
                expected="what their codes mean",
            )
        self.patches = tuple(patches)
        self._codes, self._bands, self._scaling = codes, bands, scaling
        self._radiometry: dict[str, Radiometry] = {}
        self._kept: dict[int, _Read] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.patches)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}, "_kept_bytes": 0}

    def without_labels(self) -> "PatchDataset":
        """Return the same images with every pixel ``UNKNOWN``; their labels are never read."""
        return PatchDataset(
            [replace(patch, pair=replace(patch.pair, label=None)) for patch in self.patches],
            bands=self._bands,
            scaling=self._scaling,
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read a patch.

        Returns:
            ``image`` float32 (3, row, col) in 0..1, grey where the file has no data; ``mask``
            int64 (row, col), class indices, ``OTHER`` or ``UNKNOWN``; ``valid`` bool (row, col),
            True where the image has data.

        Raises:
            InputError: A file is not there, or its bands are unclear.
            DataError: A file is damaged or of another size than its partner, bytes are expected
                and it holds others, or a label means nothing.
        """
        read = self._kept.get(index) or self._read(self.patches[index])
        if index not in self._kept and self._kept_bytes < _KEPT_BYTES:
            self._kept[index] = read
            self._kept_bytes += read.pixels.values.nbytes + 2 * read.labels.nbytes
        image = read.radiometry.scale(read.pixels.values)
        image[:, ~read.pixels.valid] = _GRAY
        return {
            "image": torch.from_numpy(image),
            "mask": torch.from_numpy(read.labels.astype(np.int64)),
            "valid": torch.from_numpy(read.pixels.valid.copy()),
        }

    def _read(self, patch: Patch) -> "_Read":
        with _open(patch.pair.image) as image:
            window = patch.window or Window(0, 0, image.grid.size)
            bands = self._bands or image.choose_bands(_RGB)
            pixels = image.read(window, _checked(bands, image))
            radiometry = self._scale(image, bands) if pixels.valid.any() else _BYTES
        labels = self._labels(patch.pair, image, window)
        labels[~pixels.valid] = UNKNOWN
        return _Read(pixels, radiometry, labels)

    def _scale(self, image: Scene, bands: tuple[int, ...]) -> Radiometry:
        if self._scaling == "scene":
            if image.path not in self._radiometry:
                self._radiometry[image.path] = image.radiometry(bands)
            return self._radiometry[image.path]
        if image.dtype != "uint8":
            raise DataError(
                found=f"{image.path} holds {image.dtype}",
                expected="bytes, to be divided by 255",
                fix="Scale by percentiles instead, or convert it to bytes",
            )
        return _BYTES

    def _labels(self, pair: Pair, image: Scene, window: Window) -> NDArray[np.uint8]:
        if pair.label is None or self._codes is None:
            return np.full((window.size.rows, window.size.cols), UNKNOWN, np.uint8)
        with _open(pair.label) as labels:
            _check_size(pair, image, labels)
            # Whatever the file calls nodata is a code like the others: 0 is often a class.
            raw = labels.read(window, range(1, min(labels.count, 3) + 1)).values
        return self._codes.read(raw, pair.label)


@dataclass(frozen=True)
class _Read:
    pixels: Pixels
    radiometry: Radiometry
    labels: NDArray[np.uint8]


def _open(path: Path) -> Scene:
    return open_scene(path, SceneOptions(placed=False))


def _check_size(pair: Pair, image: Scene, labels: Scene) -> None:
    size, other = image.grid.size, labels.grid.size
    if size != other:
        raise DataError(
            found=f"the labels {pair.label} are {other.rows} x {other.cols} px, their image "
            f"{pair.image} {size.rows} x {size.cols} px",
            expected="one size, pixel on pixel",
        )


def _checked(bands: tuple[int, ...], image: Scene) -> tuple[int, ...]:
    if not all(1 <= band <= image.count for band in bands):
        raise BandError(
            found=f"bands {', '.join(map(str, bands))} of {image.path}",
            expected=f"numbers in 1..{image.count}",
        )
    return bands
