"""Images cut into patches, and the dataset that reads them with their labels."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.pairs import Pair
from earthgate_geo.data.scenes import plan_tiles, resized
from earthgate_geo.errors import BandError, DataError, InputError
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.raster.bands import RGB
from earthgate_geo.raster.grid import Size, Tiling, Window
from earthgate_geo.raster.read import (
    COARSE_PX,
    Pixels,
    Radiometry,
    Scene,
    SceneOptions,
    open_scene,
)

Scaling = Literal["byte", "scene"]
"""What becomes 0 and 1: 0 and 255, or the percentiles of the whole image as in mapping."""

_GRAY = 0.5
_KEPT_BYTES = 256_000_000
_BYTES = Radiometry((0.0,), (255.0,))


class Labels(Protocol):
    """What is known of an image's pixels, e.g. ``data.labels.LabelLayer``."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the codes (row, col) of a window inside the image."""

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""


@dataclass(frozen=True)
class Patch:
    """A part of a pair."""

    pair: Pair
    """The image and its labels."""

    window: Window | None = None
    """The part, inside the image; None is the whole image."""

    network: Size | None = None
    """Size at which a network sees it; None is its own."""

    labels: Labels | None = None
    """Where its labels come from; None is the pair's file, pixel on pixel."""


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
                check_size(pair, image, labels)
        patches += [Patch(pair, window.clipped(size)) for window in Tiling(size, square, square)]
    return patches


def patches_of(
    pair: Pair, image: Scene, patch_px: int, *, gsd_m: float | None = None
) -> list[Patch]:
    """Cut one image into equal patches that do not overlap: every pixel trains as often.

    Args:
        pair: The image and its labels.
        image: The image, open.
        patch_px: Side of a patch, in pixels that a network sees; 0.67 to 1.5 times as much where
            the image is no multiple of it.
        gsd_m: Ground size of these in metres; the image's own pixels without, and where nobody
            knows how large they are.

    Raises:
        InputError: ``gsd_m`` is more than 32 times away from the image's.
    """
    size = image.grid.size
    if gsd_m is None or not image.grid.crs:
        return [Patch(pair, window) for window in _parts(size, Size(patch_px, patch_px))]
    plan = plan_tiles(
        image.grid,
        tile_px=patch_px,
        stride_px=patch_px,
        gsd_min_m=gsd_m,
        gsd_max_m=gsd_m,
        forced_gsd_m=gsd_m,
    )
    down, across = patch_px / plan.tile.rows, patch_px / plan.tile.cols
    return [
        Patch(pair, window, _scaled(window.size, down, across))
        for window in _parts(size, plan.tile)
    ]


def _parts(size: Size, wanted: Size) -> Iterator[Window]:
    """Yield equal parts of about the wanted size, top row first."""
    rows, cols = _edges(size.rows, wanted.rows), _edges(size.cols, wanted.cols)
    for row, row_stop in pairwise(rows):
        for col, col_stop in pairwise(cols):
            yield Window(row, col, Size(row_stop - row, col_stop - col))


def _edges(length: int, wanted: int) -> list[int]:
    count = max(1, round(length / wanted))
    return [index * length // count for index in range(count + 1)]


def _scaled(size: Size, down: float, across: float) -> Size:
    return Size(max(1, round(size.rows * down)), max(1, round(size.cols * across)))


def joint_radiometry(
    pairs: Iterable[Pair], *, bands: tuple[int, ...] | None = None
) -> dict[str, Radiometry]:
    """Return the percentiles of scenes that are cut into several images, by the images' paths.

    Images belong together whose lines of the manifest have the same ``scene``; others are left
    out. All of a scene's images together give as many samples as one decimated read of the whole.

    Args:
        pairs: The images.
        bands: As in ``PatchDataset``.

    Raises:
        EarthgateError: An image cannot be read, or its bands are unclear.
    """
    scenes: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.row.get("scene"):
            scenes[pair.row["scene"]].append(pair)
    found: dict[str, Radiometry] = {}
    for tiles in scenes.values():
        longest_px = max(1, math.ceil(COARSE_PX / math.sqrt(len(tiles))))
        samples = np.concatenate([_sample(pair, bands, longest_px) for pair in tiles], axis=1)
        if samples.shape[1]:
            low, high = np.nanpercentile(samples, (1, 99), axis=1).tolist()
            radiometry = Radiometry(tuple(low), tuple(high))
            found |= {str(pair.image): radiometry for pair in tiles}
    return found


def _sample(pair: Pair, bands: tuple[int, ...] | None, longest_px: int) -> NDArray[Any]:
    """Return some of an image's valid pixels, (band, pixel)."""
    with _open(pair.image) as image:
        pixels = image.preview(chosen_bands(image, bands), longest_px=longest_px)
    samples: NDArray[Any] = pixels.values[:, pixels.valid]
    return samples


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
        radiometry: Percentiles of images by path, in place of their own; see
            ``joint_radiometry``.

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
        radiometry: Mapping[str, Radiometry] | None = None,
    ) -> None:
        labelled = [patch.pair.label for patch in patches if patch.pair.label is not None]
        if codes is None and labelled:
            raise InputError(
                found=f"the labels {labelled[0]} without a table of codes",
                expected="what their codes mean",
            )
        self.patches = tuple(patches)
        self._codes, self._bands, self._scaling = codes, bands, scaling
        self._radiometry = dict(radiometry or {})
        self._kept: dict[int, _Read] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.patches)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}, "_kept_bytes": 0}

    def without_labels(self) -> "PatchDataset":
        """Return the same images with every pixel ``UNKNOWN``; their labels are never read."""
        return PatchDataset(
            [
                replace(patch, pair=replace(patch.pair, label=None), labels=None)
                for patch in self.patches
            ],
            bands=self._bands,
            scaling=self._scaling,
            radiometry=self._radiometry,
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
        item = {
            "image": torch.from_numpy(image),
            "mask": torch.from_numpy(read.labels.astype(np.int64)),
            "valid": torch.from_numpy(read.pixels.valid.copy()),
        }
        network = self.patches[index].network
        return item if network is None else _shown(item, network)

    def _read(self, patch: Patch) -> "_Read":
        with _open(patch.pair.image) as image:
            window = patch.window or Window(0, 0, image.grid.size)
            bands = chosen_bands(image, self._bands)
            pixels = image.read(window, bands)
            radiometry = self._scale(image, bands) if pixels.valid.any() else _BYTES
        labels = self._labels(patch, image, window)
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

    def _labels(self, patch: Patch, image: Scene, window: Window) -> NDArray[np.uint8]:
        pair = patch.pair
        if pair.label is None or self._codes is None:
            return np.full((window.size.rows, window.size.cols), UNKNOWN, np.uint8)
        if patch.labels is not None:
            try:
                return self._codes.read(patch.labels.read(window)[None], pair.label)
            finally:
                patch.labels.close()
        with _open(pair.label) as labels:
            check_size(pair, image, labels)
            # Whatever the file calls nodata is a code like the others: 0 is often a class.
            raw = labels.read(window, range(1, min(labels.count, 3) + 1)).values
        return self._codes.read(raw, pair.label)


@dataclass(frozen=True)
class _Read:
    pixels: Pixels
    radiometry: Radiometry
    labels: NDArray[np.uint8]


def _shown(item: dict[str, Tensor], network: Size) -> dict[str, Tensor]:
    """Bring a patch to the size at which a network sees it; labels are those of pixel centres."""
    rows, cols = item["mask"].shape
    down = torch.arange(network.rows).add(0.5).mul(rows / network.rows).long()
    across = torch.arange(network.cols).add(0.5).mul(cols / network.cols).long()
    near = {name: item[name][down][:, across] for name in ("mask", "valid")}
    return {"image": resized(item["image"], network)} | near


def _open(path: Path) -> Scene:
    return open_scene(path, SceneOptions(placed=False))


def check_size(pair: Pair, image: Scene, labels: Scene) -> None:
    """Refuse labels that are not of their image's size.

    Raises:
        DataError: As the sentence says.
    """
    size, other = image.grid.size, labels.grid.size
    if size != other:
        raise DataError(
            found=f"the labels {pair.label} are {other.rows} x {other.cols} px, their image "
            f"{pair.image} {size.rows} x {size.cols} px",
            expected="one size, pixel on pixel",
        )


def chosen_bands(image: Scene, bands: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the file bands that a network sees: ``bands``, or those the file says.

    Raises:
        BandError: They are not there, or the file does not say which they are.
    """
    if bands is None:
        return image.choose_bands(RGB)
    if not all(1 <= band <= image.count for band in bands):
        raise BandError(
            found=f"bands {', '.join(map(str, bands))} of {image.path}",
            expected=f"numbers in 1..{image.count}",
        )
    return bands
