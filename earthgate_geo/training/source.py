"""Training of a source model from one packed array file: plain torch, no rasters."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import Monitor
from earthgate_geo.training.loop import Schedule, WeightAverage, fast_arithmetic, run
from earthgate_geo.training.losses import partial_cross_entropy, soft_dice
from earthgate_geo.training.radiometry import resize, vary_radiometry


@dataclass(frozen=True)
class TilePool:
    """Labelled tiles of one origin, all of one size."""

    images: NDArray[np.uint8]
    """Digital numbers scaled to 0..255, (tile, 3, row, col)."""

    labels: NDArray[np.uint8]
    """Class values, ``OTHER`` or ``UNKNOWN``, (tile, row, col)."""

    share: float
    """Share of this pool in a batch, 0..1."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a source model is trained."""

    steps: int
    """Optimiser steps; the learning rate falls to zero over them."""

    batch: int = 16
    """Crops in a step."""

    crop_px: int = 192
    """Height and width of a crop."""

    learning_rate: float = 1e-3
    """Peak, after a warm-up of a twentieth of the steps."""

    weight_decay: float = 0.05
    """Of AdamW."""

    ema: float = 0.998
    """Decay of the weight average that is kept."""

    seed: int = 0
    """Of sampling and augmentation."""

    named: tuple[int, ...] = (0,)
    """Classes that the partly labelled pools name."""


def load_pool(path: str | Path, prefix: str, *, share: float) -> TilePool:
    """Read the arrays ``<prefix>_images`` and ``<prefix>_labels`` of a packed ``.npz`` file."""
    with np.load(path) as packed:
        return TilePool(packed[f"{prefix}_images"], packed[f"{prefix}_labels"], share)


def train_source(
    model: Segmenter, pools: list[TilePool], options: SourceOptions, *, monitor: Monitor
) -> dict[str, Any]:
    """Train ``model`` in place on crops of ``pools``; it ends with the averaged weights.

    Returns:
        The mean loss of every 50 steps under ``"loss"`` and the seconds under ``"seconds"``.
    """
    batches = _batches(pools, options, np.random.default_rng(options.seed))
    parameters = dict(model.named_parameters())
    average = WeightAverage(parameters, decay=options.ema)
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=options.weight_decay)
    named = torch.zeros(len(model.config.classes), dtype=torch.bool)
    named[list(options.named)] = True

    def step_loss(_: int) -> Tensor:
        images, labels = next(batches)
        with fast_arithmetic(images.device):
            logits = model(images)
        loss = partial_cross_entropy(logits, labels, named=named)
        return loss + 0.5 * soft_dice(logits, labels, target=options.named[0])

    schedule = Schedule(steps=options.steps, learning_rate=options.learning_rate)
    started = time.perf_counter()
    model.train()
    monitor.stage("train", options.steps)
    losses = run(step_loss, optimizer, average, schedule=schedule, monitor=monitor)
    average.copy_to_model()
    model.eval()
    means = [float(np.mean(losses[i : i + 50])) for i in range(0, len(losses), 50)]
    return {"loss": means, "seconds": time.perf_counter() - started}


def _batches(
    pools: list[TilePool], options: SourceOptions, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    shares = np.array([pool.share for pool in pools])
    for _ in range(options.steps):
        origin = rng.choice(len(pools), size=options.batch, p=shares / shares.sum())
        crops = [_crop(pools[i], options.crop_px, rng) for i in origin]
        yield torch.stack([c[0] for c in crops]), torch.stack([c[1] for c in crops])


def _crop(pool: TilePool, crop_px: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    index = int(rng.integers(len(pool.images)))
    image, labels = pool.images[index], pool.labels[index]
    size = image.shape[-1]
    side = int(np.clip(crop_px * np.exp(rng.uniform(-0.7, 0.7)), 64, size))
    row, col = rng.integers(size - side + 1, size=2)
    bands = torch.from_numpy(image[:, row : row + side, col : col + side]).float() / 255
    truth = torch.from_numpy(labels[row : row + side, col : col + side].astype(np.int64))
    bands = resize(bands, crop_px)
    truth = functional.interpolate(truth[None, None].float(), size=crop_px, mode="nearest-exact")
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    bands, truth = torch.rot90(bands, turns, (1, 2)), torch.rot90(truth[0, 0], turns, (0, 1))
    if mirror:
        bands, truth = bands.flip(2), truth.flip(1)
    return vary_radiometry(_choose_bands(bands, rng), rng), truth.long()


def _choose_bands(bands: Tensor, rng: np.random.Generator) -> Tensor:
    """Show the bands as they are, at times as grey, rarely in another order."""
    draw = rng.random()
    if draw < 0.1:
        return bands.mean(0, keepdim=True).expand(3, -1, -1)
    if draw > 0.97:
        return bands[torch.from_numpy(rng.permutation(3))]
    return bands
