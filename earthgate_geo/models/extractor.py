"""Convolutions beside the transformer that enrich its feature maps while it trains."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

_SHARES = (16, 8, 4, 2, 1)
_STRIDES = (2, 2, 2, 2, 1)


class Extractor(nn.Module):
    """Look at an image by convolutions, and let what is seen attend to the feature maps.

    Source:
        Our reading of a figure of CrossEarth, arXiv:2410.22629 (geospatial semantic extractor and
        injectors): five convolutions with ReLU to stride 16, then cross-attention whose queries
        are the extractor's and whose keys and values are a map's, a linear layer, and the sum with
        the map. Kernels, widths, heads and norms are not known: 3 x 3, the transformer's width in
        the end, one head, and layer norm before attention. Maps are averaged over the cells of
        the extractor's grid; what is added is resized to the map. The linear layer starts at
        zero: a new extractor changes nothing.

    Args:
        channels: Channels of each map.
        width: Channels of the extractor, a multiple of 16.
        bands: Bands of the image.
    """

    def __init__(self, channels: Sequence[int], *, width: int, bands: int = 3) -> None:
        super().__init__()
        widths = (bands, *(width // share for share in _SHARES))
        self.look = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(*pair, 3, stride=stride, padding=1), nn.ReLU())
                for pair, stride in zip(pairwise(widths), _STRIDES, strict=True)
            )
        )
        self.injectors = nn.ModuleList(_Injector(c, width) for c in channels)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Enrich the maps (b, channels[i], h_i, w_i) of images (b, bands, h, w), normalised."""
        seen = self.look(images)
        return [inject(seen, x) for inject, x in zip(self.injectors, maps, strict=True)]


class _Injector(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm_seen, self.norm_map = nn.LayerNorm(width), nn.LayerNorm(channels)
        self.query = nn.Linear(width, channels)
        self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, seen: Tensor, level: Tensor) -> Tensor:
        rows, cols = seen.shape[-2:]
        asked = self.norm_seen(_tokens(seen))
        tokens = self.norm_map(_tokens(functional.adaptive_avg_pool2d(level, (rows, cols))))
        found = functional.scaled_dot_product_attention(
            self.query(asked), self.key(tokens), self.value(tokens)
        )
        added = self.out(found).transpose(1, 2).unflatten(2, (rows, cols))
        return level + functional.interpolate(added, size=level.shape[-2:], mode="bilinear")


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (b, h*w, c)
