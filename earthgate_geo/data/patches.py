"""Images cut into patches, and the dataset that reads them with their labels."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from earthgate_geo.data.augment import resized_apart
from earthgate_geo.data.heights import (
    UNSCALED,
    HeightLayer,
    height_channel,
    height_radiometry,
    known_heights,
    open_heights,
)
from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.pairs import Pair
from earthgate_geo.data.scenes import plan_tiles, resized
from earthgate_geo.errors import BandError, DataError, InputError
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.raster.bands import NO_HEIGHT, RGB
from earthgate_geo.raster.grid import Grid, Size, Tiling, Window
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

    grid: Grid | None = None
    """The image's, onto which its heights are brought; None if they lie on it pixel on pixel."""


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
                check_size(image, labels)
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
    grid = image.grid if pair.height and image.grid.crs else None
    if gsd_m is None or not image.grid.crs:
        square = Size(patch_px, patch_px)
        return [Patch(pair, window, grid=grid) for window in _parts(size, square)]
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
        Patch(pair, window, _scaled(window.size, down, across), grid=grid)
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
    """Return the percentiles of scenes that are cut into several images, for ``PatchDataset``.

    Images belong together, and so do their heights, whose lines of the manifest have the same
    ``scene``; others are left out. All of a scene's images together give as many samples as one
    decimated read of the whole.

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
        heights = height_radiometry(np.concatenate([_heights_in(p, longest_px) for p in tiles]))
        if heights is not None:
            found |= {_height_key(pair): heights for pair in tiles}
    return found


def _height_key(pair: Pair) -> str:
    """Return what stands for the percentiles of a pair's heights: one file may serve many."""
    return f"{pair.image} heights"


def _heights_in(pair: Pair, longest_px: int) -> NDArray[np.float32]:
    """Return some of the heights of a pair's file, (pixel,)."""
    if pair.height is None:
        return np.empty(0, np.float32)
    with _open(pair.height) as dsm:
        return known_heights(dsm, dsm.preview((1,), longest_px=longest_px)).ravel()


def _sample(pair: Pair, bands: tuple[int, ...] | None, longest_px: int) -> NDArray[Any]:
    """Return some of an image's valid pixels, (band, pixel)."""
    with _open(pair.image) as image:
        pixels = image.preview(chosen_bands(image, bands), longest_px=longest_px)
    samples: NDArray[Any] = pixels.values[:, pixels.valid]
    return samples


class PixelHeights:
    """Heights that lie on an image pixel on pixel, as those of benchmarks do.

    Args:
        dsm: The first band counts.
        image: The image.

    Raises:
        DataError: They are not of one size.
    """

    def __init__(self, dsm: Scene, image: Scene) -> None:
        self._dsm = dsm
        check_size(image, dsm, called="heights")

    def read(self, window: Window) -> Pixels:
        """Return the heights (1, row, col) of a window inside the image, and where they are."""
        heights = known_heights(self._dsm, self._dsm.read(window, (1,)))
        known = np.isfinite(heights)
        return Pixels(np.where(known, heights, np.float32(0))[None], known)

    def radiometry(self) -> Radiometry:
        """Return the percentiles of one decimated read, as ``HeightLayer`` does."""
        return height_radiometry(known_heights(self._dsm, self._dsm.preview((1,)))) or UNSCALED

    def close(self) -> None:
        """Let go of the file."""
        self._dsm.close()


def heights_of(pair: Pair, image: Scene, grid: Grid | None) -> HeightLayer | PixelHeights:
    """Open the heights of a pair that has some.

    Args:
        pair: The pair.
        image: Its image.
        grid: The image's, onto which they are brought; None if they lie on it pixel on pixel.

    Raises:
        EarthgateError: As ``HeightLayer`` and ``PixelHeights`` say.
    """
    if grid is not None:
        return open_heights(str(pair.height), grid)
    dsm = _open(Path(str(pair.height)))
    try:
        return PixelHeights(dsm, image)
    except BaseException:
        dsm.close()
        raise


def check_heights(pair: Pair, image: Scene) -> None:
    """Refuse heights of a pair that cannot be used, before any trains.

    Raises:
        EarthgateError: As ``heights_of`` says, or there is no height in the image.
    """
    with closing(heights_of(pair, image, image.grid if image.grid.crs else None)) as layer:
        layer.radiometry()


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
        heights: Whether a channel of heights follows the bands.

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
        heights: bool = False,
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
        self._heights = heights
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
            heights=self._heights,
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read a patch.

        Returns:
            ``image`` float32 (channel, row, col): three bands in 0..1, grey where the file has no
            data, and with heights these, from 0 to 1 between the percentiles of their file,
            ``NO_HEIGHT`` where there is none; ``mask`` int64 (row, col), class indices, ``OTHER``
            or ``UNKNOWN``; ``valid`` bool (row, col), True where the image has data.

        Raises:
            InputError: A file is not there, or its bands are unclear.
            DataError: A file is damaged or of another size than its partner, bytes are expected
                and it holds others, or a label means nothing.
        """
        read = self._kept.get(index) or self._read(self.patches[index])
        if index not in self._kept and self._kept_bytes < _KEPT_BYTES:
            self._kept[index] = read
            self._kept_bytes += read.nbytes
        image = read.radiometry.scale(read.pixels.values)
        image[:, ~read.pixels.valid] = _GRAY
        if read.heights is not None:
            image = np.concatenate([image, read.heights])
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
            heights = self._heights_of(patch, image, window) if self._heights else None
        labels = self._labels(patch, image, window)
        labels[~pixels.valid] = UNKNOWN
        return _Read(pixels, radiometry, labels, heights)

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

    def _heights_of(self, patch: Patch, image: Scene, window: Window) -> NDArray[np.float32]:
        """Return the channel of heights of a window, (1, row, col)."""
        if patch.pair.height is None:
            return np.full((1, window.size.rows, window.size.cols), NO_HEIGHT, np.float32)
        with closing(heights_of(patch.pair, image, patch.grid)) as layer:
            pixels = layer.read(window)
            key = _height_key(patch.pair)
            if key not in self._radiometry:
                self._radiometry[key] = layer.radiometry()
        scaled = self._radiometry[key].scale(pixels.values)
        return height_channel(scaled[0], pixels.valid)[None]

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
            check_size(image, labels)
            # Whatever the file calls nodata is a code like the others: 0 is often a class.
            raw = labels.read(window, range(1, min(labels.count, 3) + 1)).values
        return self._codes.read(raw, pair.label)


@dataclass(frozen=True)
class _Read:
    pixels: Pixels
    radiometry: Radiometry
    labels: NDArray[np.uint8]
    heights: NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        heights = 0 if self.heights is None else self.heights.nbytes
        return self.pixels.values.nbytes + 2 * self.labels.nbytes + heights


def _shown(item: dict[str, Tensor], network: Size) -> dict[str, Tensor]:
    """Bring a patch to the size at which a network sees it; labels are those of pixel centres."""
    rows, cols = item["mask"].shape
    down = torch.arange(network.rows).add(0.5).mul(rows / network.rows).long()
    across = torch.arange(network.cols).add(0.5).mul(cols / network.cols).long()
    near = {name: item[name][down][:, across] for name in ("mask", "valid")}
    image = resized_apart(item["image"], lambda channels: resized(channels, network))
    return {"image": image} | near


def _open(path: Path) -> Scene:
    return open_scene(path, SceneOptions(placed=False))


def check_size(image: Scene, beside: Scene, *, called: str = "labels") -> None:
    """Refuse labels or heights that are not of their image's size.

    Raises:
        DataError: As the sentence says.
    """
    size, other = image.grid.size, beside.grid.size
    if size != other:
        raise DataError(
            found=f"the {called} {beside.path} are {other.rows} x {other.cols} px, their image "
            f"{image.path} {size.rows} x {size.cols} px",
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
