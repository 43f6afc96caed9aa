"""Adaptation of a model to a scene or a sensor: gate or other policy, self-training, guard."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earthgate_geo.gate import Scores
from earthgate_geo.metrics import OTHER
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.models.heads import TemperedHead
from earthgate_geo.models.view import View
from earthgate_geo.monitor import Monitor
from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import Policy, Recipe, Selection
from earthgate_geo.toolbox.base import Slot, Toolbox, ToolboxConfig
from earthgate_geo.training.aligned import AlignedModel
from earthgate_geo.training.calibration import calibrate, look
from earthgate_geo.training.guard import Evidence, KnownLabels, against, gather, share_shift
from earthgate_geo.training.loop import Schedule, WeightAverage, run
from earthgate_geo.training.losses import partial_cross_entropy
from earthgate_geo.training.selftrain import (
    Alignment,
    PseudoLabels,
    both_ways,
    class_mix,
    forget_heights,
    pseudo_label,
    strengthen,
)
from earthgate_geo.training.tiles import SceneTiles, SceneView, TileBatch

DEFAULT_STEPS = 160
"""Steps that take about 3 minutes on 2 CPU cores with the default model."""

_COUNTED = 8
"""Batches behind the labels' shares."""

_RARE = 0.01
"""Least share of a class in scene or labels."""


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """How a scene is adapted to. The defaults are ours; the papers train for hours on a GPU."""

    steps: int | None = None
    """Optimiser steps; ``DEFAULT_STEPS`` if absent."""

    minutes: float | None = None
    """Cap on the time of training; the steps taken are recorded."""

    seed: int = 0
    """Of everything random; the same steps and seed repeat a run exactly on one machine."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the network runs."""

    policy: Policy = Policy.GATE
    """What trains beside the head."""

    selection: Selection = field(default_factory=lambda: Selection(interval=50))
    """When the policy chooses slots, how many, and on how many images."""

    toolbox: ToolboxConfig = field(default_factory=ToolboxConfig)
    """Sizes of the modules."""

    tile_px: int = 256
    """Height and width of a training tile in network pixels."""

    batch: int = 4
    """Tiles in a step."""

    learning_rate: float = 1e-4
    """Peak rate without labels; a backbone that trains takes a tenth, as in ``Recipe``."""

    labelled_rate: float = 1e-3
    """Peak rate with labels."""

    keep: float = 0.5
    """Share of each class's pseudo-labels that is believed."""

    replay_weight: float = 0.05
    """Weight of a pixel pasted from a replay tile, against at most 1 of a pseudo-label."""

    interpolation: float = 0.7
    """How far the weights go from where they started to where training took them, 0..1."""

    guard_tiles: int = 16
    """Tiles that the guard looks at."""

    guarded: bool = True
    """Whether the guard may refuse; what it saw is told in any case."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What came of it. Behind a closed gate ``toolbox``, ``head`` and ``backbone`` are None."""

    decision: str
    """``adapted`` or ``gate-closed``."""

    evidence: Mapping[str, Any]
    """What the guard saw of both models, and the ``calibration`` of an adapted one; JSON values."""

    toolbox: tuple[Toolbox, ToolboxConfig] | None
    """The adapted modules, attached to a copy of the model, and their sizes."""

    head: nn.Module | None
    """The adapted head."""

    backbone: nn.Module | None
    """The adapted backbone, where the policy trains it."""

    view: View
    """How the scene is shown to the network; the default behind a closed gate, too."""

    slots: tuple[Slot, ...]
    """Slots that were open at some time."""

    scores: Scores
    """Of the last choice; empty where the policy never chooses."""

    trained_parameters: int
    """Parameters that trained, head excluded."""

    steps: int
    """Optimiser steps taken."""

    losses: list[float]
    """Loss of every step."""

    seconds: float
    """Time of everything."""

    @property
    def temperature(self) -> float:
        """What the logits of the adapted head were divided by; 1 where nothing was calibrated."""
        calibration = self.evidence["calibration"]
        return 1.0 if calibration is None else float(calibration["temperature"])


def adapt_scene(
    loaded: LoadedModel,
    views: Sequence[SceneView],
    *,
    options: AdaptOptions,
    monitor: Monitor,
) -> Adaptation:
    """Adapt a model to a scene, or once to several of a sensor, without labels or with theirs.

    First the scene's bands and tones are shown to the network as it is used to see them, if that
    is clearly closer to its training images. By default the backbone stays frozen. Every 50
    steps the gate scores all modules by Fisher information on single images of the scene and
    opens a quarter of them; other policies train something else. What is open and the head train
    on pseudo-labels of an averaged teacher, mixed with generated replay tiles, and on labels
    where there are any. At the end a guard compares both models on tiles drawn apart. Several
    scenes give tiles by their area, and the guard looks at each; labels of some decide for all.

    Source:
        CrossEarth-Gate, arXiv:2511.20302 (modules, scores, choice); DACS, arXiv:2007.08702
        (mixing); ReMixMatch, arXiv:1911.09785 (class shares). Ours: scores from pseudo-labels
        from the first step on, certainty weights, shares held to the source model's, replay in
        place of source data, and the guard.

    Args:
        loaded: The source model, not an adapter; it is copied, not changed.
        views: The scenes, at least one.
        options: How long, how large, which seed.
        monitor: Told of every step in the stage ``adapt``.

    Raises:
        EmptySceneError: A scene has no valid pixel.
        EarthgateError: The training diverged.
        CancelledError: The monitor cancelled.
    """
    started = time.perf_counter()
    monitor.stage("adapt", options.steps or DEFAULT_STEPS)
    generator = torch.Generator().manual_seed(options.seed)
    tiles = SceneTiles(views, size_px=options.tile_px, generator=generator)
    aligned = AlignedModel(
        loaded, device=options.device, tile_px=options.tile_px, looks=options.guard_tiles
    )
    aligned.align(tiles)
    model, is_aligned = aligned.model, aligned.is_changed
    run_ = _Run(aligned, tiles, options)
    guard, calibrated = _guard_tiles(aligned, tiles, options)
    with aligned.unaligned():
        source = guard()
    before = guard() if is_aligned else source
    restrained = copy.deepcopy(model.head)
    losses = run_.train(monitor)
    after = guard()
    reasons = against(before, after)
    kept = not (reasons and options.guarded)
    shown = after if kept or not is_aligned else before
    evidence = {
        "source": asdict(source),
        "adapted": asdict(shown),
        "share_shift": share_shift(source, shown),
        "against": reasons,
        "view": aligned.choice and aligned.choice.to_json() | {"used": model.view != View()},
        "restraints": [
            asdict(each) | {"name": model.config.classes.names[each.index]}
            for each in aligned.restraints
        ],
        "labels_held_back": tiles.holds_back,
        "calibration": calibrated() if kept else None,
    }
    tuner = run_.tuner
    modules = (tuner.toolbox, tuner.sizes) if tuner.toolbox and tuner.sizes else None
    return Adaptation(
        decision="adapted" if kept or is_aligned else "gate-closed",
        evidence=evidence,
        view=model.view,
        toolbox=modules if kept else None,
        head=model.head if kept else restrained if aligned.restraints else None,
        backbone=model.backbone if kept and tuner.policy is Policy.FULL else None,
        slots=tuple(sorted(tuner.toolbox.used)) if tuner.toolbox else (),
        scores=tuner.scores,
        trained_parameters=tuner.trained_parameters,
        steps=len(losses),
        losses=losses,
        seconds=time.perf_counter() - started,
    )


def _guard_tiles(
    aligned: AlignedModel, tiles: SceneTiles, options: AdaptOptions
) -> tuple[Callable[[], Evidence], Callable[[], dict[str, Any] | None]]:
    """Fix the tiles that both models are compared on; return the comparison and a calibration."""
    windows = tiles.held_back_windows()[: options.guard_tiles]
    if tiles.labelled and not windows:  # too few to hold any back
        windows = tiles.labelled_windows(options.guard_tiles)
    windows += tiles.scattered_windows(options.guard_tiles // (2 if windows else 1))
    batch = tiles.read(windows, held_back=True)
    names = aligned.model.config.classes.names
    labels = KnownLabels(list(batch.labels), sorted(tiles.named)) if tiles.labelled else None
    watched = list(zip(batch.images, batch.valid, strict=True))

    def seen() -> Evidence:
        return gather(
            aligned.logits_on_cpu, watched, classes=names, replay=aligned.held_back, labels=labels
        )

    def calibrated() -> dict[str, Any] | None:
        """Temper the head; tell by what and why. Labels that trained say nothing of that."""
        head, replay = aligned.model.head, None
        if not isinstance(head, TemperedHead):
            return None
        told = labels if tiles.holds_back else None
        views = look(aligned.logits_on_cpu, watched, labels=told)
        if aligned.held_back is not None:
            images, truth = aligned.held_back
            made = [(image, torch.ones(image.shape[1:]) > 0) for image in images]
            replay = look(
                aligned.logits_on_cpu, made, labels=KnownLabels(list(truth), range(len(names)))
            )
        found = calibrate(views, replay=replay)
        head.temper(found.temperature)
        return asdict(found)

    return seen, calibrated


class _Run:
    """The state of one training: modules, teacher, random numbers."""

    def __init__(self, aligned: AlignedModel, tiles: SceneTiles, options: AdaptOptions) -> None:
        self.options, self.tiles = options, tiles
        self.model, self.replay = aligned.model, aligned.replay
        self.logits, self.logits_on_cpu = aligned.logits, aligned.logits_on_cpu
        self.tuner = Tuner(
            self.model,
            options.policy,
            selection=options.selection,
            seed=options.seed,
            sizes=options.toolbox,
            batch=options.batch,
        )
        self.rng = np.random.default_rng(options.seed)
        classes = range(len(self.model.config.classes))
        self._named = torch.tensor([v in tiles.named for v in classes]) if tiles.named else None
        self._align = Alignment(aligned.wanted)

    def _varied(self, images: Tensor) -> Tensor:
        """Return tiles (batch, channel, row, col) as the student sees them."""
        bands = len(self.model.config.bands)
        return forget_heights(strengthen(images, self.rng), self.rng, bands=bands)

    def train(self, monitor: Monitor) -> list[float]:
        """Take the steps; the model ends on the way to the averaged teacher. Returns the losses.

        Source:
            Weight-space ensembles of Wortsman et al. 2022, "Robust fine-tuning of zero-shot
            models" (WiSE-FT), arXiv:2109.01903. How far is ours (benchmarks/adaptation.md).
        """
        options, labelled = self.options, self.tiles.labelled
        parameters = self.tuner.parameters
        started = {name: each.detach().clone() for name, each in parameters.items()}
        schedule = Schedule(
            steps=options.steps or DEFAULT_STEPS,
            learning_rate=options.labelled_rate if labelled else options.learning_rate,
            seconds=None if options.minutes is None else 60 * options.minutes,
        )
        optimizer = torch.optim.AdamW(self._groups(), weight_decay=0.0)
        self._average = WeightAverage(parameters, decay=0.99)
        if labelled:
            self._label_offsets = self._offsets()

        def step_loss(step: int) -> Tensor:
            if self.tuner.due(step):
                self.tuner.select(self._image_losses())
            return self._labelled_loss() if labelled else self._unlabelled_loss()

        losses = run(step_loss, optimizer, self._average, schedule=schedule, monitor=monitor)
        self._average.copy_to_model()
        with torch.no_grad():
            for name, each in parameters.items():
                each.lerp_(started[name], 1 - options.interpolation)
        return losses

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: a backbone that trains takes a share of the rate."""
        named = self.tuner.parameters.items()
        backbone = [p for name, p in named if name.startswith("backbone.")]
        added = [p for name, p in named if not name.startswith("backbone.")]
        return [{"params": added}, {"params": backbone, "share": Recipe.backbone_share}]

    def _image_losses(self) -> list[Callable[[], Tensor]]:
        """Return the losses of single images that a choice of slots rests on."""
        count = self.tuner.images
        if not count:
            return []
        draw = self.tiles.draw_labelled if self.tiles.labelled else self.tiles.draw
        with self.tiles.ahead():  # so that what trains is the same under every policy
            batch = draw(count)
        return [partial(self._image_loss, batch, index) for index in range(count)]

    def _image_loss(self, batch: TileBatch, index: int) -> Tensor:
        one = slice(index, index + 1)
        images, labels = batch.images[one], batch.labels[one]
        if self.tiles.labelled:
            truth = PseudoLabels(labels=labels, weights=torch.ones(labels.shape))
            return self._loss(images, truth, offsets=self._label_offsets)
        # The running shares follow what trains: a look for scores must not change the training.
        pseudo = self._pseudo(self._probabilities(images), batch.valid[one])
        return self._loss(images, pseudo)

    def _unlabelled_loss(self) -> Tensor:
        batch = self.tiles.draw(self.options.batch)
        probabilities = self._probabilities(batch.images)
        self._align.follow(probabilities, batch.valid)
        pseudo = self._pseudo(probabilities, batch.valid)
        images = self._varied(batch.images)
        if self.replay is not None:
            donor, labels = self.replay.draw(self.options.batch, self.rng)
            donors = (strengthen(donor, self.rng), labels)
            images, pseudo = class_mix(
                images, pseudo, donors, weight=self.options.replay_weight, rng=self.rng
            )
        return self._loss(images, pseudo)

    def _labelled_loss(self) -> Tensor:
        batch = self.tiles.draw_labelled(self.options.batch)
        return self._supervised_loss(batch) + 0.5 * self._unlabelled_loss()

    def _supervised_loss(self, batch: TileBatch) -> Tensor:
        truth = PseudoLabels(labels=batch.labels, weights=torch.ones(batch.labels.shape))
        return self._loss(self._varied(batch.images), truth, offsets=self._label_offsets)

    def _offsets(self) -> Tensor:
        """Return what the classes' logits have ahead of the scene's among the labels, (class,).

        Labels are drawn class by class: taken as they are they would teach that every class
        covers as much of the scene as any other.

        Source:
            Menon et al. 2021, "Long-tail learning via logit adjustment", arXiv:2007.07314, with
            the shares that the model sees in the scene in place of a test set's.
        """
        count = torch.zeros(256)
        with self.tiles.ahead():
            for _ in range(_COUNTED):
                labels = self.tiles.draw_labelled(self.options.batch).labels
                count += torch.bincount(labels.flatten(), minlength=256)
        classes = len(self.model.config.classes)
        named = torch.tensor([value in self.tiles.named for value in range(classes)])
        labelled, scene = count[:classes], self._align.wanted
        rest = ~named
        if rest.any():
            labelled = labelled.masked_fill(rest, float(count[OTHER]))
            scene = scene.masked_fill(rest, float(scene[rest].sum()))
        labelled = (labelled / (labelled[named].sum() + count[OTHER])).clamp(min=_RARE)
        return (labelled.log() - scene.clamp(min=_RARE).log()).view(1, -1, 1, 1)

    def _probabilities(self, images: Tensor) -> Tensor:
        """Return the teacher's, (batch, class, row, col)."""
        with self._average.applied():
            return both_ways(self.logits_on_cpu, images)

    def _pseudo(self, probabilities: Tensor, valid: Tensor) -> PseudoLabels:
        return pseudo_label(self._align(probabilities), valid, keep=self.options.keep)

    def _loss(
        self, images: Tensor, truth: PseudoLabels, *, offsets: Tensor | None = None
    ) -> Tensor:
        device = self.options.device
        logits = self.logits(images)
        return partial_cross_entropy(
            logits if offsets is None else logits + offsets.to(device),
            truth.labels.to(device),
            named=None if self._named is None else self._named.to(device),
            weights=truth.weights.to(device),
        )
