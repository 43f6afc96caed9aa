"""The composed model: normalisation, backbone, head."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import (
    Backbone,
    BackboneConfig,
    build_backbone,
    missing_to_patch,
    pad_to_patch,
)
from earthgate_geo.models.fusion import TwoStreams, build_fused_head, fused
from earthgate_geo.models.heads import HeadConfig, build_head
from earthgate_geo.models.view import View
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.toolbox.attach import Settled

_HEIGHT_MEAN, _HEIGHT_STD = 0.5, 0.25


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Everything that is needed to build the network and to feed it; the model file's header."""

    classes: ClassTable
    """The classes, in the order of the logits."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The transformer."""

    head: HeadConfig = field(default_factory=HeadConfig)
    """The segmentation head."""

    bands: tuple[str, ...] = ("red", "green", "blue")
    """Meaning of the input channels."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, of values in 0..1."""

    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    """Per channel, of values in 0..1."""

    gsd_min_m: float = 0.1
    """Finest ground size of a pixel that the model was trained for, in metres."""

    gsd_max_m: float = 0.6
    """Coarsest, in metres."""

    tile_px: int = 512
    """Height and width of a tile that the network sees best, in network pixels."""

    heights: bool = False
    """Whether a channel of heights follows the bands."""

    def __post_init__(self) -> None:
        if not 0 < self.gsd_min_m <= self.gsd_max_m:
            raise InputError(
                found=f"a GSD range of {self.gsd_min_m} to {self.gsd_max_m} m",
                expected="two positive numbers in ascending order",
            )

    @property
    def channels(self) -> int:
        """Channels of an input: the bands, and the heights where the network sees some."""
        return len(self.bands) + self.heights

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return asdict(self) | {"classes": [asdict(c) for c in self.classes]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "SegmenterConfig":
        """Read what ``to_json`` wrote.

        Raises:
            InputError: A value is out of range.
            TypeError: A key is unknown or missing.
            KeyError: A key is missing.
        """
        fields = dict(document)
        fields["classes"] = ClassTable(tuple(LandClass(**entry) for entry in fields["classes"]))
        fields["backbone"] = BackboneConfig(**fields["backbone"])
        fields["head"] = HeadConfig(**fields["head"])
        for key in ("bands", "mean", "std"):
            fields[key] = tuple(fields[key])
        return cls(**fields)


class Segmenter(nn.Module):
    """Classify every pixel of an image.

    Images are float tensors (batch, channel, height, width): the bands in 0..1 and, for a network
    with heights, the heights in 0..1, ``NO_HEIGHT`` where there is none. Without that channel such
    a network takes all heights for missing.

    Args:
        config: What to build; weights are random until loaded.

    Raises:
        InputError: The backbone or head is unknown, or the head is for heights and there are none.
    """

    mean: Tensor
    std: Tensor

    backbone: Backbone
    """The transformer; ``TwoStreams`` of one for a network with heights."""

    settled: list[Settled]
    """Modules of earlier trainings that are part of the frozen network now."""

    view: View
    """How images are shown to the network."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.settled = []
        self.view = View()
        backbone, classes = build_backbone(config.backbone), len(config.classes)
        self._use(TwoStreams(backbone) if config.heights else backbone)
        build = build_fused_head if config.heights else build_head
        self.head = build(config.head, backbone.channels, classes=classes)
        shape = (1, len(config.mean), 1, 1)
        self.register_buffer("mean", torch.tensor(config.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(shape), persistent=False)

    def adopt(self, other: "Segmenter") -> None:
        """Use the backbone of another network, which sees heights as this one does, in its place.

        It is not copied, and what has settled in it comes with it.
        """
        self._use(other.backbone)
        self.settled = other.settled

    def _use(self, backbone: Backbone) -> None:
        self.backbone = backbone
        single = backbone.single if isinstance(backbone, TwoStreams) else backbone
        single.last_only = self.config.head.kind == "mfnet"

    def with_heights(self) -> "Segmenter":
        """Return a network with heights that holds copies of this one's weights.

        Whatever the heights, it classifies as this one does until it is trained; logits differ in
        their last bits at most, as the transformer sees a batch of twice the size. A network with
        heights is copied as it is.
        """
        made = copy.deepcopy(self)
        if not self.config.heights:
            made.config = replace(self.config, heights=True)
            made.backbone = TwoStreams(made.backbone)
            made.head = fused(made.head, self.backbone.channels)
        return made.to(self.mean.device).train(self.training)

    def features(self, images: Tensor) -> tuple[list[Tensor], torch.Size]:
        """Map images (b, c, h, w), any size, to what the head sees.

        Returns:
            The feature maps, finest first, and the height and width in pixels that they cover:
            the image's, enlarged at the lower and right edge to whole patches. A network with
            heights gives the maps of the bands and then those of the heights.
        """
        padded = self.scaled(images)
        return self.backbone(padded), padded.shape[-2:]

    def scaled(self, images: Tensor) -> Tensor:
        """Map images (b, c, h, w) to what the backbone sees: normalised, whole patches.

        For a network with heights two channels follow the bands: heights, 0 where there is none,
        and 1 where there is one, else 0.
        """
        bands = images[:, : len(self.config.bands)]
        normalised = (self.view(bands) - self.mean) / self.std
        padded = pad_to_patch(normalised, self.backbone.patch_px)
        if not self.config.heights:
            return padded
        return torch.cat([padded, self._scaled_heights(images)], dim=1)

    def _scaled_heights(self, images: Tensor) -> Tensor:
        """Return heights and where they are, (b, 2, h, w); none where the image is enlarged."""
        heights = images[:, len(self.config.bands) :]
        if heights.shape[1] == 0:
            heights = torch.full_like(images[:, :1], NO_HEIGHT)
        known = heights >= 0
        normalised = torch.where(known, (heights - _HEIGHT_MEAN) / _HEIGHT_STD, 0.0)
        both = torch.cat([normalised, known.to(normalised.dtype)], dim=1)
        rows, cols = missing_to_patch(images, self.backbone.patch_px)
        return functional.pad(both, (0, cols, 0, rows))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, c, h, w), any size, to logits (b, classes, h, w)."""
        rows, cols = images.shape[-2:]
        return self.logits(*self.features(images))[..., :rows, :cols]

    def logits(self, maps: Sequence[Tensor], covered_px: torch.Size) -> Tensor:
        """Map what ``features`` returns to logits (b, classes, *covered_px)."""
        return functional.interpolate(self.head(maps), size=covered_px, mode="bilinear")
