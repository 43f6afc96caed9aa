"""Frozen vision transformers that give feature maps; the only importer of timm."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.errors import InputError, ModelFileError

TINY = "earthgate_tiny"
"""Name of our own small transformer; any other name is timm's."""

_MAP_SCALES = (4.0, 2.0, 1.0, 0.5)
_PUBLISHED_TAPS = {24: (7, 11, 15, 23)}


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which transformer, and with what arguments it is built."""

    name: str = TINY
    """``earthgate_tiny`` or the name of a timm vision transformer."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor, JSON values only."""


class Backbone(nn.Module):
    """What the toolbox and the heads rely on, whatever the transformer.

    Maps images (batch, channel, height, width), normalised, height and width multiples of
    ``patch_px``, to a list of feature maps (batch, channels[i], height / strides[i], ...).
    """

    blocks: nn.ModuleList
    """Transformer blocks, first to last: what the toolbox attaches to."""

    dim: int
    """Width of a token."""

    prefix_tokens: int
    """Class and register tokens before the patch tokens."""

    patch_px: int
    """Height and width of a patch in pixels."""

    channels: tuple[int, ...]
    """Channels of each feature map, finest first."""

    streams = 1
    """How many images each input becomes on its way through the blocks."""

    last_only = False
    """Whether there is one map alone, the last block's, normalised and at the patches' stride."""

    def first_maps(self, images: Tensor, count: int) -> list[Tensor]:
        """Return the first ``count`` maps, without the work for the others where that is apart."""
        maps: list[Tensor] = self(images)
        return maps[:count]


class TinyTransformer(Backbone):
    """A convolutional stem, then transformer blocks with convolutional positions.

    The stem's maps at stride 4 and 8 are handed on, so that edges of roofs stay sharp; tokens
    live at stride 16. A depth-wise convolution before each block tells tokens where they lie,
    so that any image size works without resized position tables.

    Source:
        Stem: Xiao et al. 2021, "Early convolutions help transformers see better",
        arXiv:2106.14881, with residual blocks added. Positions: Chu et al. 2021, "Conditional
        positional encodings", arXiv:2102.10882, here before every block.

    Args:
        dim: Width of a token, a multiple of 64.
        depth: Number of transformer blocks, even.
        stem: Channels of the stem at stride 2, 4 and 8.
    """

    def __init__(
        self, *, dim: int = 192, depth: int = 8, stem: tuple[int, int, int] = (32, 64, 128)
    ) -> None:
        super().__init__()
        self.dim, self.prefix_tokens, self.patch_px = dim, 0, 16
        self._channels = (stem[1], stem[2], dim, dim)
        widths = (3, *stem, dim)
        self.stem = nn.ModuleList(_StemStage(*pair) for pair in pairwise(widths))
        self.positions = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(depth)
        )
        self.blocks = nn.ModuleList(
            Block(dim, num_heads=dim // 64, qkv_bias=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    @property
    def channels(self) -> tuple[int, ...]:  # type: ignore[override]  # follows last_only
        """Channels of each feature map, finest first."""
        return self._channels[-1:] if self.last_only else self._channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (b, 3, h, w) to maps at stride 4, 8, 16 (middle block) and 16 (last block)."""
        maps = self._stem_maps(images)
        x = maps[-1]
        shape = x.shape
        deep = []
        for index, (position, block) in enumerate(zip(self.positions, self.blocks, strict=True)):
            x = x + position(x)
            tokens = block(x.flatten(2).transpose(1, 2))  # (b, h*w, dim)
            if index + 1 == len(self.blocks):
                tokens = self.norm(tokens)
            x = tokens.transpose(1, 2).reshape(shape)
            if index + 1 in (len(self.blocks) // 2, len(self.blocks)):
                deep.append(x)
        return deep[-1:] if self.last_only else [maps[1], maps[2], *deep]

    def first_maps(self, images: Tensor, count: int) -> list[Tensor]:
        """Return the first ``count`` maps; two of them need the stem alone."""
        if count > 2:
            return super().first_maps(images, count)
        return self._stem_maps(images)[1 : 1 + count]

    def _stem_maps(self, images: Tensor) -> list[Tensor]:
        """Map (b, 3, h, w) to maps at stride 2, 4, 8 and 16."""
        maps = [images]
        for stage in self.stem:
            maps.append(stage(maps[-1]))
        return maps[1:]


class _StemStage(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()
        )
        self.mix = nn.Sequential(
            nn.Conv2d(after, after, 3, padding=1, groups=max(after // 16, 1)),
            nn.GroupNorm(1, after),
            nn.GELU(),
            nn.Conv2d(after, after, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return cast("Tensor", x + self.mix(x))


class TimmTransformer(Backbone):
    """A timm vision transformer: the plain, DINOv2, DINOv3 (EVA) and SAM families.

    Source:
        Raw outputs of four blocks, resized by 4, 2, 1 and 1/2: the DINOv2 substrate of Rein and
        Earth-Adapter. Of 24 blocks they are the published 7, 11, 15 and 23; of any other number
        they are evenly spaced. ``last_only`` is MFNet's use of SAM, whose neck then narrows the
        map to 256 channels.

    Args:
        name: timm's model name.
        options: Further keyword arguments of ``timm.create_model``.

    Raises:
        InputError: timm has no such model, or it is not a transformer with blocks.
    """

    vit: Any

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        _published(name)
        wanted = {"num_classes": 0, **options}
        if _has_plain_positions(name):
            wanted = {"dynamic_img_size": True, **wanted}
        self.vit = timm.create_model(name, pretrained=False, **wanted)
        blocks = getattr(self.vit, "blocks", None)
        if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) < len(_MAP_SCALES):
            raise InputError(
                found=f"backbone {name!r}", expected="a transformer with at least 4 blocks"
            )
        self.dim = int(self.vit.embed_dim)
        self.prefix_tokens = int(getattr(self.vit, "num_prefix_tokens", 0))
        self.patch_px = int(self.vit.patch_embed.patch_size[0])
        depth = len(blocks)
        evenly = tuple(depth * (i + 1) // len(_MAP_SCALES) - 1 for i in range(len(_MAP_SCALES)))
        self._taps = _PUBLISHED_TAPS.get(depth, evenly)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]  # timm's own container
        """Transformer blocks, first to last."""
        return cast("nn.ModuleList", self.vit.blocks)

    @property
    def channels(self) -> tuple[int, ...]:  # type: ignore[override]  # follows last_only
        """Channels of each feature map, finest first."""
        return (self.vit.num_features,) if self.last_only else (self.dim,) * len(_MAP_SCALES)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (b, 3, h, w) to four maps at 4, 2, 1 and 1/2 times the patch grid."""
        if self.last_only:
            last: list[Tensor] = self.vit.forward_intermediates(
                images, indices=1, intermediates_only=True, norm=True
            )
            return last
        maps = self.vit.forward_intermediates(
            images, indices=list(self._taps), intermediates_only=True, norm=False
        )
        return [
            functional.interpolate(x, scale_factor=scale, mode="bilinear") if scale != 1 else x
            for x, scale in zip(maps, _MAP_SCALES, strict=True)
        ]


def default_options(name: str, crop_px: int) -> dict[str, Any]:
    """Return the options with which a backbone is built to be trained on crops of ``crop_px``.

    A plain or DINOv2 transformer gets a position table of the crop's grid, and patches of 16
    pixels where it is published with 14. SAM and DINOv3 take any size as they are.

    Source:
        Rein's conversion of DINOv2, which Earth-Adapter and CrossEarth share.
    """
    if not _has_plain_positions(name):
        return {}
    options = {"img_size": -(-crop_px // 16) * 16}
    return options | ({"patch_size": 16} if "patch14" in name else {})


def default_scaling(name: str) -> dict[str, tuple[float, ...]]:
    """Return the ``mean`` and ``std`` of images, in 0..1, that published weights were trained on.

    Raises:
        InputError: timm has no such model.
    """
    if name == TINY:
        return {}
    published = _published(name)
    return {"mean": tuple(published.mean), "std": tuple(published.std)}


def pretrained_state(name: str) -> dict[str, Tensor]:
    """Return the published weights of a timm model, by download or from the hub's cache.

    Raises:
        InputError: timm has no such model, or no weights of it are published.
        ModelFileError: They are neither in the cache nor to be downloaded.
    """
    published = None if name == TINY else _published(name)
    if published is None or not published.has_weights:
        raise InputError(
            found=f"no published weights of backbone {name!r}",
            expected="a backbone whose weights timm knows",
            fix="Give a file with --weights",
        )
    try:
        vit = timm.create_model(name, pretrained=True, num_classes=0)
    except OSError as error:
        where = published.hf_hub_id and f"https://huggingface.co/{published.hf_hub_id}"
        raise ModelFileError(
            found=f"the weights of {name!r} are not in the cache and could not be downloaded",
            expected=f"model.safetensors of {where}" if where else str(published.url),
            fix="Download that file where there is a connection and give it with --weights",
        ) from error
    state: dict[str, Tensor] = vit.state_dict()
    return state


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build an untrained backbone, frozen nowhere.

    Raises:
        InputError: Unknown name or options that do not fit it.
    """
    try:
        if config.name == TINY:
            return TinyTransformer(**config.options)
        return TimmTransformer(config.name, config.options)
    except TypeError as error:
        raise InputError(
            found=f"backbone {config.name!r} with options {dict(config.options)}",
            expected="options that its constructor takes",
        ) from error


def _published(name: str) -> Any:
    """Return what timm knows about the published weights of a model."""
    if not timm.is_model(name) or ("." in name and name not in timm.list_pretrained()):
        close = ", ".join(timm.list_models(f"*{name.partition('_')[0]}*")[:5])
        raise InputError(
            found=f"backbone {name!r}",
            expected="earthgate_tiny or a vision transformer that timm knows",
            fix=f"Names like it: {close}" if close else "See timm.list_models('*vit*')",
        )
    return timm.get_pretrained_cfg(name)


def _has_plain_positions(name: str) -> bool:
    return name.startswith("vit_") and "dinov3" not in name


def freeze(module: nn.Module) -> None:
    """Stop every parameter of ``module`` from training."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def pad_to_patch(images: Tensor, patch_px: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples of ``patch_px``."""
    rows, cols = missing_to_patch(images, patch_px)
    if rows == 0 and cols == 0:
        return images
    return torch.nn.functional.pad(images, (0, cols, 0, rows), mode="replicate")


def missing_to_patch(images: Tensor, patch_px: int) -> tuple[int, int]:
    """Return how many rows and columns images lack to be multiples of ``patch_px``."""
    return -images.shape[-2] % patch_px, -images.shape[-1] % patch_px
