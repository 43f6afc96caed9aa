"""The gate: Fisher scores of the modules, and the choice of those that train."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from earthgate_geo.errors import EarthgateError, InputError
from earthgate_geo.toolbox.base import Slot, Toolbox

OPEN_SHARE = 0.25


@dataclass(frozen=True)
class Scores:
    """How much the loss depends on each module."""

    raw: Mapping[Slot, float]
    """Sum over a module's parameters of their empirical diagonal Fisher information."""

    @property
    def normalised(self) -> dict[Slot, float]:
        """Each kind's scores divided by their sum over the layers (zero where that is zero)."""
        totals = dict.fromkeys({slot.kind for slot in self.raw}, 0.0)
        for slot, score in self.raw.items():
            totals[slot.kind] += score
        return {slot: score / (totals[slot.kind] or 1.0) for slot, score in self.raw.items()}


def fisher_scores(toolbox: Toolbox, losses: Iterable[Callable[[], Tensor]]) -> Scores:
    """Score every module by the mean over images of its squared gradient.

    While it runs all modules are open. No gradient is left in any ``.grad``.

    At the start, with up-projections of zero, only these have a gradient that is not zero: the
    first scores stand on ``B`` and ``W_up`` alone.

    Source:
        CrossEarth-Gate, arXiv:2511.20302. One gradient per image, and the sum within a kind over
        the layers, are our readings.

    Args:
        toolbox: Attached to the model behind ``losses``.
        losses: Each computes the loss of one single image.

    Raises:
        InputError: There are no losses.
        EarthgateError: A gradient is not finite.
    """
    owners = [(slot, p) for slot in toolbox.slots for p in toolbox.parameters(slot).values()]
    raw = dict.fromkeys(toolbox.slots, 0.0)
    images = 0
    with toolbox.all_open():
        for loss in losses:
            gradients = torch.autograd.grad(
                loss(), [parameter for _, parameter in owners], materialize_grads=True
            )
            norms = torch.stack([gradient.float().norm() for gradient in gradients]).tolist()
            for (slot, _), norm in zip(owners, norms, strict=True):
                raw[slot] += norm**2
            images += 1
    if not images:
        raise InputError(found="no images to score the modules with", expected="at least one")
    if not all(math.isfinite(score) for score in raw.values()):
        raise EarthgateError(
            found="a loss whose gradient is not finite", fix="Check the scene for extreme values"
        )
    return Scores({slot: score / images for slot, score in raw.items()})


def choose(scores: Scores, k: int) -> tuple[Slot, ...]:
    """Return the ``k`` slots of the highest normalised scores over all kinds, best first.

    Equal scores go in the order of the slots.
    """
    normalised = scores.normalised
    return tuple(sorted(normalised, key=lambda slot: (-normalised[slot], slot))[:k])


def default_k(toolbox: Toolbox) -> int:
    """Return the usual number of open slots: a quarter of them."""
    return round(OPEN_SHARE * len(toolbox.slots))
