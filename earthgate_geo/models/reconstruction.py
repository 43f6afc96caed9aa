"""Feature maps back into an image: what a network learns from beside labels."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

_DILATIONS = (1, 6, 12, 18)


class ReconstructionHead(nn.Module):
    """Reconstruct an image from its feature maps.

    Every map passes the same four convolutions of different dilation side by side; the results
    are joined, resized to the image and added up.

    Source:
        CrossEarth, arXiv:2410.22629, as a training build had it that its authors once published:
        every dilation on every map, width 256. Ours: the first convolution is shared by maps of
        equally many channels alone, and what leads from all resized maps to one is a convolution
        of each map before it is resized, which is the same and never holds them together.

    Args:
        channels: Channels of each map.
        width: Channels inside the head.
        bands: Bands of the image.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 256, bands: int = 3) -> None:
        super().__init__()
        self.enter = nn.ModuleDict({str(c): nn.Conv2d(c, width, 1) for c in channels})
        self.around = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=step, dilation=step) for step in _DILATIONS
        )
        self.join = nn.Conv2d(len(_DILATIONS) * width, width, 1)
        self.add = nn.ModuleList(
            nn.Conv2d(width, width, 1, bias=index == 0) for index in range(len(channels))
        )
        self.paint = nn.Conv2d(width, bands, 1)

    def forward(self, maps: Sequence[Tensor], *, size: Sequence[int]) -> Tensor:
        """Map feature maps (b, channels[i], h_i, w_i) to an image (b, bands, *size)."""
        # One after the other: at the size of the image each is large.
        resized = (
            functional.interpolate(self._part(index, level), size=tuple(size), mode="bilinear")
            for index, level in enumerate(maps)
        )
        image: Tensor = self.paint(functional.relu(reduce(torch.add, resized)))
        return image

    def _part(self, index: int, level: Tensor) -> Tensor:
        x = self.enter[str(level.shape[1])](level)
        x = torch.cat([around(x) for around in self.around], dim=1)
        part: Tensor = self.add[index](functional.relu(self.join(x)))
        # A CPU resizes it several times faster so, and more so on the way back.
        return part.contiguous(memory_format=torch.channels_last)
