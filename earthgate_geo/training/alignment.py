"""The cheap first step of adaptation: show a scene to the network as it is used to see."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.models.statistics import FeatureStatistics
from earthgate_geo.models.view import View

_DARKER = (1.41, 2.0)
"""Exponents that are tried; brighter ones lost on scenes as they are and on dark ones."""

_SHOWN = 0.5
"""How far the scene is darkened, of the exponent that is closest: sea and sand move the distance
as a curve does, and the first half of the way holds most of the gain and little of the loss."""

_BETTER_REVERSED, _BETTER_ORDER, _BETTER_TONE = 0.6, 0.3, 0.65
"""Share of the distance that may be left. Places differ, too, and a wrong order ruins a map; files
of blue, green, red are common, other orders are not."""

_BATCH, _MOST_BANDS = 4, 3


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """How a scene is shown best, and what that rests on."""

    view: View
    """The default where nothing else is clearly closer."""

    before: float
    """Distance of the scene from what the network was trained on, as it comes."""

    after: float
    """The same in the chosen view."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"view": self.view.to_json(), "before": self.before, "after": self.after}


def choose_view(model: Segmenter, statistics: FeatureStatistics, images: Tensor) -> ViewChoice:
    """Find the order of bands and the curve of tones in which a scene looks like training images.

    An order is judged by the first feature maps, for which light matters less; a curve by these
    and by the values themselves. Either must be clearly closer than the scene as it comes. A
    curve is followed half of the way.

    Source:
        Ours. Matching first-layer statistics by training, as test-time adaptation does, lost on
        places whose light was right; a choice among few views did not (benchmarks/adaptation.md).

    Args:
        model: The source model; its view is put back.
        statistics: Of its training images.
        images: Tiles of the scene (batch, band, row, col) in 0..1.
    """
    own = _distances(model, statistics, images, View())
    chosen, left = View(), own
    for order in _orders(images):
        found = _distances(model, statistics, images, View(order=order))
        bar = _BETTER_REVERSED if order == tuple(reversed(range(len(order)))) else _BETTER_ORDER
        if sum(found[1:]) < min(bar * sum(own[1:]), sum(left[1:])):
            chosen, left = View(order=order), found
    closest, bar = 1.0, _BETTER_TONE * sum(left)
    for gamma in _DARKER:
        found = _distances(model, statistics, images, replace(chosen, gamma=gamma))
        if sum(found) < bar:
            closest, bar = gamma, sum(found)
    if closest != 1:
        chosen = replace(chosen, gamma=closest**_SHOWN)
        left = _distances(model, statistics, images, chosen)
    return ViewChoice(view=chosen, before=sum(own), after=sum(left))


def _orders(images: Tensor) -> Iterator[tuple[int, ...]]:
    bands = images.shape[1]
    grey = all(torch.equal(images[:, 0], images[:, band]) for band in range(1, bands))
    if grey or bands > _MOST_BANDS:
        return
    yield from list(permutations(range(bands)))[1:]


def _distances(
    model: Segmenter, statistics: FeatureStatistics, images: Tensor, view: View
) -> list[float]:
    model.view, kept = view, model.view
    try:
        seen = FeatureStatistics.gather(model, torch.split(images, _BATCH))
    finally:
        model.view = kept
    return statistics.distances(seen)
