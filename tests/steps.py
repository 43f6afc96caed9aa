"""Batches of coloured rectangles: what a training stream gives, without files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

COLOURS = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))


@dataclass
class ColourSteps(IterableDataset[dict[str, Any]]):
    """Source images of four rectangles; target images alike, but darker."""

    first: int = 0
    rank: int = 0
    ranks: int = 1
    batch_size: int = 2
    darkness: float = 0.7
    mislabel: int | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        return map(self.batch, range(self.first + turn, 1000, workers))

    def batch(self, step: int) -> dict[str, Any]:
        places = [self.rank * self.batch_size + i for i in range(self.batch_size)]
        source = [self._item(step, place) for place in places]
        target = [self._item(step, 100 + place) for place in places]
        images, labels = map(torch.stack, zip(*source, strict=True))
        if self.mislabel is not None:
            labels[labels == 0] = self.mislabel
        dark = torch.stack([image for image, _ in target]) * self.darkness
        valid = torch.ones(dark.shape[0], *dark.shape[2:], dtype=torch.bool)
        return {"source": (images, labels), "target": dark, "target_valid": valid}

    def _item(self, step: int, place: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * step + place)
        classes = torch.randint(5, (2, 2), generator=generator)
        labels = classes.repeat_interleave(16, 0).repeat_interleave(16, 1)
        noise = 0.1 * torch.randn(3, *labels.shape, generator=generator)
        return COLOURS[labels].permute(2, 0, 1) + noise, labels
