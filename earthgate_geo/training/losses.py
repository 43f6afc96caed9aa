"""Losses over pixels whose label may be known, partly known, or unknown."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.models.segmenter import Segmenter


@runtime_checkable
class SetHead(Protocol):
    """A head that learns from labels by a loss of its own, such as Mask2Former's."""

    def set_loss(
        self,
        maps: Sequence[Tensor],
        labels: Tensor,
        *,
        named: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the feature maps against labels over their whole area."""


def task_loss(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    named: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss by which the head of ``model`` learns from labels.

    That is the head's own loss where it has one, else ``partial_cross_entropy`` of the logits.

    Args:
        model: The model.
        images: Tensor (batch, channel, height, width) in 0..1.
        labels: Tensor (batch, height, width) of class indices, ``OTHER`` or ``UNKNOWN``.
        named: Bool tensor (class,), True for classes that the labels name; all if absent.
        weights: Tensor (batch, height, width), 0 or more per pixel; 1 everywhere if absent.

    Returns:
        A scalar, 0 where no pixel is known.
    """
    return head_loss(model, model.features(images), labels, named=named, weights=weights)


def head_loss(
    model: Segmenter,
    features: tuple[Sequence[Tensor], torch.Size],
    labels: Tensor,
    *,
    named: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return what ``task_loss`` does, from the features of the images."""
    maps, covered_px = features
    if not isinstance(model.head, SetHead):
        rows, cols = labels.shape[-2:]
        logits = model.logits(maps, covered_px)[..., :rows, :cols]
        return partial_cross_entropy(logits, labels, named=named, weights=weights)
    labels = informative(labels, named=named)
    rows, cols = covered_px
    missing = (0, cols - labels.shape[-1], 0, rows - labels.shape[-2])
    labels = functional.pad(labels, missing, value=UNKNOWN)
    if weights is not None:
        weights = functional.pad(weights, missing)
    return model.head.set_loss(maps, labels, named=named, weights=weights)


def informative(labels: Tensor, *, named: Tensor | None) -> Tensor:
    """Return labels in which ``OTHER`` is ``UNKNOWN`` if it says nothing: all classes are named.

    Args:
        labels: Tensor of class indices, ``OTHER`` or ``UNKNOWN``.
        named: Bool tensor (class,), True for classes that the labels name; all if absent.
    """
    if named is not None and not bool(named.all()):
        return labels
    return labels.masked_fill(labels == OTHER, UNKNOWN)


def partial_cross_entropy(
    logits: Tensor, labels: Tensor, *, named: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Return the mean negative log probability of what the labels say.

    A pixel labelled ``OTHER`` counts with the summed probability of all classes that the labels
    do not name, so that a building mask teaches a model of five classes without saying which
    of the other four a pixel is. Where the labels name every class it says nothing. Ours; for
    full labels it is the plain cross entropy.

    Args:
        logits: Tensor (batch, class, height, width).
        labels: Tensor (batch, height, width) of class indices, ``OTHER`` or ``UNKNOWN``.
        named: Bool tensor (class,), True for classes that the labels name; all if absent.
        weights: Tensor (batch, height, width), 0 or more per pixel; 1 everywhere if absent.

    Returns:
        A scalar, 0 where no pixel is known.
    """
    log_probs = torch.log_softmax(logits.float(), dim=1)
    classes, labels = logits.shape[1], informative(labels, named=named)
    picked = log_probs.gather(1, labels.clamp(max=classes - 1).unsqueeze(1)).squeeze(1)
    if named is not None and not bool(named.all()):
        rest = torch.logsumexp(log_probs[:, ~named], dim=1)
        picked = torch.where(labels == OTHER, rest, picked)
    known = (labels < classes) | (labels == OTHER)
    mass = known.float() if weights is None else known.float() * weights
    return -(picked * mass).sum() / mass.sum().clamp(min=1.0)


def soft_dice(logits: Tensor, labels: Tensor, *, target: int) -> Tensor:
    """Return one minus the soft Dice score of the class ``target`` over the known pixels.

    Args:
        logits: Tensor (batch, class, height, width).
        labels: Tensor (batch, height, width); ``OTHER`` counts as not ``target``.
        target: Index of the class.

    Source:
        Milletari et al. 2016, "V-Net", arXiv:1606.04797, over the whole batch, smoothed by 1.
    """
    known = labels != UNKNOWN
    probability = torch.softmax(logits.float(), dim=1)[:, target] * known
    truth = (labels == target).float()
    overlap = (probability * truth).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + truth.sum() + 1)
