"""MFNet's way from the maps of an image and its heights to classes: deep fusion, UNetFormer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_SQUEEZE = 16
_MAP_WIDTH = 256
_ATTENTION_HEADS = 8
_WINDOW = 8
_MLP_RATIO = 4
_GROUPS = 8
_DROPOUT = 0.1


class Excitation(nn.Module):
    """Scale every channel of a map by what the means of all its channels say.

    Source:
        Hu et al. 2018, "Squeeze-and-excitation networks", arXiv:1709.01507: mean, 1x1 to 1/16 of
        the channels, ReLU, 1x1.

    Args:
        channels: Channels of the map.
        squash: Maps what the last layer gives to the scales.
    """

    def __init__(
        self, channels: int, *, squash: Callable[[Tensor], Tensor] = torch.sigmoid
    ) -> None:
        super().__init__()
        self._squash = squash
        self.narrow = nn.Conv2d(channels, max(channels // _SQUEEZE, 1), 1)
        self.widen = nn.Conv2d(max(channels // _SQUEEZE, 1), channels, 1)

    def forward(self, level: Tensor) -> Tensor:
        """Map (b, channels, h, w) to the scaled map, of the same shape."""
        mean = level.mean(dim=(2, 3), keepdim=True)
        return level * self._squash(self.widen(functional.relu(self.narrow(mean))))


class MfnetHead(nn.Module):
    """Deep fusion of the last map of either stream, and the decoder of UNetFormer.

    Either map becomes a pyramid of 4, 2, 1 and 1/2 times its size, which squeeze and excitation
    weigh and join scale by scale. From the coarsest scale up, global-local attention takes turns
    with a weighted sum with the next finer scale, and a refinement by pixels and channels follows
    on the finest.

    Source:
        MFNet, arXiv:2410.11160, section III; Wang et al. 2022, "UNetFormer", arXiv:2109.08937:
        width 64, 8 heads of attention, windows of 8. We differ: group norm stands where there are
        batch norm and layer norm, so that a result does not depend on other images; edges are
        repeated where they mirror. A map that has not the 256 channels of SAM's neck passes a 1x1
        convolution first. At width 64 and 256 channels there are 2.2 million parameters; the
        published 6.22 million are not reached by any reading of the text that we know of.

    Args:
        channels: Channels of each map of one stream; the last one is used.
        classes: Number of classes.
        width: Channels inside the decoder, a multiple of 8.
    """

    def __init__(self, channels: Sequence[int], *, classes: int, width: int) -> None:
        super().__init__()
        self.of_bands, self.of_heights = (_Pyramid(channels[-1]) for _ in range(2))
        self.enter = _normed_conv(_MAP_WIDTH, width, 1)
        self.attend = nn.ModuleList(_GlobalLocalBlock(width) for _ in range(3))
        self.join = nn.ModuleList(_WeightedSum(width) for _ in range(3))
        self.refine = _Refinement(width)
        self.classify = nn.Sequential(
            _normed_conv(width, width, 3), nn.ReLU6(), nn.Dropout2d(_DROPOUT)
        )
        self.classify.append(nn.Conv2d(width, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the bands' maps and then the heights' to logits (b, classes, 4 h, 4 w)."""
        pairs = zip(self.of_bands(maps[len(maps) // 2 - 1]), self.of_heights(maps[-1]), strict=True)
        *finer, coarsest = (x + y for x, y in pairs)
        x = self.enter(coarsest)
        for level, attend, join in zip(reversed(finer), self.attend, self.join, strict=True):
            x = join(attend(x), level)
        logits: Tensor = self.classify(self.refine(x))
        return logits

    @torch.no_grad()
    def temper(self, temperature: float) -> None:
        """Divide the logits by ``temperature``, for good."""
        for parameter in self.classify[-1].parameters():
            parameter.div_(temperature)

    @torch.no_grad()
    def offset(self, index: int, by: float) -> None:
        """Add ``by`` to the logit of a class, for good."""
        self.classify[-1].get_parameter("bias")[index] += by


class _Pyramid(nn.Module):
    """A map at 4, 2, 1 and 1/2 times its size, excited."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = _MAP_WIDTH
        self.widen = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)
        self.four = nn.Sequential(_double(width), _norm(width), nn.GELU(), _double(width))
        self.two = _double(width)
        self.excite = nn.ModuleList(Excitation(width) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (b, channels, h, w) to four maps, finest first."""
        x = self.widen(x)
        half = functional.max_pool2d(x, 2, ceil_mode=True)
        levels = (self.four(x), self.two(x), x, half)
        return [excite(level) for excite, level in zip(self.excite, levels, strict=True)]


class _GlobalLocalBlock(nn.Module):
    """Attention within windows beside convolutions, then a layer of 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attention = _WindowAttention(width)
        self.near = _normed_conv(width, width, 3)
        self.here = _normed_conv(width, width, 1)
        self.mix = _separable(width, _WINDOW)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, _MLP_RATIO * width, 1),
            nn.ReLU6(),
            nn.Conv2d(_MLP_RATIO * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm1(x)
        # A cross of means lets the windows, which know nothing of each other, exchange.
        across = self.attention(seen)
        across = _mean(across, rows=_WINDOW, cols=1) + _mean(across, rows=1, cols=_WINDOW)
        # In this order: OpenVINO 2026.4 crashes where attention comes before the convolutions.
        x = x + self.mix(_extended(self.near(seen) + self.here(seen) + across, _WINDOW, _WINDOW))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class _WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for every offset."""

    index: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(_ATTENTION_HEADS, (2 * _WINDOW - 1) ** 2))
        nn.init.trunc_normal_(self.bias, std=0.02)
        places = torch.cartesian_prod(torch.arange(_WINDOW), torch.arange(_WINDOW))
        apart = places[:, None] - places + (_WINDOW - 1)  # (place, place, 2), from 0
        index = apart[..., 0] * (2 * _WINDOW - 1) + apart[..., 1]
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[-2:]
        x = functional.pad(x, (0, -cols % _WINDOW, 0, -rows % _WINDOW), mode="replicate")
        heads, side, (batch, width) = _ATTENTION_HEADS, _WINDOW, x.shape[:2]
        down, along = x.shape[2] // side, x.shape[3] // side
        cut = self.qkv(x).reshape(batch, 3, heads, -1, down, side, along, side)
        cut = cut.permute(1, 0, 4, 6, 2, 5, 7, 3)  # (3, b, down, along, head, side, side, c)
        q, k, v = cut.reshape(3, batch * down * along, heads, side**2, -1)
        bias = self.bias[:, self.index].to(q.dtype)
        found: Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        found = found.reshape(batch, down, along, heads, side, side, -1)
        found = found.permute(0, 3, 6, 1, 4, 2, 5)  # (b, head, c, down, side, along, side)
        return found.reshape(batch, width, down * side, along * side)[..., :rows, :cols]


class _WeightedSum(nn.Module):
    """A map, enlarged, and a finer one, in learned shares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(_MAP_WIDTH, width, 1, bias=False)
        self.weights = nn.Parameter(torch.ones(2))
        self.smooth = nn.Sequential(_normed_conv(width, width, 3), nn.ReLU6())

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        weights = functional.relu(self.weights)
        shares = weights / (weights.sum() + torch.finfo(torch.float32).eps)
        x = functional.interpolate(x, size=finer.shape[-2:], mode="bilinear")
        smoothed: Tensor = self.smooth(shares[0] * self.narrow(finer) + shares[1] * x)
        return smoothed


class _Refinement(nn.Module):
    """Attention to pixels beside attention to channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.channels = Excitation(width)
        self.short = _normed_conv(width, width, 1)
        self.mix = _separable(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.pixels(x).sigmoid() * x + self.channels(x)
        return functional.relu6(self.mix(_extended(attended, 3, 3)) + self.short(x))


def _double(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width)


def _normed_conv(before: int, after: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, _norm(after))


def _separable(width: int, kernel: int) -> nn.Sequential:
    """Make a convolution per channel and then one per pixel; give it an extended map."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel, groups=width, bias=False),
        _norm(width),
        nn.Conv2d(width, width, 1, bias=False),
    )


def _mean(x: Tensor, *, rows: int, cols: int) -> Tensor:
    """Return the means over ``rows`` and ``cols`` around every pixel."""
    return functional.avg_pool2d(_extended(x, rows, cols), (rows, cols), stride=1)


def _extended(x: Tensor, rows: int, cols: int) -> Tensor:
    """Repeat the edges so far that a kernel of ``rows`` and ``cols`` gives a map of this size."""
    pads = ((cols - 1) // 2, cols // 2, (rows - 1) // 2, rows // 2)
    return functional.pad(x, pads, mode="replicate")
