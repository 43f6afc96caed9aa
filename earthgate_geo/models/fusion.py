"""Images with heights: one frozen transformer for both, and heads that join their maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.models.backbone import Backbone
from earthgate_geo.models.heads import HeadConfig, TemperedHead, build_head
from earthgate_geo.models.mfnet import Excitation, MfnetHead


class TwoStreams(Backbone):
    """One transformer that sees an image and its heights, each as an image of its own.

    Both go through the same blocks as one batch, the images first: what is attached to the blocks
    can tell the streams apart and let them exchange. The maps of the heights are weighted by the
    share of pixels with a height that each of their cells covers: no heights give maps of zeros.

    Source:
        MFNet, arXiv:2410.11160, section III: one set of weights for both modalities, heights
        repeated in three channels. The weighting is ours; there every pixel has a height.

    Args:
        single: The transformer.
    """

    streams = 2

    def __init__(self, single: Backbone) -> None:
        super().__init__()
        self.single = single
        self.dim, self.prefix_tokens = single.dim, single.prefix_tokens
        self.patch_px = single.patch_px

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]  # the transformer's own
        """Transformer blocks, first to last, each called on both streams at once."""
        return self.single.blocks

    @property
    def channels(self) -> tuple[int, ...]:  # type: ignore[override]  # the transformer's own
        """Channels of the maps of the bands, finest first, then of those of the heights."""
        return (*self.single.channels, *self.single.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (b, band + 2, h, w) to the maps of the bands, then those of the heights.

        The last two channels are the heights, normalised and 0 where there is none, and 1 where
        there is one, else 0.
        """
        bands, heights, known = images[:, :-2], images[:, -2:-1], images[:, -1:]
        maps = self.single(torch.cat([bands, heights.expand_as(bands)]))
        halves = [level.chunk(2) for level in maps]
        return [
            *(of_bands for of_bands, _ in halves),
            *(of_heights * _share(known, of_heights) for _, of_heights in halves),
        ]

    def first_maps(self, images: Tensor, count: int) -> list[Tensor]:
        """Return the first ``count`` maps of the bands."""
        return self.single.first_maps(images[:, :-2], count)


def _share(known: Tensor, level: Tensor) -> Tensor:
    """Return the share of known pixels in every cell of a map, (b, 1, h, w)."""
    return functional.interpolate(known, size=level.shape[-2:], mode="area").to(level.dtype)


class FusedHead(nn.Module):
    """A head that joins the maps of an image and its heights, and then does as any head does.

    Computes ``F = Fx + a_x(Fx) Fx + a_y(Fy) Fy`` on every scale, where ``a`` are the channels'
    scales of squeeze and excitation. They start at zero: a new one hands on the image's maps as
    they are, bit for bit.

    Source:
        MFNet, arXiv:2410.11160, SE fusion. Ours: the scales are in -1..1 instead of 0..1, are
        added to 1 for the image, and start at zero; and any head follows.

    Args:
        head: The head that sees the joined maps.
        channels: Channels of each map of one stream.
    """

    def __init__(self, head: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        generator = torch.Generator().manual_seed(0)
        self.of_bands, self.of_heights = (
            nn.ModuleList(_silent_excitation(c, generator=generator) for c in channels)
            for _ in range(2)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the bands' maps and then the heights', finest first each, to logits."""
        logits: Tensor = self.head(self.joined(maps))
        return logits

    def joined(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the maps of both streams to one map per scale, finest first."""
        return [
            x + excite_x(x) + excite_y(y)
            for x, y, excite_x, excite_y in zip(
                maps[: len(maps) // 2],
                maps[len(maps) // 2 :],
                self.of_bands,
                self.of_heights,
                strict=True,
            )
        ]


class _TemperedFusedHead(FusedHead):
    """With a head whose logits come from linear layers."""

    head: TemperedHead  # type: ignore[assignment]  # it is a module as well

    def temper(self, temperature: float) -> None:
        """Divide the logits by ``temperature``, for good."""
        self.head.temper(temperature)

    def offset(self, index: int, by: float) -> None:
        """Add ``by`` to the logit of a class, for good."""
        self.head.offset(index, by)


class _FusedSetHead(FusedHead):
    """With Mask2Former, which learns by a loss of its own."""

    head: Any

    def set_loss(
        self,
        maps: Sequence[Tensor],
        labels: Tensor,
        *,
        named: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the joined maps."""
        loss: Tensor = self.head.set_loss(self.joined(maps), labels, named=named, weights=weights)
        return loss


def fused(head: nn.Module, channels: Sequence[int]) -> FusedHead:
    """Put the joining of two streams before a head, which keeps what else it can do.

    Args:
        head: A head for the maps of one stream.
        channels: Channels of each of these.
    """
    kind = _TemperedFusedHead if isinstance(head, TemperedHead) else _FusedSetHead
    return kind(head, channels)


def build_fused_head(config: HeadConfig, channels: Sequence[int], *, classes: int) -> nn.Module:
    """Build an untrained head for the feature maps of two streams.

    Args:
        config: The head's kind and sizes.
        channels: Channels of each map of one stream.
        classes: Number of classes.

    Raises:
        MissingDependencyError: ``mask2former`` without its extra.
    """
    if config.kind == "mfnet":
        return MfnetHead(channels, classes=classes, width=config.width)
    return fused(build_head(config, channels, classes=classes), channels)


def _silent_excitation(channels: int, *, generator: torch.Generator) -> Excitation:
    """Make one whose scales are zero."""
    made = Excitation(channels, squash=torch.tanh)
    nn.init.kaiming_uniform_(made.narrow.weight, a=5**0.5, generator=generator)
    for parameter in (made.narrow.get_parameter("bias"), *made.widen.parameters()):
        nn.init.zeros_(parameter)
    return made
