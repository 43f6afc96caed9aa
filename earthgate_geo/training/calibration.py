"""Confidence that means what it says: a temperature for an adapted model."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from earthgate_geo.metrics import OTHER
from earthgate_geo.training.guard import KnownLabels
from earthgate_geo.training.radiometry import vary_radiometry

LOWEST, HIGHEST = 1.0, 5.0
"""Bounds of a temperature."""

LEAST_KNOWN_PX = 200
"""Fewer labelled pixels than this do not set a temperature."""

_TILE_PX = 4096
"""Most pixels of a tile that are looked at; neighbours say the same."""

_HALVINGS = 24
_SHARE = 0.001
"""Least distance of a share from 0 and 1 where it is turned into a normal quantile."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """What a model says of the same pixels, seen in two or more ways."""

    logits: Tensor
    """(view, pixel, class), the image as it is first."""

    allowed: Tensor
    """(pixel, class), True for what a pixel's label allows; False throughout where it has none."""

    @property
    def agreement(self) -> float:
        """Share of pixels, 0..1, that have the same class in two of the views."""
        classes = self.logits.argmax(2)
        pairs = [(a == b).float().mean() for a, b in combinations(classes, 2)]
        return float(torch.stack(pairs).mean())

    @property
    def known(self) -> "Views":
        """The pixels whose label says something."""
        chosen = self.allowed.any(1) & ~self.allowed.all(1)
        return Views(logits=self.logits[:, chosen], allowed=self.allowed[chosen])

    @property
    def correct(self) -> Tensor:
        """(pixel,), True where the class of the first view is one that the label allows."""
        found = self.logits[0].argmax(1, keepdim=True)
        return self.allowed.gather(1, found)[:, 0]

    def confidence(self, temperature: float = 1.0) -> Tensor:
        """Return the probability of the best class of the first view, (pixel,)."""
        return torch.softmax(self.logits[0] / temperature, 1).amax(1)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature and what it rests on."""

    temperature: float
    """What the logits are divided by."""

    basis: str
    """``labels``, ``replay`` (agreement, corrected on replay tiles) or ``agreement``."""

    accuracy: float
    """Of the model on the tiles, 0..1: measured on ``labels``, else estimated."""

    confidence: float
    """Mean probability of the best class on the tiles at ``temperature``, 0..1."""

    error: float | None
    """Expected calibration error on ``labels`` at ``temperature``, 0..1; else None."""


@torch.no_grad()
def look(
    network: Callable[[Tensor], Tensor],
    tiles: Sequence[tuple[Tensor, Tensor]],
    *,
    labels: KnownLabels | None = None,
) -> Views:
    """Watch a model on tiles as they are, and turned and in other light, mapped back.

    Memory: at most 8,192 pixels of a tile, twice.

    Args:
        network: Maps images (batch, channel, row, col) to logits.
        tiles: Images (channel, row, col) with their validity (row, col).
        labels: Labels of ``tiles``.
    """
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    seen, allowed = [], []
    for index, (image, valid) in enumerate(tiles):
        turned = torch.rot90(vary_radiometry(image, rng), 1, (1, 2))
        straight = network(image.unsqueeze(0))[0].float()
        again = torch.rot90(network(turned.unsqueeze(0))[0].float(), -1, (1, 2))
        mask = valid.new_zeros((*valid.shape, len(straight)))
        if labels is not None:
            mask = _allowed(labels.masks[index], len(straight), labels.named) & valid[..., None]
        # A pixel may come twice, by chance and for its label.
        places = torch.cat([_some(valid, generator), _some(mask.any(2), generator)])
        allowed.append(mask.flatten(0, 1)[places])
        seen.append(torch.stack([straight, again]).flatten(2)[..., places].movedim(1, 2))
    return Views(logits=torch.cat(seen, 1), allowed=torch.cat(allowed))


def _some(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw places of True pixels; a regular grid would meet patches at the same spot."""
    places = mask.flatten().nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)[:_TILE_PX]]


def _allowed(labels: Tensor, classes: int, named: Collection[int]) -> Tensor:
    """Return (row, col, class), True for what the labels allow."""
    unnamed = torch.tensor([value not in named for value in range(classes)])
    is_other = (labels == OTHER).unsqueeze(2)
    return (labels.unsqueeze(2) == torch.arange(classes)) | (is_other & unnamed)


def calibrate(views: Views, *, replay: Views | None = None) -> Calibration:
    """Find the temperature, 1 to 5, at which a model is as confident as it is right on average.

    Labels that did not train decide where there are enough; then it is the likeliest. Without,
    mean confidence shall not exceed the accuracy that ``estimate_accuracy`` gives. Neither makes
    a model surer: it agrees with itself more often than it is right, and people label what is
    plain to see, which a model gets right more often than the rest.

    Source:
        Labels: temperature scaling, Guo et al. 2017, arXiv:1706.04599, section 4.2; a pixel that
        is none of the classes that the labels name counts with the probability of the others.
        Without labels: ours.

    Args:
        views: Of tiles that did not train.
        replay: Of labelled tiles of the sources.
    """
    known = views.known
    if known.logits.shape[1] >= LEAST_KNOWN_PX:
        found, basis = _likeliest(known), "labels"
        accuracy = float(known.correct.float().mean())
        error = expected_calibration_error(known.confidence(found), known.correct)
    else:
        error, basis = None, "agreement" if replay is None else "replay"
        accuracy = estimate_accuracy(views, replay=replay)
        found = _root(lambda t: float(views.confidence(t).mean()) - accuracy)
    return Calibration(
        temperature=found,
        basis=basis,
        accuracy=accuracy,
        confidence=float(views.confidence(found).mean()),
        error=error,
    )


def estimate_accuracy(views: Views, *, replay: Views | None = None) -> float:
    """Estimate how often a model is right, 0..1, from how often it agrees with itself.

    On labelled replay tiles both are known. The difference of their normal quantiles there is
    taken to hold on ``views``, too.

    Source:
        Disagreement equals error: Jiang et al. 2022, arXiv:2106.13799, who train a model twice;
        the line between normal quantiles of accuracy and agreement: Baek et al. 2022,
        arXiv:2206.13089. Ours: views of one model in place of two models, a line of slope 1
        through the replay tiles alone.

    Args:
        views: Of unlabelled tiles.
        replay: Of labelled tiles; without, accuracy is taken for agreement.
    """
    if replay is None:
        return views.agreement
    known = replay.known
    shift = _quantile(float(known.correct.float().mean())) - _quantile(known.agreement)
    return NormalDist().cdf(_quantile(views.agreement) + shift)


def expected_calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """Return the mean distance of confidence and accuracy over bins of confidence, 0..1.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 2: bins of equal width, weighted by their pixels.

    Args:
        confidence: (pixel,), probability of the best class.
        correct: (pixel,), True where that class is right.
        bins: Number of bins.
    """
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, place, confidence.double() - correct.double())
    return float(gaps.abs().sum() / max(len(confidence), 1))


def _likeliest(known: Views) -> float:
    """Return the temperature at which the labels are likeliest."""
    logits = known.logits[0]
    told = logits.masked_fill(~known.allowed, -torch.inf)

    def slope(temperature: float) -> float:
        """Return the derivative of the loss by 1 / temperature."""
        expected = (torch.softmax(logits / temperature, 1) * logits).sum(1)
        return float((expected - (torch.softmax(told / temperature, 1) * logits).sum(1)).mean())

    return _root(slope)


def _root(falling: Callable[[float], float]) -> float:
    """Return the temperature where a falling function is 0, or the nearest bound."""
    if falling(LOWEST) <= 0:
        return LOWEST  # to the bit: the default changes nothing
    low, high = LOWEST, HIGHEST
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


def _quantile(share: float) -> float:
    return NormalDist().inv_cdf(min(max(share, _SHARE), 1 - _SHARE))
