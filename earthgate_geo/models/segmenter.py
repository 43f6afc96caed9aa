"""The composed model: normalisation, backbone, head."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import BackboneConfig, build_backbone, pad_to_patch
from earthgate_geo.models.heads import HeadConfig, build_head
from earthgate_geo.models.view import View
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.toolbox.attach import Settled


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

    def __post_init__(self) -> None:
        if not 0 < self.gsd_min_m <= self.gsd_max_m:
            raise InputError(
                found=f"a GSD range of {self.gsd_min_m} to {self.gsd_max_m} m",
                expected="two positive numbers in ascending order",
            )

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

    Args:
        config: What to build; weights are random until loaded.

    Raises:
        InputError: The backbone or head is unknown.
    """

    mean: Tensor
    std: Tensor

    settled: list[Settled]
    """Modules of earlier trainings that are part of the frozen network now."""

    view: View
    """How images are shown to the network."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.settled = []
        self.view = View()
        self.backbone = build_backbone(config.backbone)
        self.head = build_head(config.head, self.backbone.channels, classes=len(config.classes))
        shape = (1, len(config.mean), 1, 1)
        self.register_buffer("mean", torch.tensor(config.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(shape), persistent=False)

    def features(self, images: Tensor) -> tuple[list[Tensor], torch.Size]:
        """Map images (b, c, h, w) in 0..1, any size, to what the head sees.

        Returns:
            The feature maps, finest first, and the height and width in pixels that they cover:
            the image's, enlarged at the lower and right edge to whole patches.
        """
        padded = self.scaled(images)
        return self.backbone(padded), padded.shape[-2:]

    def scaled(self, images: Tensor) -> Tensor:
        """Map images (b, c, h, w) in 0..1 to what the backbone sees: normalised, whole patches."""
        shown = self.view(images)
        return pad_to_patch((shown - self.mean) / self.std, self.backbone.patch_px)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, c, h, w) in 0..1, any size, to logits (b, classes, h, w)."""
        rows, cols = images.shape[-2:]
        return self.logits(*self.features(images))[..., :rows, :cols]

    def logits(self, maps: Sequence[Tensor], covered_px: torch.Size) -> Tensor:
        """Map what ``features`` returns to logits (b, classes, *covered_px)."""
        return functional.interpolate(self.head(maps), size=covered_px, mode="bilinear")
