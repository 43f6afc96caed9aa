"""Networks that the authors of CrossEarth released, under our names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.errors import InputError, ModelFileError
from earthgate_geo.models.backbone import BackboneConfig, default_options, default_scaling
from earthgate_geo.models.checkpoint import KeyReport, fit_checkpoint
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig
from earthgate_geo.toolbox.attach import Settled, attach, settle
from earthgate_geo.toolbox.base import Kind, Slot, ToolboxConfig

BACKBONE = "vit_large_patch14_dinov2"
"""timm's name of the backbone that all of them have."""

_BACKBONE, _REIN, _HEAD = "backbone.", "backbone.reins.", "decode_head."
_ANCHOR = f"{_HEAD}cls_embed.weight"
_KERNEL, _TABLE = "patch_embed.proj.weight", "pos_embed"
_PATCH_PX = 16
_TILE_PX = 512
_HEAD_CHANNELS = 64
_EXPECTED = "a released state dict: DINOv2, LoRA-Rein and mmsegmentation's Mask2Former"
_FIX = "Check that it is one of CrossEarth's, and copy the file again"

_SHARED = {
    "shared.values.weight": "mlp_token2feat.weight",
    "shared.values.bias": "mlp_token2feat.bias",
    "shared.up.weight": "mlp_delta_f.weight",
    "shared.up.bias": "mlp_delta_f.bias",
    "shared.scale": "scale",
}
"""Parameters of our first Rein module, and their names."""

_TOKENS = ("learnable_tokens_a", "learnable_tokens_b")
_LINK = ("transform.weight", "transform.bias", "merge.weight", "merge.bias")
"""Of Rein: what makes queries of its tokens, together with the head's ``_TO_FEATURES``."""

_TO_FEATURES = ("querys2feat.weight", "querys2feat.bias")
_POSITIONS, _FEATURES = "queries.queries_embedder.weight", "queries.queries_features.weight"

_SOURCES = (
    (r"^pixels\.input_projections\.(\d+)\.0\.", r"pixel_decoder.input_convs.\1.conv."),
    (r"^pixels\.input_projections\.(\d+)\.1\.", r"pixel_decoder.input_convs.\1.gn."),
    (r"^pixels\.adapter_1\.0\.", "pixel_decoder.lateral_convs.0.conv."),
    (r"^pixels\.adapter_1\.1\.", "pixel_decoder.lateral_convs.0.gn."),
    (r"^pixels\.layer_1\.0\.", "pixel_decoder.output_convs.0.conv."),
    (r"^pixels\.layer_1\.1\.", "pixel_decoder.output_convs.0.gn."),
    (r"^pixels\.mask_projection\.", "pixel_decoder.mask_feature."),
    (r"^pixels\.level_embed$", "pixel_decoder.level_encoding.weight"),
    (r"^(pixels\.encoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norms.0."),
    (r"^(pixels\.encoder\.layers\.\d+\.)final_layer_norm\.", r"\1norms.1."),
    (r"^pixels\.", "pixel_decoder."),
    (r"^(queries\.decoder\.layers\.\d+\.)cross_attn_layer_norm\.", r"\1norms.0."),
    (r"^(queries\.decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norms.1."),
    (r"^(queries\.decoder\.layers\.\d+\.)final_layer_norm\.", r"\1norms.2."),
    (r"^(queries\.decoder\.layers\.\d+\.\w+_attn\.)", r"\1attn."),
    (r"\.[qkv]_proj\.(weight|bias)$", r".in_proj_\1"),
    (r"^queries\.decoder\.layernorm\.", "transformer_decoder.post_norm."),
    (r"^queries\.decoder\.mask_predictor\.mask_embedder\.0\.0\.", "mask_embed.0."),
    (r"^queries\.decoder\.mask_predictor\.mask_embedder\.1\.0\.", "mask_embed.2."),
    (r"^queries\.decoder\.mask_predictor\.mask_embedder\.2\.0\.", "mask_embed.4."),
    (r"^queries\.decoder\.", "transformer_decoder."),
    (r"^queries\.level_embed\.", "level_embed."),
    (r"\.fc1\.", ".ffn.layers.0.0."),
    (r"\.fc2\.", ".ffn.layers.1."),
    (r"^classify\.", "cls_embed."),
)
"""How a tensor of our head is called in theirs: substitutions, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A released network under our names, and what became of its tensors."""

    segmenter: Segmenter
    """Ready to map; the Rein modules are settled."""

    used: tuple[str, ...]
    """Tensors of the checkpoint that the network is made of."""

    ignored: tuple[str, ...]
    """The others: parts that only training needs, and its state."""

    backbone: KeyReport
    """What became of the backbone's tensors, which may be of another file."""

    def ignored_parts(self) -> dict[str, int]:
        """Return how many tensors were ignored, by the module that they belong to."""
        return dict(
            Counter(re.sub(r"\.(\d+(\..*)?|weight|bias)$", "", name) for name in self.ignored)
        )


def convert(
    state: Mapping[str, Tensor],
    config: SegmenterConfig,
    *,
    backbone: Mapping[str, Tensor] | None = None,
    tile_px: int | None = None,
) -> Conversion:
    """Build the network of a released checkpoint.

    The released files hold the state of a whole training. Its style network, an auxiliary head
    and a convolution stack inside Rein (``backbone.reins.high_extractor``) are not used by the
    released inference code, and not by us.

    Source:
        Gong et al. 2024, "CrossEarth", arXiv:2410.22629, as its released inference code runs it:
        DINOv2-L at patches of 16 pixels, Rein in its low-rank form after every block, and
        mmsegmentation's Mask2Former, whose queries come from Rein's tokens. Trained tokens are
        constant, so the queries are computed here, once, and no link is kept. We differ where
        ``Mask2FormerHead`` does: masks are summed at the size of the finest map, then enlarged.

    Args:
        state: Tensors by name, as ``read_checkpoint`` returns them.
        config: Classes in the checkpoint's order, bands and ground sizes; all else is read off
            the tensors.
        backbone: DINOv2's own weights, for a checkpoint that was saved without them.
        tile_px: Height and width of a tile; by default those of a position table that was made
            for patches of 16 pixels, else 512.

    Raises:
        InputError: There are more or fewer classes than the checkpoint has.
        ModelFileError: Tensors are missing or of another shape.
        MissingDependencyError: transformers is not installed.
    """
    place = _place(state)
    inside = _below(state, place)
    reins, head = _below(inside, _REIN), _below(inside, _HEAD)
    weights = _below(inside, _BACKBONE) if backbone is None else backbone
    queries = _queries(head, reins)
    sized = _sized(config, head, reins, tile_px or _tile_px(weights))
    segmenter = Segmenter(sized)
    keys = _fit(segmenter, weights)
    segmenter.settled = [_settle_reins(segmenter, reins)]
    _load_head(segmenter.head, head, queries)
    used = {_REIN + name for name in (*_TOKENS, *_SHARED.values(), *_LINK)}
    used |= {_HEAD + name for name in _TO_FEATURES}
    used |= {_HEAD + _source(name) for name in segmenter.head.state_dict()}
    if backbone is None:
        vit: Any = segmenter.backbone
        used |= {_BACKBONE + name for name in vit.vit.state_dict()}
    used = {place + name for name in used}
    return Conversion(
        segmenter=segmenter.eval(),
        used=tuple(name for name in state if name in used),
        ignored=tuple(name for name in state if name not in used),
        backbone=keys,
    )


def _place(state: Mapping[str, Tensor]) -> str:
    """Return what stands before the names of the network's tensors."""
    places = [name.removesuffix(_ANCHOR) for name in state if name.endswith(_ANCHOR)]
    if not places:
        raise ModelFileError(
            found=f"a checkpoint of {len(state)} tensors without a {_ANCHOR}",
            expected=_EXPECTED,
            fix=_FIX,
        )
    return min(places, key=len)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _taken(part: Mapping[str, Tensor], names: Iterable[str], *, of: str) -> list[Tensor]:
    """Return tensors by name; ``of`` is what stands before the names in the checkpoint."""
    missing = list(dict.fromkeys(name for name in names if name not in part))
    if missing:
        raise ModelFileError(
            found=f"a checkpoint without {len(missing)} of the network's tensors, the first "
            f"{of}{missing[0]}",
            expected=_EXPECTED,
            fix=_FIX,
        )
    return [part[name] for name in names]


def _sized(
    config: SegmenterConfig, head: Mapping[str, Tensor], reins: Mapping[str, Tensor], tile_px: int
) -> SegmenterConfig:
    """Return ``config`` with the sizes of the network."""
    tokens_a, tokens_b = _taken(reins, _TOKENS, of=_REIN)
    outputs, width = head["cls_embed.weight"].shape
    if outputs - 1 != len(config.classes):  # the last is "no object"
        raise InputError(
            found=f"{len(config.classes)} classes for a checkpoint of {outputs - 1}",
            expected="the checkpoint's classes, in its order",
        )
    depth, dim = tokens_b.shape[0], tokens_b.shape[-1]
    shape = {"depth": depth, "embed_dim": dim, "num_heads": dim // _HEAD_CHANNELS}
    scaling: dict[str, Any] = dict(default_scaling(BACKBONE))
    return replace(
        config,
        backbone=BackboneConfig(name=BACKBONE, options=default_options(BACKBONE, tile_px) | shape),
        head=HeadConfig(
            kind="mask2former",
            width=width,
            queries=tokens_a.shape[1],
            pixel_layers=_layers(head, "pixel_decoder.encoder.layers."),
            decoder_layers=_layers(head, "transformer_decoder.layers."),
        ),
        tile_px=tile_px,
        **scaling,
    )


def _layers(head: Mapping[str, Tensor], prefix: str) -> int:
    # One at least, so that a head without layers is refused for its missing tensors.
    return max(1, len({name.partition(".")[0] for name in _below(head, prefix)}))


def _tile_px(weights: Mapping[str, Tensor]) -> int:
    kernel, table = (
        next((v for k, v in weights.items() if k == name or k.endswith(f".{name}")), None)
        for name in (_KERNEL, _TABLE)
    )
    if kernel is None or table is None or kernel.shape[-1] != _PATCH_PX:
        return _TILE_PX
    return isqrt(table.shape[1]) * _PATCH_PX  # one token is the class's


def _fit(segmenter: Segmenter, weights: Mapping[str, Tensor]) -> KeyReport:
    plain = {name: v for name, v in weights.items() if not name.startswith("reins.")}
    if not plain:
        raise ModelFileError(
            found="a checkpoint without its backbone",
            expected="DINOv2-L beside Rein and the head",
            fix="Give DINOv2's weights with --weights FILE, or --weights published",
        )
    try:
        return fit_checkpoint(segmenter.backbone, plain)
    except ModelFileError as error:
        raise ModelFileError(found=error.found, expected="those of DINOv2-L", fix=_FIX) from error


def _settle_reins(segmenter: Segmenter, reins: Mapping[str, Tensor]) -> Settled:
    """Put Rein's modules into the backbone for good."""
    tokens_a, tokens_b = _taken(reins, _TOKENS, of=_REIN)
    shared = _taken(reins, _SHARED.values(), of=_REIN)
    sizes = ToolboxConfig(
        kinds=(Kind.REIN,), rein_tokens=tokens_a.shape[1], rein_rank=tokens_a.shape[2]
    )
    modules = {f"{Slot(0, Kind.REIN)}.{k}": v for k, v in zip(_SHARED, shared, strict=True)}
    for layer, (a, b) in enumerate(zip(tokens_a, tokens_b, strict=True)):
        modules |= {f"{Slot(layer, Kind.REIN)}.a": a, f"{Slot(layer, Kind.REIN)}.b": b}
    toolbox = attach(segmenter.backbone, sizes)
    toolbox.load_state_dict(modules)
    return settle(toolbox, sizes)


def _load_head(ours: nn.Module, head: Mapping[str, Tensor], queries: Mapping[str, Tensor]) -> None:
    wanted = ours.state_dict()
    sources = {name: _source(name) for name in wanted if name not in queries}
    tensors = _taken(head, sources.values(), of=_HEAD)
    given = {name: _part(name, v) for name, v in zip(sources, tensors, strict=True)}
    given |= queries
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise ModelFileError(
                found=f"a checkpoint whose {_HEAD}{_source(name)} makes {name} of the shape "
                f"{tuple(tensor.shape)}",
                expected=f"{tuple(wanted[name].shape)}",
                fix=_FIX,
            )
    ours.load_state_dict(given)


def _source(name: str) -> str:
    """Return what the tensor ``name`` of our head is called in theirs."""
    for pattern, replacement in _SOURCES:
        name = re.sub(pattern, replacement, name)
    return name


def _part(name: str, source: Tensor) -> Tensor:
    """Return the share of a tensor that ours holds: theirs has q, k and v in one."""
    found = re.search(r"\.([qkv])_proj\.", name)
    return source if found is None else source.chunk(3)["qkv".index(found[1])]


def _queries(head: Mapping[str, Tensor], reins: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the positions and features of the queries, both (query, width)."""
    tokens_a, tokens_b = _taken(reins, _TOKENS, of=_REIN)
    link, link_bias, merge, merge_bias = _taken(reins, _LINK, of=_REIN)
    to_features = _taken(head, _TO_FEATURES, of=_HEAD)
    try:
        narrow = functional.linear(tokens_a @ tokens_b, link, link_bias)  # (layer, query, width)
        kinds = (narrow.amax(dim=0), narrow.mean(dim=0), narrow[-1])
        # Theirs lie side by side for each channel, not one after the other.
        joined = torch.stack(kinds, dim=-1).flatten(1)  # (query, width * 3)
        positions = functional.linear(joined, merge, merge_bias)
        features = functional.linear(positions, *to_features)
    except RuntimeError as error:
        raise ModelFileError(
            found="a checkpoint whose Rein tokens do not fit what makes queries of them",
            expected=_EXPECTED,
            fix=_FIX,
        ) from error
    return {_POSITIONS: positions, _FEATURES: features}
