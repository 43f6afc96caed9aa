"""Random crops of training patches, varied in size, mirrored and varied in colour."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.raster.bands import NO_HEIGHT

Item = dict[str, Tensor]
"""What ``PatchDataset`` reads: ``image``, ``mask`` and ``valid``."""

_SCALES = (0.5, 2.0)
_TRIES = 10
_MOST_OF_ONE_CLASS = 0.75
_COUNTED_PX = 96
"""Pixels per side of a crop from which the shares of its classes are estimated."""

_BANDS = 3
"""Channels of an image before its heights."""

HEIGHTS_LOST = 0.1
"""Share of varied tiles that lose their heights: a model must do without where none are."""

_BRIGHTNESS = 32 / 255
_FACTORS = (0.5, 1.5)
_HUE_TURNS = 0.1
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_YIQ)


def random_crop(item: Item, crop_px: int, rng: np.random.Generator) -> Item:
    """Cut a square out of a patch: resized by 0.5 to 2, mirrored half of the time, recoloured.

    Of ten places the first is taken where no class has more than three quarters of the labelled
    pixels, else the most mixed one. Where the patch ends before the crop, on the right and below,
    the image continues in its mean colour, unknown and invalid. Colours are those of the bands:
    heights keep their values, but a tenth of the crops lose them all.

    Source:
        RandomResize, RandomCrop (cat_max_ratio 0.75), RandomFlip and PhotoMetricDistortion of
        Earth-Adapter's code, arXiv:2504.06220. We resize what is cut instead of cutting what is
        resized, shrink with a low-pass filter, keep the most mixed place instead of the last, and
        turn hue and saturation in YIQ instead of HSV.

    Args:
        item: ``image`` (channel, row, col), ``mask`` and ``valid`` (row, col), as
            ``PatchDataset`` reads them.
        crop_px: Height and width of the result.
        rng: Source of all randomness.
    """
    side = max(1, round(crop_px / rng.uniform(*_SCALES)))
    crop = _resized(_mixed_place(item, side, rng), crop_px / side)
    if rng.random() < 0.5:
        crop = {name: values.flip(-1) for name, values in crop.items()}
    bands, heights = crop["image"][:_BANDS], crop["image"][_BANDS:]
    if len(heights) and rng.random() < HEIGHTS_LOST:
        heights = torch.full_like(heights, NO_HEIGHT)
    return _padded(crop | {"image": torch.cat([_recolored(bands, rng), heights])}, crop_px)


def mirrored_crop(item: Item, crop_px: int, rng: np.random.Generator) -> Item:
    """Cut a square as ``plain_crop`` does and turn each of its axes half of the time."""
    crop = plain_crop(item, crop_px, rng)
    axes = [axis for axis in (-2, -1) if rng.random() < 0.5]
    return {name: values.flip(axes) for name, values in crop.items()}


def plain_crop(item: Item, crop_px: int, rng: np.random.Generator) -> Item:
    """Cut a square out of a patch at a random place; it ends as in ``random_crop``."""
    return _padded(_any_place(item, crop_px, rng), crop_px)


def random_blocks(
    rows: int, cols: int, *, share: float, block_px: int, rng: np.random.Generator
) -> Tensor:
    """Return a bool mask (rows, cols) of square blocks, each True with the probability ``share``.

    Blocks begin at the upper left corner; those at the other edges may be cut off.
    """
    drawn = rng.random((-(-rows // block_px), -(-cols // block_px))) < share
    blocks = drawn.repeat(block_px, axis=0).repeat(block_px, axis=1)
    return torch.from_numpy(np.ascontiguousarray(blocks[:rows, :cols]))


def _any_place(item: Item, side: int, rng: np.random.Generator) -> Item:
    rows, cols = item["mask"].shape
    row = int(rng.integers(max(rows - side, 0) + 1))
    col = int(rng.integers(max(cols - side, 0) + 1))
    return {name: values[..., row : row + side, col : col + side] for name, values in item.items()}


def _mixed_place(item: Item, side: int, rng: np.random.Generator) -> Item:
    best, best_share = item, math.inf
    for _ in range(_TRIES):
        crop = _any_place(item, side, rng)
        share = _commonest_share(crop["mask"])
        if share < best_share:
            best, best_share = crop, share
        if share <= _MOST_OF_ONE_CLASS:
            break
    return best


def _commonest_share(mask: Tensor) -> float:
    """Estimate the share of the commonest class among labelled pixels; 1 where there are none."""
    step = -(-max(mask.shape) // _COUNTED_PX)
    counts = np.bincount(mask[::step, ::step].numpy().ravel(), minlength=UNKNOWN + 1)[:UNKNOWN]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def resized_apart(image: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
    """Bring an image to another size whose heights, if any, are averages of those that there are.

    Args:
        image: (channel, row, col), three bands and perhaps heights.
        resize: Brings channels of any number to the size.
    """
    bands, heights = image[:_BANDS], image[_BANDS:]
    if not len(heights):
        return resize(bands)
    known = heights != NO_HEIGHT
    share, summed = resize(known.float()), resize(heights.masked_fill(~known, 0))
    found = torch.where(share > 0, (summed / share).clamp(0, 1), NO_HEIGHT)
    return torch.cat([resize(bands), found])


def _resized(item: Item, scale: float) -> Item:
    if scale == 1:
        return item
    rows, cols = (max(1, round(length * scale)) for length in item["mask"].shape)

    def resize(image: Tensor) -> Tensor:
        return functional.interpolate(
            image[None], (rows, cols), mode="bilinear", antialias=scale < 1
        )[0]

    image = resized_apart(item["image"], resize)
    # The pixel under the middle of each new one, as torch's "nearest-exact", but for integers.
    down = ((np.arange(rows) + 0.5) * (item["mask"].shape[0] / rows)).astype(np.intp)
    across = ((np.arange(cols) + 0.5) * (item["mask"].shape[1] / cols)).astype(np.intp)
    mask, valid = (item[name].numpy()[down][:, across] for name in ("mask", "valid"))
    return {"image": image, "mask": torch.from_numpy(mask), "valid": torch.from_numpy(valid)}


def _recolored(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary brightness, contrast, saturation and hue, each half of the time, in one step."""
    brightness, turns = (
        rng.uniform(-most, most) * rng.integers(2) for most in (_BRIGHTNESS, _HUE_TURNS)
    )
    contrast, saturation = (rng.uniform(*_FACTORS) if rng.integers(2) else 1.0 for _ in range(2))
    along, aside = (saturation * part(2 * math.pi * turns) for part in (math.cos, math.sin))
    in_yiq = np.array([[1, 0, 0], [0, along, -aside], [0, aside, along]])
    matrix = contrast * _FROM_YIQ @ in_yiq @ _YIQ
    turned = torch.from_numpy(matrix).float() @ (image + brightness).flatten(1)
    return turned.view_as(image).clamp_(0, 1)


def _padded(item: Item, crop_px: int) -> Item:
    rows, cols = item["mask"].shape
    if (rows, cols) == (crop_px, crop_px):
        return item
    pads = (0, crop_px - cols, 0, crop_px - rows)
    mask = functional.pad(item["mask"], pads, value=UNKNOWN)
    valid = functional.pad(item["valid"], pads, value=False)
    image = item["image"].mean((1, 2))[:, None, None].expand(-1, crop_px, crop_px).clone()
    image[_BANDS:] = NO_HEIGHT
    image[:, :rows, :cols] = item["image"]
    return {"image": image, "mask": mask, "valid": valid}
