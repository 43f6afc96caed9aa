"""Segmentation heads: feature maps in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.errors import InputError


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Which head, and how wide."""

    kind: str = "fpn"
    """``fpn``, the only one so far."""

    width: int = 96
    """Channels inside the head, a multiple of 8."""


class FpnHead(nn.Module):
    """A light feature pyramid: coarse maps are refined by finer ones, step by step.

    Source:
        Lin et al. 2017, "Feature pyramid networks", arXiv:1612.03144, with group norm and one
        smoothing convolution per level.

    Args:
        channels: Channels of each map, finest first.
        classes: Number of classes.
        width: Channels inside the head.
    """

    def __init__(self, channels: Sequence[int], *, classes: int, width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, groups=8),
                nn.GroupNorm(8, width),
                nn.GELU(),
                nn.Conv2d(width, width, 1),
            )
            for _ in channels
        )
        self.classify = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map feature maps, finest first, to logits (b, classes, h, w) of the finest map."""
        x: Tensor | None = None
        for level, lateral, smooth in zip(
            reversed(maps), reversed(self.lateral), reversed(self.smooth), strict=True
        ):
            side = lateral(level)
            if x is not None:
                side = side + _resize(x, side)
            x = side + smooth(side)
        logits: Tensor = self.classify(x)
        return logits


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear")


def build_head(config: HeadConfig, channels: Sequence[int], *, classes: int) -> nn.Module:
    """Build an untrained head for feature maps of ``channels``.

    Raises:
        InputError: Unknown kind.
    """
    if config.kind != "fpn":
        raise InputError(found=f"head {config.kind!r}", expected="fpn")
    return FpnHead(channels, classes=classes, width=config.width)
