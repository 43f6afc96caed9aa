"""Score a network on labelled images, by sliding windows where they are larger than a crop."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from earthgate_geo.bench.settings import Setting
from earthgate_geo.data.patches import PatchDataset
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


@dataclass(kw_only=True)
class Examination:
    """Scores a network on the test images whenever it is called."""

    test: PatchDataset
    """Labelled images."""

    names: tuple[str, ...]
    """The network's classes by value."""

    setting: Setting
    """Says which classes the labels name and which of them count."""

    sliding: Sliding
    """How the network sees the images."""

    found: dict[int, Confusion] = field(default_factory=dict)
    """Counts by the number of steps before them."""

    seconds: float = 0.0
    """Time of everything so far."""

    @property
    def named(self) -> frozenset[int]:
        """Values of the classes that the labels name."""
        names = enumerate(self.names)
        return frozenset(value for value, name in names if name in self.setting.classes)

    def __call__(self, network: nn.Module, step: int) -> None:
        """Score ``network`` after ``step`` steps, once."""
        if step in self.found:
            return
        started = time.perf_counter()
        confusion = Confusion(self.names, named=self.named)
        items = (self.test[index] for index in range(len(self.test)))
        score(network, items, confusion, sliding=self.sliding)
        self.found[step] = confusion
        self.seconds += time.perf_counter() - started

    def iou(self, step: int) -> dict[str, float | None]:
        """Return the IoU after ``step`` steps by class that the labels name; None if undefined."""
        found = dict(zip(self.names, self.found[step].iou().tolist(), strict=True))
        return {
            name: None if math.isnan(found[name]) else found[name]
            for name in self.setting.classes
            if name in found
        }

    def mean_iou(self, step: int) -> float | None:
        """Return the mean IoU after ``step`` steps over the classes that count."""
        found = self.iou(step)
        counted = [v for k, v in found.items() if v is not None and k not in self.setting.unscored]
        return statistics.mean(counted) if counted else None

    @property
    def best_step(self) -> int:
        """The step of the highest mean IoU, the first of equals; the starting model is no step."""
        trained = [step for step in sorted(self.found) if step > 0]
        return max(trained, key=lambda step: self.mean_iou(step) or 0.0)
