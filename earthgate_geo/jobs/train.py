"""What ``earthgate train`` does, from folders of images to a model file."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earthgate_geo.data.label_codes import Code, LabelCodes
from earthgate_geo.data.pairs import Pair, open_pairs
from earthgate_geo.data.patches import PatchDataset, cut
from earthgate_geo.data.stream import StepStream
from earthgate_geo.errors import ClassNameError, DataError
from earthgate_geo.jobs.prepare import readers, torch_device
from earthgate_geo.jobs.start import Start, starting_model
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.model_file import save_model
from earthgate_geo.monitor import Monitor, SilentMonitor
from earthgate_geo.policies import Tuner
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.destination import Destination, publish
from earthgate_geo.raster.read import open_scene
from earthgate_geo.recipe import Recipe
from earthgate_geo.toolbox.attach import settle
from earthgate_geo.training.fit import STATE, FitOptions, FitRecord, fit, process_rank
from earthgate_geo.training_request import TrainRequest

Document = dict[str, Any]

_MEASURED_IMAGES = 32
_ANY_GSD = (0.01, 100.0)
_SHRUNK = 2
"""Most that a crop is enlarged or shrunk by in training: scenes may differ as much."""

_MEAN_OVER = 50
"""Most steps, at the start and at the end, whose mean loss is told."""


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
        document = training.about() | _result(training, record)
        built = place.scratch / request.out.name
        document["digest"] = training.save(built, document)
        publish(built, request.out)
    document["seconds"]["total"] = time.perf_counter() - started
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
    target: PatchDataset | None

    def steps(self, first: int, rank: int, ranks: int) -> StepStream:
        """Return the batches of the steps from ``first`` on."""
        return StepStream(
            self.source, self.target, recipe=self.recipe, first_step=first, rank=rank, ranks=ranks
        )

    def train(self, folder: Path, monitor: Monitor) -> FitRecord:
        """Train; the state is kept in ``folder``."""
        told, device = self.about(), torch_device(self.request.device)
        options = FitOptions(
            device=device,
            devices=self.request.devices,
            workers=readers(device, devices=self.request.devices),
            strategy=self.request.strategy,
            folder=folder,
            resume=self.request.resume,
            about={key: told[key] for key in ("start", "classes", "source", "target")}
            | {"devices": self.request.devices, "bands": self.request.bands},
        )
        return fit(
            self.start.segmenter,
            self.tuner,
            self.steps,
            self.recipe,
            monitor=monitor,
            options=options,
        )

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
            "source": _told(self.source),
            "target": self.target and _told(self.target),
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
            "outputs": {"model": str(self.request.out)},
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
            "training": {key: document[key] for key in keys},
        }
        return save_model(path, model, card=card, replay=self.start.replay)


def _prepared(request: TrainRequest, monitor: Monitor) -> _Training:
    """Open and check everything, the cheap things first."""
    torch_device(request.device)
    recipe = request.recipe()
    pairs, known = _labelled(request)
    ignored = {name for name in known.names if name in request.ignore}
    targets = open_pairs(request.target, where=request.target_where)[0] if request.target else []
    kept = [entry for entry in known if entry.name not in ignored]
    classes = ClassTable(tuple(replace(entry, value=i) for i, entry in enumerate(kept)))
    start = starting_model(request, classes, crop_px=recipe.crop_px, seed=recipe.seed)
    model = start.segmenter
    low, high = _gsd_range(request, pairs) or (model.config.gsd_min_m, model.config.gsd_max_m)
    model.config = replace(model.config, gsd_min_m=low, gsd_max_m=high)
    if (low, high) == _ANY_GSD:
        monitor.warn(
            "The images do not say the ground size of a pixel, so every scene will be mapped at "
            "its own; --gsd says it"
        )
    if request.backbone and not request.weights:
        monitor.warn(
            f"The backbone {request.backbone} starts from random weights: what is frozen stays so; "
            "--weights gives it others"
        )
    values: dict[Code, int] = {OTHER: UNKNOWN, UNKNOWN: UNKNOWN}
    for entry in known:
        names = model.config.classes
        values[entry.value] = UNKNOWN if entry.name in ignored else names.value(entry.name)
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
        source=_patches(request, pairs, recipe, LabelCodes(values=values)),
        target=_patches(request, targets, recipe, None) if targets else None,
    )


def _labelled(request: TrainRequest) -> tuple[list[Pair], ClassTable]:
    """Return the source's pairs and the classes of its labels."""
    pairs, classes = open_pairs(request.data, where=request.where)
    bare = next((pair for pair in pairs if pair.label is None), None)
    if bare is not None:
        raise DataError(found=f"{bare.image} has no labels", expected="labelled images to train on")
    if classes is None:
        raise DataError(
            found=f"{request.data} has no classes.json",
            expected='the names of the labels\' codes, e.g. {"0": "water", "1": "land"}',
        )
    foreign = [name for name in request.ignore if name not in classes.names]
    if foreign:
        raise ClassNameError(
            found=f"--ignore {foreign[0]}", expected=f"one of {', '.join(classes.names)}"
        )
    return pairs, classes


def _patches(
    request: TrainRequest, pairs: Sequence[Pair], recipe: Recipe, codes: LabelCodes | None
) -> PatchDataset:
    bands = request.bands and tuple(request.bands[name] for name in ("red", "green", "blue"))
    if codes is None:
        pairs = [replace(pair, label=None) for pair in pairs]
    patches = cut(pairs, recipe.crop_px * (_SHRUNK if recipe.augment else 1))
    return PatchDataset(patches, codes=codes, bands=bands or None, scaling="scene")


def _gsd_range(request: TrainRequest, pairs: Sequence[Pair]) -> tuple[float, float] | None:
    """Return the ground sizes that training shows, in metres; None where nobody knows."""
    sizes = [request.gsd] if request.gsd else []
    if not sizes:
        for pair in pairs[:: -(-len(pairs) // _MEASURED_IMAGES)]:
            try:
                with open_scene(pair.image) as image:
                    sizes.append(image.grid.gsd().mean_m)
            except DataError:
                continue  # it does not say where it lies
    if sizes:
        return min(sizes) / _SHRUNK, max(sizes) * _SHRUNK
    return _ANY_GSD if request.backbone else None


def _told(patches: PatchDataset) -> Document:
    """Return what tells a set of images from others."""
    pairs = list(dict.fromkeys(patch.pair for patch in patches.patches))
    files = [path for pair in pairs for path in (pair.image, pair.label) if path is not None]
    told = "\n".join(f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in files)
    return {
        "images": len(pairs),
        "patches": len(patches),
        "digest": hashlib.sha256(told.encode()).hexdigest(),
    }


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
