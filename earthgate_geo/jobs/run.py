"""What each command does, from paths to files and a result document."""

import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from earthgate_geo import model_file
from earthgate_geo.data.labels import open_labels
from earthgate_geo.errors import InputError
from earthgate_geo.jobs import documents
from earthgate_geo.jobs.documents import Document
from earthgate_geo.jobs.prepare import Job, label_options, prepared
from earthgate_geo.mapping.scene import (
    MapEstimate,
    MapOutputs,
    estimate,
    map_scene,
)
from earthgate_geo.mapping.vectorize import vectorize
from earthgate_geo.metrics import Confusion
from earthgate_geo.model_file import AdapterRecord, LoadedModel
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import Monitor
from earthgate_geo.pictures import Picture, Place
from earthgate_geo.raster.class_map import class_table
from earthgate_geo.raster.classes import NODATA
from earthgate_geo.raster.grid import Size, Tiling
from earthgate_geo.raster.read import open_scene
from earthgate_geo.recipe import Policy
from earthgate_geo.report import write_report
from earthgate_geo.request import (
    AdaptRequest,
    EvaluateRequest,
    MapRequest,
    VectorizeRequest,
    check_outputs,
)
from earthgate_geo.staging import staged
from earthgate_geo.training.adapt import DEFAULT_STEPS, Adaptation, AdaptOptions, adapt_scene

Paths = Mapping[str, Path]

_BLOCK = Size(1024, 1024)
_TRAINING_S = 180.0
"""What the default number of steps takes on 2 CPU cores."""

_LIBRARIES_BYTES = 700_000_000
"""Memory of the program before it reads a pixel."""


def load_model(source: str | Path | None = None) -> Segmenter:
    """Load a network: images (batch, channel, height, width) in 0..1 to logits.

    Args:
        source: Model or adapter file, the name of a packaged model, or None for the default one.

    Raises:
        InputError: There is no such file or name.
        ModelFileError: The file is not ours, is damaged, too new, or its base is missing.
    """
    return model_file.load_model(source).segmenter


def run_map(request: MapRequest, monitor: Monitor) -> Document:
    """Map a scene with a model as it is.

    Returns:
        The result document of ``earthgate map --json``.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    if request.dst is None:
        raise InputError(found="a map without a destination", expected="dst, the file to write")
    with prepared(request, monitor) as job, _staged(request) as built:
        return _mapped(job, job.model, request, built, monitor)


def run_adapt(request: AdaptRequest, monitor: Monitor) -> Document:
    """Adapt a model to a scene; then map it where ``dst`` is given.

    Returns:
        The result document of ``earthgate adapt --json``.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    started = time.perf_counter()
    with prepared(request, monitor) as job, _staged(request) as built:
        adaptation, adapted = _adapted(job, request, built["adapter"], monitor)
        document = documents.about(job, adapted, request)
        if request.dst:
            document |= _mapped(job, adapted, request, built, monitor)
        document |= documents.about_adaptation(adaptation, request)
        document["seconds"] = document.get("seconds", {}) | {
            "adapt": adaptation.seconds,
            "total": time.perf_counter() - started,
        }
        if request.report:
            write_report(
                built["report"],
                documents.page(document, adaptation, request),
                _pictures(job, adapted, adaptation.decision),
            )
        return document


def run_vectorize(request: VectorizeRequest, monitor: Monitor) -> Document:
    """Turn a map into polygons.

    Returns:
        ``polygons``, by class name in ``classes`` ``polygons`` and ``area_m2``, and ``outputs``.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    check_outputs({"vector": request.dst}, overwrite=request.overwrite, inputs=[request.map])
    document = vectorize(request.map, request.dst, overwrite=request.overwrite, monitor=monitor)
    return document | {"outputs": {"vector": document.pop("output")}}


def run_evaluate(request: EvaluateRequest) -> Document:
    """Compare a map with known classes.

    Returns:
        Scores per class and overall, and the table of confusions.

    Raises:
        InputError: A file is missing or is no map of ours, or the labels do not fit it.
        DataError: A file is damaged, or the labels lie elsewhere.
    """
    with open_scene(request.map) as scene:
        classes = class_table(scene)
        labels = open_labels(request.labels, scene.grid, classes, label_options(request))
        confusion = Confusion(classes.names, named=labels.named)
        for window in Tiling(scene.grid.size, _BLOCK, _BLOCK):
            pixels = scene.read(window, (1,))
            found = pixels.values[0]
            found[~pixels.valid] = NODATA
            confusion.add(labels.read(window), found)
    return confusion.to_dict()


def plan(request: MapRequest, monitor: Monitor) -> Document:
    """Say what a job would do and need; nothing is written.

    Returns:
        ``scene``, ``grid``, ``model``, ``classes``, ``tiles``, ``tile_px``, ``stride_px``,
        ``gsd``, ``memory_mb``, ``disk_mb``, ``disk_free_mb``, ``seconds`` and ``outputs``.

    Raises:
        EarthgateError: As the job itself before it starts.
    """
    with prepared(request, monitor) as job:
        outputs = request.outputs()
        needed = MapEstimate(tiles=0, memory_bytes=0, disk_bytes=0)
        if "map" in outputs:
            layers = _map_outputs(job, request, outputs)
            needed = estimate(job.scene.grid, job.plan, layers, job.task.classes)
        folder = next(iter(outputs.values())).parent
        return documents.about(job, job.model, request) | {
            "tiles": needed.tiles,
            "memory_mb": round((_LIBRARIES_BYTES + needed.memory_bytes) / 1e6),
            "disk_mb": round(needed.disk_bytes / 1e6),
            "disk_free_mb": round(shutil.disk_usage(folder).free / 1e6),
            "seconds": _training_seconds(request) + needed.tiles * _tile_seconds(job),
        }


def _staged(request: MapRequest) -> AbstractContextManager[dict[str, Path]]:
    return staged(request.outputs(), overwrite=request.overwrite, inputs=request.inputs())


def _training_seconds(request: MapRequest) -> float:
    if not isinstance(request, AdaptRequest):
        return 0.0
    if request.minutes is not None:
        return 60 * request.minutes
    return _TRAINING_S * (request.steps or DEFAULT_STEPS) / DEFAULT_STEPS


def _tile_seconds(job: Job) -> float:
    """Measure the network on one grey batch."""
    network, size = job.model.segmenter.to(job.device), job.plan.network
    batch = torch.full((job.task.batch, len(job.bands), size.rows, size.cols), 0.5)
    started = time.perf_counter()
    with torch.inference_mode():
        network(batch.to(job.device)).sum().item()
    return (time.perf_counter() - started) / job.task.batch


def _adapted(
    job: Job, request: AdaptRequest, path: Path, monitor: Monitor
) -> tuple[Adaptation, LoadedModel]:
    """Adapt, write the adapter file, and load it as a user would: what is mapped is in the file."""
    options = AdaptOptions(
        steps=request.steps,
        minutes=request.minutes,
        seed=request.seed,
        device=job.device,
        policy=Policy(request.policy),
        tile_px=min(AdaptOptions.tile_px, job.plan.network.rows),
    )
    adaptation = adapt_scene(
        job.model, job.dataset, job.plan, job.radiometry, options=options, monitor=monitor
    )
    record = AdapterRecord(
        decision=adaptation.decision,
        evidence=adaptation.evidence,
        slots=tuple(map(str, adaptation.slots)) if adaptation.toolbox else (),
        scores={str(slot): score for slot, score in adaptation.scores.normalised.items()},
        trained_parameters=adaptation.trained_parameters,
        steps=adaptation.steps,
        seed=request.seed,
        scene=job.scene.name,
        policy=request.policy,
    )
    model_file.save_adapter(
        path,
        job.model,
        record=record,
        toolbox=adaptation.toolbox,
        head=adaptation.head,
        backbone=adaptation.backbone,
    )
    base = model_file.find_model(request.model, folders=request.model_folders)
    return adaptation, model_file.load_model(path, folders=[*request.model_folders, base.parent])


def _mapped(
    job: Job, model: LoadedModel, request: MapRequest, built: Paths, monitor: Monitor
) -> Document:
    """Map with ``model``, then trace the map; return the result document of a map."""
    network = model.segmenter.to(job.device)
    outputs = _map_outputs(job, request, built, model=model)
    result = map_scene(network, job.task, outputs, monitor=monitor)
    document = documents.about(job, model, request) | {
        "tiles": result.tiles,
        "classes": documents.shares(job, result.class_pixels),
        "seconds": dict(result.seconds),
    }
    if "vector" in built:
        traced = vectorize(
            built["map"], built["vector"], confidence_path=outputs.confidence, monitor=monitor
        )
        document["polygons"] = traced["polygons"]
    return document


def _map_outputs(
    job: Job, request: MapRequest, built: Paths, *, model: LoadedModel | None = None
) -> MapOutputs:
    confidence = built.get("confidence")
    if confidence is None and "vector" in built:
        # Polygons always get their confidence; the raster goes with the hidden folder.
        confidence = built["map"].with_name(f"{built['map'].stem}_conf.tif")
    return MapOutputs(
        map=built["map"],
        confidence=confidence,
        probs=built.get("probs"),
        tags=documents.tags(job, model or job.model, request),
        creation=request.creation,
    )


def _pictures(job: Job, adapted: LoadedModel, decision: str) -> dict[str, Picture]:
    place, classes = Place(job.dataset, job.plan, job.radiometry), job.task.classes
    models = {"the source model, kept": job.model}
    if decision == "adapted":
        models = {"before: the source model": job.model, "after: adapted to this scene": adapted}
    return {"the scene": place.photograph()} | {
        caption: place.mapped(model.segmenter.to(job.device), classes, job.device)
        for caption, model in models.items()
    }
