"""Is the adapted model better? Evidence from the unlabelled scene, and the decision."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earthgate_geo.metrics import OTHER, UNKNOWN, Confusion
from earthgate_geo.training.radiometry import vary_radiometry

Network = Callable[[Tensor], Tensor]

_LEAST_SHARE = 0.01
"""What is labelled is there, however little of it a model sees."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one model shows on tiles that it did not train on."""

    agreement: float
    """Share of pixels, 0..1, whose class stays when the image is turned and its colours varied."""

    confidence: float
    """Mean probability of the best class, 0..1."""

    replay_miou: float | None
    """Mean IoU on held-back replay tiles, 0..1; None for a model without replay."""

    label_probabilities: tuple[float, ...] | None
    """Mean probability, 0..1, of what the labels say, by tile with labels; None without labels."""

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
    fits: list[float] = []
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
            fits += _label_probability(probabilities, labels.masks[index], labels.named)
    return Evidence(
        agreement=same / max(total, 1),
        confidence=certain / max(total, 1),
        replay_miou=None if replay is None else _miou(network, replay, classes),
        label_probabilities=tuple(fits) or None,
        shares=tuple(float(v) for v in counts / max(counts.sum(), 1)),
    )


def _label_probability(
    probabilities: Tensor, labels: Tensor, named: Collection[int]
) -> list[float]:
    """Return the mean probability of what labels (row, col) say; nothing where they say nothing."""
    classes = len(probabilities)
    unnamed = [value for value in range(classes) if value not in named]
    said = torch.cat([probabilities, probabilities[unnamed].sum(0, keepdim=True)])
    meant = labels.where(labels != OTHER, classes if unnamed else UNKNOWN)
    known = meant != UNKNOWN
    if not known.any():
        return []
    return [float(said.gather(0, meant.clamp(max=classes)[None])[0][known].mean())]


def label_fit(found: Confusion, shares: Sequence[float] | None) -> float | None:
    """Return the mean IoU over the labelled classes, 0..1, as if the whole scene were labelled.

    People label as many buildings as patches of ground. Where these cover nearly all of a scene,
    a false alarm on them counts for more than it does among the labels, so that each class weighs
    by its share of the scene. What none of the labels names is one class.

    Args:
        found: Labels against what a model says there.
        shares: Share of every class in the scene; the labels' own if absent.

    Returns:
        None where nothing is labelled.
    """
    named = sorted(found.named)
    unnamed = [value for value in range(len(found.names)) if value not in found.named]

    def merged(by_class: NDArray[Any]) -> NDArray[Any]:
        rest = by_class[..., unnamed].sum(-1, keepdims=True)
        return np.concatenate([by_class[..., named], rest], -1)

    on_rest = found.on_other * bool(unnamed)  # where labels name every class, it says nothing
    table = merged(np.vstack([found.counts[named], on_rest])).astype(float)
    totals = table.sum(1)
    if not totals.any():
        return None
    weights = totals if shares is None else np.maximum(merged(np.asarray(shares)), _LEAST_SHARE)
    table *= (weights / np.maximum(totals, 1))[:, None]
    hits, present = table.diagonal(), totals > 0
    union = table.sum(1) + table.sum(0) - hits
    return float((hits[present] / union[present]).mean())


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
    if source.label_probabilities and adapted.label_probabilities:
        if not _fits(source.label_probabilities, adapted.label_probabilities):
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


def _fits(before: Sequence[float], after: Sequence[float]) -> bool:
    """Tell whether labels do not speak against a model: a few of them seldom speak for one.

    It has lost where the mean gain is below zero by its standard error or more.
    """
    gains = np.subtract(after, before)
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > -error)


def share_shift(source: Evidence, adapted: Evidence) -> float:
    """Return half the sum of the absolute changes of the class shares, 0..1."""
    pairs = zip(source.shares, adapted.shares, strict=True)
    return 0.5 * sum(abs(a - b) for a, b in pairs)
