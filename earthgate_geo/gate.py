"""The gate: Fisher scores of the modules, and the choice of those that train."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from earthgate_geo.errors import EarthgateError, InputError
from earthgate_geo.toolbox.base import Slot, Toolbox


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
    return _scores(toolbox, _means(toolbox, losses, of=_squared_norm))


def gradient_norm_scores(toolbox: Toolbox, losses: Iterable[Callable[[], Tensor]]) -> Scores:
    """Score every module by the square of its mean gradient: a control for Fisher information.

    Gradients of images that disagree cancel here, and add up in ``fisher_scores``.

    Args:
        toolbox: Attached to the model behind ``losses``.
        losses: Each computes the loss of one single image.

    Raises:
        InputError: There are no losses.
        EarthgateError: A gradient is not finite.
    """
    means = _means(toolbox, losses, of=Tensor.float)
    return _scores(toolbox, [_squared_norm(gradient) for gradient in means])


def _squared_norm(gradient: Tensor) -> Tensor:
    norm: Tensor = gradient.float().norm()
    return norm.double().square()


def _means(
    toolbox: Toolbox, losses: Iterable[Callable[[], Tensor]], *, of: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return the mean over images ``of`` the gradient by every parameter, slot by slot."""
    owned = [p for slot in toolbox.slots for p in toolbox.parameters(slot).values()]
    totals: list[Tensor] = []
    images = 0
    with toolbox.all_open():
        for loss in losses:
            terms = map(of, torch.autograd.grad(loss(), owned, materialize_grads=True))
            totals = [a + b for a, b in zip(totals, terms, strict=True)] if totals else [*terms]
            images += 1
    if not images:
        raise InputError(found="no images to score the modules with", expected="at least one")
    return [total / images for total in totals]


def _scores(toolbox: Toolbox, squares: Iterable[Tensor]) -> Scores:
    """Add up what each parameter contributes to its module."""
    raw = dict.fromkeys(toolbox.slots, 0.0)
    owners = [slot for slot in toolbox.slots for _ in toolbox.parameters(slot)]
    for slot, square in zip(owners, torch.stack([*squares]).tolist(), strict=True):
        raw[slot] += square
    if not all(math.isfinite(score) for score in raw.values()):
        raise EarthgateError(
            found="a loss whose gradient is not finite", fix="Check the scene for extreme values"
        )
    return Scores(raw)


def choose(scores: Scores, k: int) -> tuple[Slot, ...]:
    """Return the ``k`` slots of the highest normalised scores over all kinds, best first.

    Equal scores go in the order of the slots.
    """
    normalised = scores.normalised
    return tuple(sorted(normalised, key=lambda slot: (-normalised[slot], slot))[:k])
