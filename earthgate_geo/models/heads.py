"""Segmentation heads: feature maps in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.errors import InputError

HEADS = ("linear", "fpn", "mask2former", "mfnet")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Which head, and how large."""

    kind: str = "fpn"
    """``linear``, ``fpn``, ``mask2former`` or, for networks with heights, ``mfnet``."""

    width: int = 96
    """Channels inside the head, a multiple of 8; ``linear`` has none."""

    queries: int = 100
    """Masks that ``mask2former`` proposes."""

    pixel_layers: int = 6
    """Layers of the pixel decoder of ``mask2former``."""

    decoder_layers: int = 9
    """Layers of the transformer decoder of ``mask2former``."""

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise InputError(found=f"head {self.kind!r}", expected=", ".join(HEADS))
        if self.width < 8 or self.width % 8:
            raise InputError(found=f"a head of width {self.width}", expected="a multiple of 8")
        if min(self.queries, self.pixel_layers, self.decoder_layers) < 1:
            raise InputError(
                found=f"a head of {self.queries} queries, {self.pixel_layers} pixel layers and "
                f"{self.decoder_layers} decoder layers",
                expected="1 or more of each",
            )


def default_head(kind: str) -> HeadConfig:
    """Return the usual sizes of a kind of head; the papers' for ``mask2former`` and ``mfnet``.

    Raises:
        InputError: Unknown kind.
    """
    return HeadConfig(kind=kind, width={"mask2former": 256, "mfnet": 64}.get(kind, 96))


@runtime_checkable
class TemperedHead(Protocol):
    """A head whose logits come from linear layers: temperature and offsets fit into the weights.

    Mask2Former's do not: its logits are logarithms of sums of probabilities.
    """

    def temper(self, temperature: float) -> None:
        """Divide the logits by ``temperature``, for good."""

    def offset(self, index: int, by: float) -> None:
        """Add ``by`` to the logit of a class, for good."""


@torch.no_grad()
def _divide(layer: nn.Module, by: float) -> None:
    for parameter in layer.parameters():
        parameter.div_(by)


@torch.no_grad()
def _add(layer: nn.Module, index: int, by: float) -> None:
    layer.get_parameter("bias")[index] += by


class LinearHead(nn.Module):
    """A linear classifier of every pixel, on all maps at the size of the finest.

    Each map is normalised over its channels, pixel by pixel, classified, and then resized and
    added: the same as one 1x1 convolution of the concatenated maps, without holding them.

    Source:
        Oquab et al. 2023, "DINOv2", arXiv:2304.07193 (its linear evaluation), with layer
        norm instead of batch norm, so that a result does not depend on the other images.

    Args:
        channels: Channels of each map, finest first.
        classes: Number of classes.
    """

    def __init__(self, channels: Sequence[int], *, classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.classify = nn.ModuleList(
            nn.Linear(c, classes, bias=index == 0) for index, c in enumerate(channels)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map feature maps, finest first, to logits (b, classes, h, w) of the finest map."""
        logits = [
            # 3 and not -1, which torch's exporter would write into an ONNX file as it is.
            classify(norm(level.movedim(1, -1))).movedim(3, 1)
            for level, norm, classify in zip(maps, self.norms, self.classify, strict=True)
        ]
        return torch.stack([_resize(x, logits[0]) for x in logits]).sum(dim=0)

    def temper(self, temperature: float) -> None:
        """Divide the logits by ``temperature``, for good."""
        for classify in self.classify:
            _divide(classify, temperature)

    def offset(self, index: int, by: float) -> None:
        """Add ``by`` to the logit of a class, for good."""
        _add(self.classify[0], index, by)


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

    def temper(self, temperature: float) -> None:
        """Divide the logits by ``temperature``, for good."""
        _divide(self.classify[-1], temperature)

    def offset(self, index: int, by: float) -> None:
        """Add ``by`` to the logit of a class, for good."""
        _add(self.classify[-1], index, by)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear")


def build_head(config: HeadConfig, channels: Sequence[int], *, classes: int) -> nn.Module:
    """Build an untrained head for feature maps of ``channels``.

    Raises:
        InputError: ``mfnet``, which is for the maps of two streams.
        MissingDependencyError: ``mask2former`` without its extra.
    """
    if config.kind == "mfnet":
        raise InputError(
            found="the head mfnet in a network without heights",
            expected="a network with heights",
            fix="Give heights with --dsm, or choose another head",
        )
    if config.kind == "linear":
        return LinearHead(channels, classes=classes)
    if config.kind == "fpn":
        return FpnHead(channels, classes=classes, width=config.width)
    # Here and not above: it needs an optional library.
    from earthgate_geo.models.mask2former import Mask2FormerHead  # noqa: PLC0415

    return Mask2FormerHead(channels, classes=classes, config=config)
