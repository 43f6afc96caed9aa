"""Run a training through Lightning: devices, states to resume from, progress, interruption."""

import json
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from earthgate_geo.errors import CancelledError, InputError
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import Monitor
from earthgate_geo.policies import Tuner
from earthgate_geo.raster.destination import storage_error
from earthgate_geo.recipe import Policy, Recipe
from earthgate_geo.training.task import Restyle, SourceTask, StepsOf

STATE = "last.ckpt"
"""Name of the state in its folder."""

STRATEGIES = ("auto", "ddp")
"""Ways of several processes to work together; Lightning knows more."""

_PROCESS = Path("/proc/self")
"""Where Linux tells about this process."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Where a training runs, what it leaves on the way, and who looks at it."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the network runs; with several ``devices`` only its kind counts."""

    devices: int = 1
    """Processes, each on a device of its own and with a batch of its own."""

    strategy: str = "auto"
    """How they work together, one of ``STRATEGIES``."""

    workers: int = 0
    """Processes that read batches ahead; without, each is read before its step."""

    folder: Path | None = None
    """Where the state is kept, as ``last.ckpt``; nothing is written without."""

    resume: bool = True
    """Whether to go on from the state that ``folder`` has."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """What decides the result beside the recipe, JSON values; other states are refused."""

    named: frozenset[int] | None = None
    """Classes that the labels name where ``OTHER`` stands for the rest; None if all."""

    injector: Restyle | None = None
    """A ``data.style.StyleInjector``, needed where the recipe has styles and nowhere else."""

    evaluate: Callable[[Segmenter, int], None] | None = None
    """Given the model, ready to predict, and the number of finished steps; first process only."""

    evaluate_every: int | None = None
    """Steps between two evaluations; after the last step there is one in any case."""


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """What a training cost, resumed parts included."""

    losses: list[float]
    """Of every step, in the first process."""

    seconds: float
    """Of all steps and choices of modules, without evaluations."""

    seconds_selecting: float
    """Of the choices alone."""

    peak_memory_bytes: int | None
    """Of the device, or of the whole program on a CPU; None where nobody can tell."""

    steps: int
    """Optimiser steps."""


def fit(
    model: Segmenter,
    tuner: Tuner,
    steps_of: StepsOf,
    recipe: Recipe,
    *,
    monitor: Monitor,
    options: FitOptions | None = None,
) -> FitRecord:
    """Train ``model`` in place by ``recipe``; it ends on ``options.device``, ready to predict.

    A state is written every ``recipe.checkpoint_every`` steps, after the last one, and where the
    monitor or Ctrl-C end the run, which they do after the step they fall into. A run resumed from
    it ends with the same weights, bit for bit on a CPU, as one that never stopped. A second
    Ctrl-C ends the run at once and leaves the state before.

    Args:
        model: Where ``tuner`` is at work.
        tuner: What trains.
        steps_of: The batches, e.g. ``StepStream`` from a first step, rank and number of ranks.
        recipe: All numbers.
        monitor: Told of every step in the stage ``train``.
        options: Where it runs and what it leaves.

    Raises:
        CancelledError: The user or the monitor ended the run.
        InputError: The state in ``options.folder`` is of another run, or ``options.injector`` and
            the styles of the recipe come without one another.
        EarthgateError: The training diverged.
        StorageError: The state cannot be written.
    """
    options = options or FitOptions()
    task = SourceTask(model, tuner, steps_of, recipe, named=options.named, restyle=options.injector)
    task.workers = options.workers
    task.about = json.loads(json.dumps(recipe.to_json() | dict(options.about)))
    model.train()
    model.backbone.train(tuner.policy is Policy.FULL)
    _forget_peak_memory(options.device)
    monitor.stage("train", recipe.steps)
    with _quiet_libraries(), _own_random_numbers(), _first_interrupt() as interrupted:
        trainer = _trainer(recipe, options)
        task.after_step = _Watch(task, monitor, options, interrupted)
        _run(trainer, task, options)
    peak = _peak_memory_bytes(options.device)
    model.to(options.device).eval()
    if options.evaluate is not None and trainer.is_global_zero:
        options.evaluate(model, recipe.steps)
    return FitRecord(
        losses=task.losses,
        seconds=task.seconds,
        seconds_selecting=task.seconds_selecting,
        peak_memory_bytes=peak,
        steps=recipe.steps,
    )


def process_rank() -> int:
    """Return the number of this process among those of one training, 0-based.

    With some strategies Lightning runs the whole program once more for each further device.
    """
    return int(getattr(rank_zero_only, "rank", None) or 0)


class _Watch:
    """Called after every step: tells the monitor, keeps the state, evaluates, ends the run."""

    def __init__(
        self,
        task: SourceTask,
        monitor: Monitor,
        options: FitOptions,
        interrupted: Callable[[], bool],
    ) -> None:
        self._task, self._monitor, self._options = task, monitor, options
        self._interrupted = interrupted

    def __call__(self, step: int) -> None:
        trainer, options, recipe = self._task.trainer, self._options, self._task.recipe
        stop = self._tell(step) if trainer.is_global_zero else False
        # Every process must end after the same step, or the others wait for it forever.
        stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if options.folder is not None and (
            stop or step == recipe.steps or step % recipe.checkpoint_every == 0
        ):
            self._save(options.folder)
        if stop:
            raise KeyboardInterrupt  # Lightning then ends the other processes, too
        if step < recipe.steps and step % (options.evaluate_every or recipe.steps) == 0:
            self._evaluate(step)

    def _tell(self, step: int) -> bool:
        """Tell the monitor; return whether the run is to end."""
        recipe, losses = self._task.recipe, self._task.losses
        span = max(recipe.steps // 100, 1)
        try:
            self._monitor.update(step)
            if step % span == 0:
                recent = losses[-span:]
                self._monitor.log(f"loss {sum(recent) / len(recent):.3g} at step {step}")
        except CancelledError:
            return True
        return self._interrupted()

    def _save(self, folder: Path) -> None:
        trainer, fresh = self._task.trainer, folder / f"next-{STATE}"
        try:
            trainer.save_checkpoint(fresh)
            if trainer.is_global_zero:
                fresh.replace(folder / STATE)
        except OSError as error:
            trained = self._task.trained.values()
            needed = 4 * sum(p.numel() * p.element_size() for p in trained)
            raise storage_error(folder / STATE, needed) from error

    def _evaluate(self, step: int) -> None:
        model, evaluate = self._task.model, self._options.evaluate
        if evaluate is None or not self._task.trainer.is_global_zero:
            return
        modes = [(module, module.training) for module in model.modules()]
        evaluate(model.eval(), step)
        for module, training in modes:
            module.training = training


def _trainer(recipe: Recipe, options: FitOptions) -> Trainer:
    kind, several = options.device.type, options.devices > 1
    if options.strategy not in STRATEGIES:
        raise InputError(
            found=f"--strategy {options.strategy}",
            expected=" or ".join(STRATEGIES),
            fix="Others hand back less than was trained",
        )
    # Modules open and close: in a step some parameters have no gradient.
    strategy = "ddp_find_unused_parameters_true" if several else "auto"
    one = [options.device.index or 0] if kind == "cuda" else 1
    try:
        return Trainer(
            accelerator="gpu" if kind == "cuda" else kind,
            devices=options.devices if several else one,
            strategy=strategy,
            max_steps=recipe.steps,
            default_root_dir=options.folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            found=f"--devices {options.devices} --strategy {options.strategy} on {kind}",
            expected="what this machine has and Lightning can do with it",
            fix=f"Lightning says: {str(error).strip().rstrip('.')}",
        ) from error


def _run(trainer: Trainer, task: SourceTask, options: FitOptions) -> None:
    state = options.folder / STATE if options.folder else None
    if not (options.resume and state and state.is_file()):
        state = None
    finished = False
    try:
        trainer.fit(task, ckpt_path=state, weights_only=True)
        finished = True
    except SystemExit as error:  # what Lightning makes of an interrupt
        fix = "Run the same command again to go on where it stopped"
        raise (CancelledError(fix=fix) if options.folder else CancelledError()) from error
    finally:
        if not finished:
            _end_other_processes(trainer)


def _end_other_processes(trainer: Trainer) -> None:
    """End the processes that Lightning started; it leaves them waiting after most errors."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    for process in started:
        process.kill()
        process.wait()
    started.clear()  # Lightning kills this process, too, if it finds that one of these was killed


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep Lightning from telling and warning about what is on purpose here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave torch's global generators as they were: every step seeds them."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether there was a Ctrl-C, which ends nothing but the second."""
    asked = threading.Event()
    default = signal.default_int_handler
    if signal.getsignal(signal.SIGINT) is not default or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield asked.is_set
        return

    def note(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, default)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, default)


def _forget_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PROCESS.is_dir():
        with suppress(OSError):  # not every container allows it; the peak is then the program's
            (_PROCESS / "clear_refs").write_text("5")


def _peak_memory_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not _PROCESS.is_dir():
        return None
    lines = (_PROCESS / "status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
