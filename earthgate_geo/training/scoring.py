"""Score a network on labelled images, by sliding windows where they are larger than a crop."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from earthgate_geo.metrics import Confusion
from earthgate_geo.raster.grid import Size, Tiling, Window
from earthgate_geo.training.loop import fast_arithmetic


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """How the windows lie, and how many the network sees at once."""

    crop_px: int
    """Height and width of a window; a smaller image is seen whole."""

    stride_px: int
    """Distance between windows, at most ``crop_px``."""

    batch: int = 4
    """Windows in a pass of the network."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the network runs."""


@torch.no_grad()
def score(
    network: nn.Module,
    items: Iterable[Mapping[str, Tensor]],
    confusion: Confusion,
    *,
    sliding: Sliding,
) -> None:
    """Count what ``network`` makes of labelled images against their labels.

    The probabilities of overlapping windows are summed, and the likeliest class counts.

    Memory: a batch of windows and, in float32, the probabilities of the images that it touches.

    Args:
        network: Images (batch, channel, row, col) in 0..1 to logits (batch, class, row, col).
        items: Each with ``image`` (channel, row, col) in 0..1 and ``mask`` (row, col), class
            indices, ``OTHER`` or ``UNKNOWN``.
        confusion: Counts on.
        sliding: The windows.
    """
    training = network.training
    network.eval()
    views = chain.from_iterable(_views(item, confusion, sliding) for item in items)
    for batch in _batches(views, sliding.batch):
        crops = torch.stack([view.crop() for view in batch]).to(sliding.device)
        with fast_arithmetic(sliding.device):
            logits = network(crops)
        for view, probabilities in zip(batch, logits.float().softmax(1).cpu(), strict=True):
            view.image.add(view.window, probabilities)
    network.train(training)


class _Image:
    """An image with the summed probabilities of its windows so far."""

    def __init__(self, item: Mapping[str, Tensor], confusion: Confusion, windows: int) -> None:
        self.pixels, self._mask = item["image"], item["mask"]
        self._confusion, self._left = confusion, windows
        self._sum = torch.zeros(len(confusion.names), *self._mask.shape)

    def add(self, window: Window, probabilities: Tensor) -> None:
        """Add a window (class, row, col); count the image once it was the last."""
        self._sum[:, window.row : window.row_stop, window.col : window.col_stop] += probabilities
        self._left -= 1
        if not self._left:
            self._confusion.add(self._mask.numpy(), self._sum.argmax(0).numpy())


@dataclass(frozen=True)
class _View:
    image: _Image
    window: Window

    def crop(self) -> Tensor:
        w = self.window
        return self.image.pixels[:, w.row : w.row_stop, w.col : w.col_stop]


def _views(item: Mapping[str, Tensor], confusion: Confusion, sliding: Sliding) -> Iterator[_View]:
    rows, cols = item["mask"].shape
    tile = Size(min(rows, sliding.crop_px), min(cols, sliding.crop_px))
    stride = Size(min(tile.rows, sliding.stride_px), min(tile.cols, sliding.stride_px))
    windows = list(Tiling(Size(rows, cols), tile, stride))
    image = _Image(item, confusion, len(windows))
    return (_View(image, window) for window in windows)


def _batches(views: Iterable[_View], most: int) -> Iterator[list[_View]]:
    """Yield neighbours of one size, at most ``most`` of them."""
    batch: list[_View] = []
    for view in views:
        if batch and (len(batch) == most or view.window.size != batch[0].window.size):
            yield batch
            batch = []
        batch.append(view)
    if batch:
        yield batch
