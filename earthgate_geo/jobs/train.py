"""What ``earthgate train`` does, from folders of images to a model file."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from earthgate_geo import __version__
from earthgate_geo.data.patches import PatchDataset
from earthgate_geo.data.stream import StepStream
from earthgate_geo.data.style import StyleBank, StyleInjector
from earthgate_geo.jobs.held_out import Picture, score_held_out
from earthgate_geo.jobs.prepare import readers, torch_device
from earthgate_geo.jobs.start import Start, starting_model
from earthgate_geo.jobs.train_images import find_images, stamp_of, told
from earthgate_geo.model_file import file_digest, save_model
from earthgate_geo.models.statistics import FeatureStatistics
from earthgate_geo.monitor import Monitor, SilentMonitor
from earthgate_geo.policies import Tuner
from earthgate_geo.raster.destination import Destination, publish
from earthgate_geo.recipe import Recipe
from earthgate_geo.style_file import load_bank
from earthgate_geo.toolbox.attach import settle
from earthgate_geo.training.fit import STATE, FitOptions, FitRecord, fit, process_rank
from earthgate_geo.training_report import write_training_report
from earthgate_geo.training_request import TrainRequest

Document = dict[str, Any]

_ANY_GSD = (0.01, 100.0)
_DECISIVE = ("start", "classes", "source", "target", "holdout", "bank")
_ASKED = (
    *("label_field", "label_class", "label_map", "label_rest", "assume_crs", "gsd", "bands"),
    *("dsm", "devices"),
)
"""What decides the result beside the images and the recipe, as it was asked for."""

_POINTS = 200
"""Most points of a curve in the report."""

_MEAN_OVER = 50
"""Most steps, at the start and at the end, whose mean loss is told."""

_LOOKED_AT = 16
"""Steps whose images the statistics of a model's training images are of."""


def run_train(request: TrainRequest, monitor: Monitor) -> Document:
    """Train a model and write its file.

    An interrupted run keeps its state in the hidden folder ``.<out name>.earthgate`` beside the
    file; the same request goes on from there. Where Lightning runs several processes, each comes
    here, and only the first tells, writes and returns a document.

    Returns:
        The result document of ``earthgate train --json``; empty in all but the first process.

    Raises:
        EarthgateError: As its subclasses say; no model file is left behind.
    """
    request.check()
    place = Destination(
        request.out, overwrite=request.overwrite, inputs=request.inputs(), keep=STATE
    )
    if process_rank() > 0:
        _prepared(request, SilentMonitor()).train(place.scratch, SilentMonitor())
        return {}
    started = time.perf_counter()
    with place:
        if not request.resume:
            (place.scratch / STATE).unlink(missing_ok=True)
        training = _prepared(request, monitor)
        record = training.train(place.scratch, monitor)
        holdout, pictures = training.score(monitor)
        document = training.about() | _result(training, record) | {"holdout": holdout}
        built = place.scratch / request.out.name
        document["digest"] = training.save(built, document)
        document["seconds"]["total"] = time.perf_counter() - started
        publish(built, request.out)
        if request.report:
            write_training_report(request.report, training.page(document, record), pictures)
    return document


def plan_train(request: TrainRequest, monitor: Monitor) -> Document:
    """Say what a training would do; nothing is written.

    Returns:
        ``classes``, ``source``, ``target``, ``start``, ``recipe``, ``modules``, ``parameters`` and
        ``outputs``.

    Raises:
        EarthgateError: As the training itself before it starts.
    """
    request.check()
    return _prepared(request, monitor).about()


@dataclass(frozen=True, kw_only=True)
class _Training:
    """Images and a network that fit each other: everything is checked, nothing is done."""

    request: TrainRequest
    recipe: Recipe
    start: Start
    tuner: Tuner
    source: PatchDataset
    held_out: PatchDataset | None
    target: PatchDataset | None
    holdout: Document | None
    bank: StyleBank | None

    def steps(self, first: int, rank: int, ranks: int) -> StepStream:
        """Return the batches of the steps from ``first`` on."""
        return StepStream(
            self.source, self.target, recipe=self.recipe, first_step=first, rank=rank, ranks=ranks
        )

    def train(self, folder: Path, monitor: Monitor) -> FitRecord:
        """Train; the state is kept in ``folder``."""
        device = torch_device(self.request.device)
        options = FitOptions(
            device=device,
            devices=self.request.devices,
            workers=readers(device, devices=self.request.devices),
            strategy=self.request.strategy,
            folder=folder,
            resume=self.request.resume,
            injector=self._injector(),
            about=self._decisive(),
        )
        return fit(
            self.start.segmenter,
            self.tuner,
            self.steps,
            self.recipe,
            monitor=monitor,
            options=options,
        )

    def _decisive(self) -> Document:
        """Return what an unfinished run must share for this one to go on from it."""
        about = self.about()
        sets = {"source": self.source, "held_out": self.held_out, "target": self.target}
        return (
            {key: about[key] for key in _DECISIVE}
            | {key: getattr(self.request, key) for key in _ASKED}
            | {"stamps": {name: each and stamp_of(each) for name, each in sets.items()}}
        )

    def _injector(self) -> StyleInjector | None:
        if self.bank is None or self.recipe.styles is None:
            return None
        return StyleInjector(self.bank.style(), self.bank, self.recipe.styles)

    def score(self, monitor: Monitor) -> tuple[Document | None, dict[str, Picture]]:
        """Score the trained model on held-out ground, if there is any, and show it there."""
        if self.held_out is None or self.holdout is None:
            return None, {}
        found, pictures = score_held_out(
            self.start.segmenter,
            self.held_out,
            crop_px=self.recipe.crop_px,
            device=torch_device(self.request.device),
            monitor=monitor,
        )
        return self.holdout | found, pictures

    def about(self) -> Document:
        """Return what is known before the first step."""
        start, config = self.start, self.start.segmenter.config
        counts = {"head": 0, "backbone": 0, "modules": 0}
        for name, parameter in self.tuner.parameters.items():
            part = name.partition(".")[0]
            counts[part if part in counts else "modules"] += parameter.numel()
        return {
            "classes": list(config.classes.names),
            "gsd": [config.gsd_min_m, config.gsd_max_m],
            "source": told(self.source),
            "target": self.target and told(self.target),
            "holdout": self.holdout,
            "bank": self.request.styles and file_digest(self.request.styles),
            "start": {
                "name": start.name,
                "digest": start.digest,
                "backbone": config.backbone.name,
                "weights": None if start.keys is None else start.keys.lines(),
                "head": config.head.kind,
                "head_is_new": not start.trained,
            },
            "recipe": self.recipe.to_json(),
            "policy": self.recipe.policy.value,
            "modules": len(self.tuner.toolbox.slots) if self.tuner.toolbox else 0,
            "parameters": counts,
            "outputs": {role: str(path) for role, path in self.request.outputs().items()},
        }

    def page(self, document: Document, record: FitRecord) -> Document:
        """Return what the report needs beyond the result document."""
        span = -(-len(record.losses) // _POINTS)
        starts = range(0, len(record.losses), span)
        facts = ("digest", "policy", "steps", "trained_parameters", "peak_memory_mb", "seconds")
        return document | {
            "name": self.request.out.stem,
            "table": [asdict(entry) for entry in self.start.segmenter.config.classes],
            "curves": {"loss": [mean(record.losses[first : first + span]) for first in starts]},
            "provenance": {"earthgate": __version__} | {key: document[key] for key in facts},
            "command": self.request.command,
        }

    def save(self, path: Path, document: Document) -> str:
        """Write the model file and return its digest; the modules become part of the network."""
        model, tuner = self.start.segmenter, self.tuner
        if tuner.toolbox is not None and tuner.sizes is not None:
            settled = settle(tuner.toolbox, tuner.sizes)
            model.settled += [settled] if settled.slots else []
        keys = ("recipe", "policy", "slots", "scores", "trained_parameters")
        card = {
            "name": self.request.out.stem,
            "licence": "not stated",
            "data": {key: document[key] for key in ("source", "target")},
            "start": document["start"] | {"licence": self.start.licence},
            "training": {key: document[key] for key in keys} | {"holdout": document["holdout"]},
        }
        return save_model(
            path, model, card=card, replay=self.start.replay, statistics=self._statistics()
        )

    def _statistics(self) -> FeatureStatistics:
        """Return what the source images look like to the trained network."""
        steps = self.steps(0, 0, 1)
        batches = range(min(_LOOKED_AT, self.recipe.steps))
        return FeatureStatistics.gather(
            self.start.segmenter, (steps.batch(step)["source"][0] for step in batches)
        )


def _prepared(request: TrainRequest, monitor: Monitor) -> _Training:
    """Open and check everything, the cheap things first."""
    torch_device(request.device)
    recipe = request.recipe()
    bank = load_bank(request.styles) if request.styles else None
    if request.backbone and not request.weights:
        monitor.warn(
            f"The backbone {request.backbone} starts from random weights: what is frozen stays so; "
            "--weights gives it others"
        )
    images = find_images(request, recipe, monitor)
    start = starting_model(
        request,
        images.classes,
        crop_px=recipe.crop_px,
        seed=recipe.seed,
        heights=request.dsm,
    )
    model = start.segmenter
    unknown = _ANY_GSD if request.backbone else (model.config.gsd_min_m, model.config.gsd_max_m)
    low, high = images.gsd_range_m() or unknown
    model.config = replace(model.config, gsd_min_m=low, gsd_max_m=high)
    if (low, high) == _ANY_GSD:
        monitor.warn(
            "The images do not say the ground size of a pixel, so every scene will be mapped at "
            "its own; --gsd says it"
        )
    return _Training(
        request=request,
        recipe=recipe,
        start=start,
        tuner=Tuner(
            model,
            recipe.policy,
            selection=recipe.selection,
            seed=recipe.seed,
            batch=recipe.batch + recipe.target_batch,
        ),
        source=images.source(model.config.classes),
        held_out=images.held_out(model.config.classes),
        target=images.target(),
        holdout=images.about_holdout(),
        bank=bank,
    )


def _result(training: _Training, record: FitRecord) -> Document:
    tuner = training.tuner
    span = max(1, min(_MEAN_OVER, record.steps // 10))
    peak = record.peak_memory_bytes
    return {
        "steps": record.steps,
        "loss": {
            "first": sum(record.losses[:span]) / span,
            "last": sum(record.losses[-span:]) / span,
        },
        "slots": [str(slot) for slot in sorted(tuner.toolbox.used)] if tuner.toolbox else [],
        "scores": {str(slot): score for slot, score in tuner.scores.normalised.items()},
        "trained_parameters": tuner.trained_parameters,
        "peak_memory_mb": None if peak is None else round(peak / 1e6),
        "seconds": {"train": record.seconds, "select": record.seconds_selecting},
    }
