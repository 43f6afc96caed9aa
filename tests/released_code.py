"""The network as the released code of CrossEarth runs it, from tensors under its names.

Written from Rein's, MMDetection's and MMSegmentation's code and sharing nothing with ours; of the
sizes that ``released.Sizes`` has by default.
"""

import math

import torch
from released import Sizes
from torch.nn import functional

SIZES = Sizes()
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state, name, x, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def group_norm(state, name, x):
    groups = x.unflatten(1, (32, -1))
    centred = groups - groups.mean((2, 3, 4), keepdim=True)
    variance = centred.square().mean((2, 3, 4), keepdim=True)
    scaled = (centred / (variance + 1e-5).sqrt()).flatten(1, 2)
    return scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def attend(q, k, v, *, heads, blocked=None):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if blocked is not None:
        weights = weights.masked_fill(blocked[:, None], -math.inf)
    return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)


def resized(x, rows, cols):
    return functional.interpolate(x, size=(rows, cols), mode="bilinear", align_corners=False)


def rein(state, layer, f):
    at = "backbone.reins."
    tokens = state[f"{at}learnable_tokens_a"][layer] @ state[f"{at}learnable_tokens_b"][layer]
    attention = (torch.einsum("bnc,mc->bnm", f, tokens) * f.shape[-1] ** -0.5).softmax(-1)
    values = linear(state, f"{at}mlp_token2feat", tokens[1:])
    delta = torch.einsum("bnm,mc->bnc", attention[:, :, 1:], values)
    return f + linear(state, f"{at}mlp_delta_f", delta + f) * state[f"{at}scale"]


def block(state, layer, x):
    at = f"backbone.blocks.{layer}"
    qkv = linear(state, f"{at}.attn.qkv", layer_norm(state, f"{at}.norm1", x, eps=1e-6))
    mixed = linear(state, f"{at}.attn.proj", attend(*qkv.chunk(3, -1), heads=SIZES.dim // 64))
    x = x + state[f"{at}.ls1.gamma"] * mixed
    wide = linear(state, f"{at}.mlp.fc1", layer_norm(state, f"{at}.norm2", x, eps=1e-6))
    return x + state[f"{at}.ls2.gamma"] * linear(state, f"{at}.mlp.fc2", functional.gelu(wide))


def features(state, images):
    """Maps of the last four blocks at 4, 2, 1 and 1/2 times the grid."""
    kernel, bias = (state[f"backbone.patch_embed.proj.{part}"] for part in ("weight", "bias"))
    grid = functional.conv2d(images, kernel, bias, stride=16)
    rows, cols = grid.shape[-2:]
    first = state["backbone.cls_token"].expand(len(images), -1, -1)
    x = torch.cat((first, grid.flatten(2).transpose(1, 2)), dim=1)
    x = x + state["backbone.pos_embed"]
    maps = []
    for layer in range(SIZES.depth):
        x = block(state, layer, x)
        x = torch.cat((x[:, :1], rein(state, layer, x[:, 1:])), dim=1)
        maps.append(x[:, 1:].transpose(1, 2).unflatten(2, (rows, cols)))
    scales = (4, 2, 1, 0.5)
    return [resized(x, int(rows * s), int(cols * s)) for x, s in zip(maps, scales, strict=True)]


def queries(state):
    """Positions and features: for each channel the tokens' maximum, mean and last layer."""
    at = "backbone.reins."
    tokens = state[f"{at}learnable_tokens_a"] @ state[f"{at}learnable_tokens_b"]
    layers = linear(state, f"{at}transform", tokens).permute(1, 2, 0)  # token, channel, layer
    pooled = [
        functional.max_pool1d(layers, SIZES.depth),
        functional.avg_pool1d(layers, SIZES.depth),
        layers[:, :, -1:],
    ]
    positions = linear(state, f"{at}merge", torch.cat(pooled, dim=-1).flatten(-2, -1))
    return positions, linear(state, "decode_head.querys2feat", positions)


def sine(rows, cols):
    """Positions of pixels, (row * col, width): rows first, sine and cosine by turns."""
    half = SIZES.width // 2
    table = torch.zeros(rows, cols, SIZES.width)
    for channel in range(half):
        period = 10000 ** (2 * (channel // 2) / half)
        turn = math.sin if channel % 2 == 0 else math.cos
        for row in range(rows):
            table[row, :, channel] = turn((row + 1) / (rows + 1e-6) * 2 * math.pi / period)
        for col in range(cols):
            angle = (col + 1) / (cols + 1e-6) * 2 * math.pi / period
            table[:, col, half + channel] = turn(angle)
    return table.flatten(0, 1)


def looked_up(grid, x, y):
    """Read (channel, row, col) at points in pixels, zero outside."""
    rows, cols = grid.shape[-2:]
    found = 0
    for dx in (0, 1):
        for dy in (0, 1):
            col, row = x.floor() + dx, y.floor() + dy
            share = (1 - (x - col).abs()) * (1 - (y - row).abs())
            inside = (col >= 0) & (col < cols) & (row >= 0) & (row < rows)
            values = grid[:, row.clamp(0, rows - 1).long(), col.clamp(0, cols - 1).long()]
            found = found + values * (share * inside)
    return found


def deformable(state, at, x, positions, sizes):
    """Sum values at four offsets from each pixel, on each of three levels, for each head."""
    heads = SIZES.width // 32
    asked = x + positions
    offsets = linear(state, f"{at}.sampling_offsets", asked).unflatten(-1, (heads, 3, 4, 2))
    weights = linear(state, f"{at}.attention_weights", asked).unflatten(-1, (heads, 12))
    weights = weights.softmax(-1).unflatten(-1, (3, 4))
    values = linear(state, f"{at}.value_proj", x).split([r * c for r, c in sizes], dim=1)
    centres = [
        torch.stack(((i % c + 0.5) / c, (i.div(c, rounding_mode="floor") + 0.5) / r), dim=-1)
        for r, c in sizes
        for i in [torch.arange(r * c)]
    ]
    centres = torch.cat(centres)  # (query, 2), x and y in 0..1
    out = torch.zeros(*x.shape[:2], heads, 32)
    for image in range(len(x)):
        for head in range(heads):
            for level, (rows, cols) in enumerate(sizes):
                grid = values[level][image].T.unflatten(1, (rows, cols)).unflatten(0, (heads, 32))
                for point in range(4):
                    dx, dy = offsets[image, :, head, level, point].unbind(-1)
                    read = looked_up(
                        grid[head], centres[:, 0] * cols - 0.5 + dx, centres[:, 1] * rows - 0.5 + dy
                    )
                    out[image, :, head] += read.T * weights[image, :, head, level, point, None]
    return linear(state, f"{at}.output_proj", out.flatten(2))


def pixels(state, maps):
    """Mask features, and three maps from the coarsest on."""
    at = "decode_head.pixel_decoder"
    levels = maps[:0:-1]
    sizes = [tuple(level.shape[-2:]) for level in levels]
    inputs, positions = [], []
    for i, level in enumerate(levels):
        name = f"{at}.input_convs.{i}"
        kernel, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        made = group_norm(state, f"{name}.gn", functional.conv2d(level, kernel, bias))
        inputs.append(made.flatten(2).transpose(1, 2))
        positions.append(sine(*sizes[i]) + state[f"{at}.level_encoding.weight"][i])
    x, positions = torch.cat(inputs, dim=1), torch.cat(positions)
    for layer in range(SIZES.pixel_layers):
        name = f"{at}.encoder.layers.{layer}"
        x = x + deformable(state, f"{name}.self_attn", x, positions, sizes)
        x = layer_norm(state, f"{name}.norms.0", x)
        wide = linear(state, f"{name}.ffn.layers.0.0", x).relu()
        x = layer_norm(state, f"{name}.norms.1", x + linear(state, f"{name}.ffn.layers.1", wide))
    parts = x.split([r * c for r, c in sizes], dim=1)
    outs = [part.transpose(1, 2).unflatten(2, s) for part, s in zip(parts, sizes, strict=True)]
    lateral = functional.conv2d(maps[0], state[f"{at}.lateral_convs.0.conv.weight"])
    fine = group_norm(state, f"{at}.lateral_convs.0.gn", lateral)
    fine = fine + resized(outs[-1], *fine.shape[-2:])
    fine = functional.conv2d(fine, state[f"{at}.output_convs.0.conv.weight"], padding=1)
    fine = group_norm(state, f"{at}.output_convs.0.gn", fine).relu()
    kernel, bias = state[f"{at}.mask_feature.weight"], state[f"{at}.mask_feature.bias"]
    return functional.conv2d(fine, kernel, bias), outs


def attention(state, name, query, key, value, *, blocked=None):
    weights = state[f"{name}.attn.in_proj_weight"].chunk(3)
    biases = state[f"{name}.attn.in_proj_bias"].chunk(3)
    projected = [x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    mixed = attend(*projected, heads=SIZES.width // 32, blocked=blocked)
    return linear(state, f"{name}.attn.out_proj", mixed)


def proposals(state, x, fine, size):
    """Classes, masks, and where a query may not look at the next level."""
    normed = layer_norm(state, "decode_head.transformer_decoder.post_norm", x)
    mask = linear(state, "decode_head.mask_embed.0", normed).relu()
    mask = linear(state, "decode_head.mask_embed.2", mask).relu()
    mask = linear(state, "decode_head.mask_embed.4", mask)
    masks = torch.einsum("bqc,bchw->bqhw", mask, fine)
    blocked = resized(masks, *size).flatten(2).sigmoid() < 0.5
    blocked[blocked.all(-1)] = False
    return linear(state, "decode_head.cls_embed", normed), masks, blocked


def decoded(state, fine, levels):
    """Class logits (b, query, class + 1) and masks (b, query, h, w) after the last layer."""
    where, x = (each.expand(len(fine), -1, -1) for each in queries(state))
    sizes = [tuple(level.shape[-2:]) for level in levels]
    memory = [
        level.flatten(2).transpose(1, 2) + state["decode_head.level_embed.weight"][i]
        for i, level in enumerate(levels)
    ]
    blocked = proposals(state, x, fine, sizes[0])[2]
    for layer in range(SIZES.decoder_layers):
        at, level = f"decode_head.transformer_decoder.layers.{layer}", layer % 3
        keys = memory[level] + sine(*sizes[level])
        x = x + attention(
            state, f"{at}.cross_attn", x + where, keys, memory[level], blocked=blocked
        )
        x = layer_norm(state, f"{at}.norms.0", x)
        x = x + attention(state, f"{at}.self_attn", x + where, x + where, x)
        x = layer_norm(state, f"{at}.norms.1", x)
        wide = linear(state, f"{at}.ffn.layers.0.0", x).relu()
        x = layer_norm(state, f"{at}.norms.2", x + linear(state, f"{at}.ffn.layers.1", wide))
        classes, masks, blocked = proposals(state, x, fine, sizes[(layer + 1) % 3])
    return classes, masks


def scores(state, images):
    """Share of each class, (b, class, h, w) of the finest map."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    classes, masks = decoded(state, *pixels(state, features(state, (images - mean) / std)))
    return torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
