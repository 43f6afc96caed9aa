"""Score a network on the test images of a setting."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from earthgate_geo.bench.settings import Setting
from earthgate_geo.data.patches import PatchDataset
from earthgate_geo.metrics import Confusion
from earthgate_geo.training.scoring import Sliding, score


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
        return self._by_class(self.found[step].iou())

    def mean_iou(self, step: int) -> float | None:
        """Return the mean IoU after ``step`` steps over the classes that count."""
        return self._mean(self.iou(step))

    def mean_f1(self, step: int) -> float | None:
        """Return the mean F1 after ``step`` steps over the classes that count."""
        return self._mean(self._by_class(self.found[step].f1()))

    def accuracy(self, step: int) -> float | None:
        """Return the share of right pixels after ``step`` steps, over all classes."""
        share = self.found[step].accuracy()
        return None if math.isnan(share) else share

    def _by_class(self, scores: NDArray[np.float64]) -> dict[str, float | None]:
        found = dict(zip(self.names, scores.tolist(), strict=True))
        return {
            name: None if math.isnan(found[name]) else found[name]
            for name in self.setting.classes
            if name in found
        }

    def _mean(self, found: Mapping[str, float | None]) -> float | None:
        counted = [v for k, v in found.items() if v is not None and k not in self.setting.unscored]
        return statistics.mean(counted) if counted else None

    @property
    def best_step(self) -> int:
        """The step of the highest mean IoU, the first of equals; the starting model is no step."""
        trained = [step for step in sorted(self.found) if step > 0]
        return max(trained, key=lambda step: self.mean_iou(step) or 0.0)
