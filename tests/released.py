"""Random checkpoints with the names and shapes of those that CrossEarth's authors released."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network; by default of a small one."""

    dim: int = 128
    depth: int = 4
    side_px: int = 64
    tokens: int = 5
    rank: int = 3
    width: int = 64
    classes: int = 3
    pixel_layers: int = 2
    decoder_layers: int = 4


PUBLISHED = Sizes(
    dim=1024,
    depth=24,
    side_px=512,
    tokens=100,
    rank=16,
    width=256,
    classes=6,
    pixel_layers=6,
    decoder_layers=9,
)


def shapes(sizes: Sizes) -> dict[str, Shape]:
    """Return the shape of every tensor that the released inference code loads, by name."""
    backbone = {f"backbone.{k}": v for k, v in _backbone(sizes)}
    reins = {f"backbone.reins.{k}": v for k, v in _reins(sizes)}
    head = dict(_pixels(sizes)) | dict(_decoder(sizes))
    return backbone | reins | {f"decode_head.{k}": v for k, v in head.items()}


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, dim: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


def _backbone(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    dim, patches = sizes.dim, (sizes.side_px // 16) ** 2
    yield "cls_token", (1, 1, dim)
    yield "pos_embed", (1, patches + 1, dim)
    yield "mask_token", (1, dim)
    yield "patch_embed.proj.weight", (dim, 3, 16, 16)
    yield "patch_embed.proj.bias", (dim,)
    for layer in range(sizes.depth):
        block = f"blocks.{layer}"
        yield from _norm(f"{block}.norm1", dim)
        yield from _linear(f"{block}.attn.qkv", 3 * dim, dim)
        yield from _linear(f"{block}.attn.proj", dim, dim)
        yield f"{block}.ls1.gamma", (dim,)
        yield from _norm(f"{block}.norm2", dim)
        yield from _linear(f"{block}.mlp.fc1", 4 * dim, dim)
        yield from _linear(f"{block}.mlp.fc2", dim, 4 * dim)
        yield f"{block}.ls2.gamma", (dim,)
    yield from _norm("norm", dim)


def _reins(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    dim, width = sizes.dim, sizes.width
    yield "scale", ()
    yield "learnable_tokens_a", (sizes.depth, sizes.tokens, sizes.rank)
    yield "learnable_tokens_b", (sizes.depth, sizes.rank, dim)
    yield from _linear("mlp_token2feat", dim, dim)
    yield from _linear("mlp_delta_f", dim, dim)
    yield from _linear("transform", width, dim)
    yield from _linear("merge", width, 3 * width)


def _pixels(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    dim, width, heads, pixels = sizes.dim, sizes.width, sizes.width // 32, "pixel_decoder"
    for level in range(3):
        yield f"{pixels}.input_convs.{level}.conv.weight", (width, dim, 1, 1)
        yield f"{pixels}.input_convs.{level}.conv.bias", (width,)
        yield from _norm(f"{pixels}.input_convs.{level}.gn", width)
    for layer in range(sizes.pixel_layers):
        each = f"{pixels}.encoder.layers.{layer}"
        yield from _linear(f"{each}.self_attn.sampling_offsets", heads * 3 * 4 * 2, width)
        yield from _linear(f"{each}.self_attn.attention_weights", heads * 3 * 4, width)
        yield from _linear(f"{each}.self_attn.value_proj", width, width)
        yield from _linear(f"{each}.self_attn.output_proj", width, width)
        yield from _linear(f"{each}.ffn.layers.0.0", 4 * width, width)
        yield from _linear(f"{each}.ffn.layers.1", width, 4 * width)
        for norm in range(2):
            yield from _norm(f"{each}.norms.{norm}", width)
    yield f"{pixels}.level_encoding.weight", (3, width)
    yield f"{pixels}.lateral_convs.0.conv.weight", (width, dim, 1, 1)
    yield from _norm(f"{pixels}.lateral_convs.0.gn", width)
    yield f"{pixels}.output_convs.0.conv.weight", (width, width, 3, 3)
    yield from _norm(f"{pixels}.output_convs.0.gn", width)
    yield f"{pixels}.mask_feature.weight", (width, width, 1, 1)
    yield f"{pixels}.mask_feature.bias", (width,)


def _decoder(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    width, decoder = sizes.width, "transformer_decoder"
    for layer in range(sizes.decoder_layers):
        each = f"{decoder}.layers.{layer}"
        for attention in ("self_attn", "cross_attn"):
            yield f"{each}.{attention}.attn.in_proj_weight", (3 * width, width)
            yield f"{each}.{attention}.attn.in_proj_bias", (3 * width,)
            yield from _linear(f"{each}.{attention}.attn.out_proj", width, width)
        yield from _linear(f"{each}.ffn.layers.0.0", 8 * width, width)
        yield from _linear(f"{each}.ffn.layers.1", width, 8 * width)
        for norm in range(3):
            yield from _norm(f"{each}.norms.{norm}", width)
    yield from _norm(f"{decoder}.post_norm", width)
    yield "level_embed.weight", (3, width)
    yield from _linear("cls_embed", sizes.classes + 1, width)
    for layer in (0, 2, 4):
        yield from _linear(f"mask_embed.{layer}", width, width)
    yield from _linear("querys2feat", width, width)


def released_state(sizes: Sizes | None = None) -> dict[str, torch.Tensor]:
    """Draw a checkpoint that lets no part of the network fall silent."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in shapes(sizes or Sizes()).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("gamma") or (("norm" in name or ".gn." in name) and "weight" in name):
            state[name] = 1 + 0.1 * noise
        elif name.endswith("sampling_offsets.bias"):
            state[name] = 2 * noise  # pixels
        elif len(shape) > 1 and name.endswith("weight"):
            state[name] = noise / math.prod(shape[1:]) ** 0.5
        else:
            state[name] = noise / 2
    return state
