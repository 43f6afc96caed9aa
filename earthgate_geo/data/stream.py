"""The batches of a training run: a step's is the same whatever came before it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from earthgate_geo.data.augment import mirrored_crop, plain_crop, random_crop
from earthgate_geo.data.patches import PatchDataset
from earthgate_geo.errors import InputError
from earthgate_geo.recipe import Recipe

_SOURCE, _TARGET, _ORDER = 0, 1, 2
"""What random numbers are for."""


class StepStream(IterableDataset[dict[str, Any]]):
    """The batches of a run, one per step, for a ``DataLoader`` with ``batch_size=None``.

    Every item is drawn by a generator of its own, seeded by the recipe, the step and its place in
    the batches of all processes together: a run that resumes sees what it would have seen, and
    several processes see what one process with their batches joined would. Patches come in random
    order, each once before any comes again. The workers of a loader take turns by steps.

    Args:
        source: Labelled patches.
        target: Patches of the target; labels that they have are never read.
        recipe: Steps, batches per process, size of the crops, augmentation and seed.
        first_step: Step to start from, 0-based.
        rank: Number of this process, 0-based.
        ranks: Number of processes.

    Raises:
        InputError: There is no patch, or no target where the recipe trains on one.
    """

    def __init__(
        self,
        source: PatchDataset,
        target: PatchDataset | None = None,
        *,
        recipe: Recipe,
        first_step: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if not len(source) or (recipe.target_batch and not target):
            raise InputError(
                found="no image to train on" if not len(source) else "no target image",
                expected="one or more",
            )
        self._source = source
        self._target = target.without_labels() if target and recipe.target_batch else None
        self._recipe, self._first_step = recipe, first_step
        self._rank, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self._first_step + turn, self._recipe.steps, workers):
            yield self.batch(step)

    def batch(self, step: int) -> dict[str, Any]:
        """Return the batch of a step.

        Returns:
            ``source``: images float32 (batch, channel, row, col) as ``PatchDataset`` reads them
            and labels int64 (batch, row, col), class indices, ``OTHER`` or ``UNKNOWN``.
            ``target``: images, or None without a
            target; ``target_valid``: bool (batch, row, col), True where they have data, or None.

        Raises:
            EarthgateError: As ``PatchDataset`` says.
        """
        source = self._items(self._source, step, self._recipe.batch, _SOURCE)
        found = {"source": (_stack(source, "image"), _stack(source, "mask"))}
        if self._target is None:
            return found | {"target": None, "target_valid": None}
        target = self._items(self._target, step, self._recipe.target_batch, _TARGET)
        return found | {"target": _stack(target, "image"), "target_valid": _stack(target, "valid")}

    def _items(
        self, patches: PatchDataset, step: int, count: int, use: int
    ) -> list[dict[str, Tensor]]:
        plain = mirrored_crop if self._recipe.mirrored else plain_crop
        cut_out = random_crop if self._recipe.augment else plain
        seed, items = self._recipe.seed, []
        for index in range(self._rank * count, (self._rank + 1) * count):
            drawn = step * count * self._ranks + index
            epoch, place = divmod(drawn, len(patches))
            order = np.random.default_rng((seed, use + _ORDER, epoch, 0)).permutation(len(patches))
            rng = np.random.default_rng((seed, use, step, index))
            items.append(cut_out(patches[int(order[place])], self._recipe.crop_px, rng))
        return items


def _stack(items: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([item[name] for item in items])
