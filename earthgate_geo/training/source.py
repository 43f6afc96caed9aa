"""Training of a source model from packed array files: plain torch, no rasters."""

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earthgate_geo.errors import InputError
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import Monitor
from earthgate_geo.training.crops import TilePool
from earthgate_geo.training.loop import Schedule, WeightAverage, fast_arithmetic, run
from earthgate_geo.training.losses import partial_cross_entropy, soft_dice
from earthgate_geo.training.masked import MaskedImages
from earthgate_geo.training.radiometry import vary_sensor

Batch = tuple[Tensor, Tensor]
"""Images (crop, 3, row, col) in 0..1 and class values (crop, row, col)."""

Restyle = Callable[[Tensor, np.random.Generator], Tensor]
"""Images in another style, as ``data.style.StyleInjector`` does."""

_SAVED_EVERY = 100
_CROPS, _LOSS = 1, 2
"""What random numbers are for."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How a source model is trained."""

    steps: int
    """Optimiser steps; the learning rate falls to zero over them."""

    batch: int = 16
    """Crops in a step."""

    crop_px: int = 192
    """Height and width of a crop."""

    gsd_m: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest ground size of a pixel that a crop is seen at."""

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


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where training computes, and where it keeps what it needs to go on; changes no result."""

    state: Path | None = None
    """File of an unfinished run: read if it is there, written every 100 steps and at the end."""

    device: str = "cpu"
    """Where the network computes."""

    threads: int = 0
    """Threads that cut crops ahead; 0 cuts them between two steps."""


def load_pool(path: str | Path, prefix: str, *, share: float) -> TilePool:
    """Read ``<prefix>_images``, ``_labels`` and ``_gsd_m`` of a packed ``.npz`` file."""
    with np.load(path) as packed:
        arrays = (packed[f"{prefix}_{name}"] for name in ("images", "labels", "gsd_m"))
        return TilePool(*arrays, share=share)


def train_source(
    model: Segmenter,
    pools: Sequence[TilePool],
    options: SourceOptions,
    *,
    monitor: Monitor,
    setup: Setup | None = None,
    restyle: Restyle | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place on crops of ``pools``; it ends with the averaged weights.

    All that is random in a step is drawn from the seed and the step: a run that goes on from a
    state ends with the bits of one that never stopped.

    Args:
        model: The network; all of it trains.
        pools: What to learn from.
        options: All that decides the result.
        monitor: Told of every step.
        setup: Where to compute, and what to keep.
        restyle: Puts the images of a batch into other styles.

    Returns:
        The mean loss of every 50 steps under ``"loss"`` and the seconds under ``"seconds"``.

    Raises:
        InputError: The state is that of another run.
        EarthgateError: The loss is not finite.
    """
    setup = setup or Setup()
    named = torch.zeros(len(model.config.classes), dtype=torch.bool, device=setup.device)
    named[list(options.named)] = True

    def loss(batch: Batch, rng: np.random.Generator) -> Tensor:
        images, labels = batch
        if restyle is not None:
            images = restyle(images, rng)
        logits = model(images)
        entropy = partial_cross_entropy(logits, labels, named=named)
        return entropy + 0.5 * soft_dice(logits, labels, target=options.named[0])

    return _fit(_Task("train", model, pools, loss), options, setup, monitor)


def pretrain_source(
    model: Segmenter,
    pools: Sequence[TilePool],
    options: SourceOptions,
    *,
    monitor: Monitor,
    setup: Setup | None = None,
) -> dict[str, Any]:
    """Train the backbone of ``model`` in place by masked image modelling; no label is read.

    Returns and raises what ``train_source`` does; the head stays as it is.
    """
    setup = setup or Setup()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(options.seed)
        masked = MaskedImages(model)

    def loss(batch: Batch, rng: np.random.Generator) -> Tensor:
        return masked.loss(model, batch[0], rng)

    model.to(setup.device)  # what normalises images is not part of the backbone
    trained = nn.ModuleList([model.backbone, masked])
    return _fit(_Task("pretrain", trained, pools, loss), options, setup, monitor)


@dataclass(frozen=True)
class _Task:
    """What a stage of the training does."""

    stage: str
    trained: nn.Module
    pools: Sequence[TilePool]
    loss: Callable[[Batch, np.random.Generator], Tensor]


def _fit(task: _Task, options: SourceOptions, setup: Setup, monitor: Monitor) -> dict[str, Any]:
    device, trained = torch.device(setup.device), task.trained.to(setup.device)
    parameters = dict(trained.named_parameters())
    average = WeightAverage(parameters, decay=options.ema)
    optimizer = torch.optim.AdamW(
        parameters.values(), weight_decay=options.weight_decay, fused=True
    )
    progress = _Progress(task, options, setup, average, optimizer)
    progress.load()
    schedule = Schedule(
        steps=options.steps, learning_rate=options.learning_rate, done=len(progress.losses)
    )
    batches = _ahead(
        partial(_batch, task.pools, options), range(schedule.done, schedule.steps), setup.threads
    )

    def step_loss(step: int) -> Tensor:
        images, labels = next(batches)
        rng = np.random.default_rng((options.seed, _LOSS, step))
        with fast_arithmetic(device):
            return task.loss((images.to(device), labels.to(device)), rng)

    trained.train()
    monitor.stage(task.stage, options.steps)
    with closing(batches):
        run(
            step_loss,
            optimizer,
            average,
            schedule=schedule,
            monitor=monitor,
            after_step=progress.follow,
        )
    average.copy_to_model()
    trained.eval()
    losses = progress.losses
    means = [float(np.mean(losses[i : i + 50])) for i in range(0, len(losses), 50)]
    return {"loss": means, "seconds": progress.seconds}


class _Progress:
    """How far a run is, in memory and in its state file."""

    losses: list[float]
    """Of every step so far."""

    def __init__(
        self,
        task: _Task,
        options: SourceOptions,
        setup: Setup,
        average: WeightAverage,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.losses, self._before, self._started = [], 0.0, time.perf_counter()
        self._trained, self._average, self._optimizer = task.trained, average, optimizer
        self._steps, self._setup = options.steps, setup
        pools = [(len(pool), pool.share) for pool in task.pools]
        self._about = repr({"stage": task.stage, "pools": pools} | asdict(options))

    @property
    def seconds(self) -> float:
        """Time of all steps, those before a state was read included."""
        return self._before + time.perf_counter() - self._started

    def load(self) -> None:
        """Go on where the state file left off, if there is one."""
        path = self._setup.state
        if path is None or not path.exists():
            return
        state = torch.load(  # noqa: TID251 - no code runs
            path, map_location=self._setup.device, weights_only=True
        )
        if state["about"] != self._about:
            raise InputError(
                found=f"{path} is the state of another run: {state['about']}",
                expected=self._about,
                fix="Remove it, or name another file",
            )
        self._trained.load_state_dict(state["weights"])
        self._average.load_state(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses, self._before = state["losses"], state["seconds"]

    def follow(self, done: int, loss: float) -> None:
        """Take note of a step; save now and then."""
        self.losses.append(loss)
        path = self._setup.state
        if path is None or (done % _SAVED_EVERY and done < self._steps):
            return
        state = {
            "about": self._about,
            "weights": self._trained.state_dict(),
            "average": self._average.state(),
            "optimizer": self._optimizer.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }
        fresh = path.with_name(f"{path.name}.part")
        torch.save(state, fresh)
        fresh.replace(path)


def _batch(pools: Sequence[TilePool], options: SourceOptions, step: int) -> Batch:
    rng = np.random.default_rng((options.seed, _CROPS, step))
    shares = np.array([pool.share for pool in pools])
    images, labels = [], []
    for pool in rng.choice(len(pools), size=options.batch, p=shares / shares.sum()):
        image, its_labels = pools[pool].crop(options.crop_px, rng, gsd_m=options.gsd_m)
        images.append(vary_sensor(image, rng))
        labels.append(its_labels)
    # Bands last: convolutions of few channels run faster so.
    return torch.stack(images).contiguous(memory_format=torch.channels_last), torch.stack(labels)


def _ahead(
    batch: Callable[[int], Batch], steps: Sequence[int], threads: int
) -> Generator[Batch, None, None]:
    """Yield the batches of ``steps``, cut by threads that are up to two batches each ahead."""
    if threads == 0:
        yield from map(batch, steps)
        return
    with ThreadPoolExecutor(threads) as executor:
        coming = iter(steps)
        waiting = deque(executor.submit(batch, step) for step in islice(coming, 2 * threads))
        while waiting:
            ready = waiting.popleft().result()
            waiting.extend(executor.submit(batch, step) for step in islice(coming, 1))
            yield ready
