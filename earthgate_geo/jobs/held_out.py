"""How well a model does on patches that never trained."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earthgate_geo.data.patches import PatchDataset
from earthgate_geo.metrics import UNKNOWN, Confusion
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.training.scoring import Sliding, score

_MOST_SCORED = 256
_SHOWN = 3
_GAP = 128
_BANDS = 3
"""Channels of an image that are shown: heights are not."""

Picture = NDArray[np.uint8]


def score_held_out(
    model: Segmenter,
    patches: PatchDataset,
    *,
    crop_px: int,
    device: torch.device,
    monitor: Monitor,
) -> tuple[dict[str, Any], dict[str, Picture]]:
    """Score a model on held-out patches, and show it on the most mixed of them.

    At most 256 patches, evenly spaced, in windows that do not overlap: a map, whose tiles do, is
    rather better. Memory: one patch.

    Args:
        model: On ``device``, ready to predict.
        patches: Labelled, in the model's class values.
        crop_px: Side of a window, at most.
        device: Where the model is.
        monitor: Told of every patch in the stage ``score``.

    Returns:
        ``scored``, the number of patches, and ``scores``, as ``Confusion.to_dict``; and pictures
        (row, col, 3) by caption.
    """
    classes = model.config.classes
    count = min(len(patches), _MOST_SCORED)
    chosen = [index * len(patches) // count for index in range(count)]
    variety: dict[int, float] = {}

    def items() -> Iterator[dict[str, Tensor]]:
        for done, index in enumerate(chosen):
            monitor.update(done)
            item = patches[index]
            variety[index] = _variety(item["mask"].numpy(), len(classes))
            yield item

    confusion = Confusion(classes.names)
    monitor.stage("score", count)
    sliding = Sliding(crop_px=crop_px, stride_px=crop_px, device=device)
    score(model, items(), confusion, sliding=sliding)
    monitor.update(count)
    pictures: dict[str, Picture] = {}
    most_varied = sorted(chosen, key=lambda index: -variety[index])[:_SHOWN]
    for number, index in enumerate(most_varied, 1):
        shown = _pictures(model, patches[index], crop_px=crop_px, device=device)
        pictures |= {f"{number}: {caption}": picture for caption, picture in shown.items()}
    return {"scored": count, "scores": confusion.to_dict()}, pictures


def _variety(labels: NDArray[np.int64], classes: int) -> float:
    """Return the entropy of the classes of a patch, less where little of it is labelled."""
    counts = np.bincount(labels.ravel(), minlength=classes)[:classes]
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum() * counts.sum() / labels.size)


@torch.inference_mode()
def _pictures(
    model: Segmenter, item: dict[str, Tensor], *, crop_px: int, device: torch.device
) -> dict[str, Picture]:
    row, col = (max(0, (length - crop_px) // 2) for length in item["mask"].shape)
    rows, cols = slice(row, row + crop_px), slice(col, col + crop_px)
    middle = {name: values[..., rows, cols] for name, values in item.items()}
    image, valid = middle["image"], middle["valid"].numpy()
    found = model(image[None].to(device))[0].argmax(0).cpu().numpy()
    classes = model.config.classes
    return {
        "the place": (image[:_BANDS].permute(1, 2, 0).numpy() * 255).astype(np.uint8),
        "its labels": _painted(middle["mask"].numpy(), classes),
        "the model's map": _painted(np.where(valid, found, UNKNOWN), classes),
    }


def _painted(values: NDArray[np.int64], classes: ClassTable) -> Picture:
    colors = np.full((256, 3), _GAP, np.uint8)
    colors[: len(classes)] = [entry.rgb for entry in classes]
    painted: Picture = colors[values]
    return painted
