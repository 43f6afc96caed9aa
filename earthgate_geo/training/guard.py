"""Is the adapted model better? Evidence from the unlabelled scene, and the decision."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earthgate_geo.metrics import Confusion
from earthgate_geo.training.radiometry import vary_radiometry

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one model shows on tiles that it did not train on."""

    agreement: float
    """Share of pixels, 0..1, whose class stays when the image is turned and its colours varied."""

    confidence: float
    """Mean probability of the best class, 0..1."""

    replay_miou: float | None
    """Mean IoU on held-back replay tiles, 0..1; None for a model without replay."""

    label_miou: float | None
    """Mean IoU on labels of the scene, 0..1; None without labels."""

    shares: tuple[float, ...]
    """Share of each class, 0..1."""


@dataclass(frozen=True)
class KnownLabels:
    """Labels of the scene that did not train, or where these are too few, those that did."""

    masks: Sequence[Tensor]
    """(row, col) of class values, ``OTHER`` or ``UNKNOWN``, one per tile."""

    named: Collection[int]
    """Values of the classes that the labels name."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much worse an adapted model may look before the gate stays closed. Ours."""

    agreement_gain: float = 0.05
    """Least gain of agreement."""

    replay_drop: float = 0.03
    """Largest loss of mean IoU on the replay tiles."""

    share_shift: float = 0.25
    """Largest total change of the class shares, half the sum of absolute differences."""

    common: float = 0.02
    """Share from which a class is common: it may not lose more than half of it."""


@torch.no_grad()
def gather(
    network: Network,
    tiles: Sequence[tuple[Tensor, Tensor]],
    *,
    classes: Sequence[str],
    replay: tuple[Tensor, Tensor] | None = None,
    labels: KnownLabels | None = None,
) -> Evidence:
    """Watch a model on held-back tiles.

    Args:
        network: Maps images (batch, channel, row, col) to logits.
        tiles: Images (channel, row, col) with their validity (row, col).
        classes: Names of the classes.
        replay: Held-back replay images and labels.
        labels: Labels of ``tiles``.
    """
    rng = np.random.default_rng(0)  # every model sees the same variations
    same = certain = total = 0.0
    counts = np.zeros(len(classes))
    truth = Confusion(classes, named=labels.named if labels else None)
    for index, (image, valid) in enumerate(tiles):
        probabilities = torch.softmax(network(image.unsqueeze(0)).float(), 1)[0]
        certainty, found = probabilities.max(0)
        turned = torch.rot90(vary_radiometry(image, rng), 1, (1, 2))
        again = torch.rot90(network(turned.unsqueeze(0))[0].argmax(0), -1, (0, 1))
        same += float(((found == again) & valid).sum())
        certain += float(certainty[valid].sum())
        total += float(valid.sum())
        counts += np.bincount(found[valid].numpy(), minlength=len(classes))
        if labels is not None:
            truth.add(labels.masks[index].numpy(), found.numpy())
    return Evidence(
        agreement=same / max(total, 1),
        confidence=certain / max(total, 1),
        replay_miou=None if replay is None else _miou(network, replay, classes),
        label_miou=None if labels is None else truth.mean_iou(),
        shares=tuple(float(v) for v in counts / max(counts.sum(), 1)),
    )


def _miou(network: Network, replay: tuple[Tensor, Tensor], classes: Sequence[str]) -> float:
    confusion = Confusion(classes)
    for image, label in zip(*replay, strict=True):
        found: NDArray[np.int64] = network(image.unsqueeze(0))[0].argmax(0).numpy()
        confusion.add(label.numpy(), found)
    return confusion.mean_iou()


def against(
    source: Evidence, adapted: Evidence, *, tolerance: Tolerance | None = None
) -> list[str]:
    """Return what speaks against the adapted model; nothing if it is to be kept.

    Labels decide where there are any. Without, the adapted model must be clearly
    steadier than the source model and must have kept what it knew: neither the replay tiles nor
    the classes may fade. Ours; the papers keep the last model blindly. The bounds were set on
    three places, so they are careful rather than sharp: they refuse gains of a point or two.
    """
    limit = tolerance or Tolerance()
    reasons = []
    if source.label_miou is not None and adapted.label_miou is not None:
        if adapted.label_miou <= source.label_miou:
            reasons.append("the labels fit no better")
        return reasons
    if adapted.agreement - source.agreement < limit.agreement_gain:
        reasons.append("the adapted model agrees hardly more with itself than the source model")
    if share_shift(source, adapted) > limit.share_shift:
        reasons.append("the class shares moved too far")
    pairs = zip(source.shares, adapted.shares, strict=True)
    if any(before >= limit.common and after < before / 2 for before, after in pairs):
        reasons.append("a class lost more than half of its share")
    if (source.replay_miou or 0) - (adapted.replay_miou or 0) > limit.replay_drop:
        reasons.append("the replay tiles are mapped worse")
    return reasons


def share_shift(source: Evidence, adapted: Evidence) -> float:
    """Return half the sum of the absolute changes of the class shares, 0..1."""
    pairs = zip(source.shares, adapted.shares, strict=True)
    return 0.5 * sum(abs(a - b) for a, b in pairs)
