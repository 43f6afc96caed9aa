"""What images look like to the first layers of a network: how far are those of a scene from it?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earthgate_geo.models.segmenter import Segmenter

_LEVELS = 2
_FLOOR = 1e-4


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and deviation of every channel: of the network's input, then of its finest maps.

    Heights are left out, where the network has some.

    Late layers are about classes, whose shares differ from scene to scene; the first ones are
    about light, bands and sharpness.
    """

    means: tuple[Tensor, ...]
    """(channel,) of each level."""

    deviations: tuple[Tensor, ...]
    """(channel,) of each level."""

    @classmethod
    def gather(cls, model: Segmenter, batches: Iterable[Tensor]) -> "FeatureStatistics":
        """Look at batches (batch, channel, row, col) in 0..1, each as many pixels as the others."""
        moments = [_moments(model, images) for images in batches]
        first, second = (
            [torch.stack(level).mean(0) for level in zip(*parts, strict=True)]
            for parts in zip(*moments, strict=True)
        )
        spread = [(b - a.square()).clamp(min=0).sqrt() for a, b in zip(first, second, strict=True)]
        return cls(tuple(first), tuple(spread))

    def distances(self, other: "FeatureStatistics") -> list[float]:
        """Return how far another's are from these, level by level, in squared deviations of these.

        Source:
            The term that is matched per channel by Mirza et al. 2023, "ActMAD",
            arXiv:2211.12870, squared and relative; ours: it is never trained on.
        """
        return [
            float((((a - b).square() + (s - t).square()) / (s.square() + _FLOOR)).mean())
            for a, b, s, t in zip(
                self.means, other.means, self.deviations, other.deviations, strict=True
            )
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return what ``from_tensors`` reads."""
        return {
            f"{level}.{name}": values
            for name, parts in (("mean", self.means), ("deviation", self.deviations))
            for level, values in enumerate(parts)
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "FeatureStatistics":
        """Read what ``tensors`` returned."""
        levels = range(len(tensors) // 2)
        return cls(
            tuple(tensors[f"{level}.mean"] for level in levels),
            tuple(tensors[f"{level}.deviation"] for level in levels),
        )


@torch.no_grad()
def _moments(model: Segmenter, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    scaled = model.scaled(images.to(model.mean.device))
    bands = scaled[:, : len(model.config.bands)]
    maps = model.backbone.first_maps(scaled, _LEVELS)
    levels = [level.float() for level in (bands, *maps)]
    return (
        [level.mean((0, 2, 3)).cpu() for level in levels],
        [level.square().mean((0, 2, 3)).cpu() for level in levels],
    )
