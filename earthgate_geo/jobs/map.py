"""Mapping, from paths to files and a result document."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from earthgate_geo.errors import CancelledError, InputError
from earthgate_geo.jobs import documents
from earthgate_geo.jobs.documents import Document
from earthgate_geo.jobs.engines import Engines, memory_bytes
from earthgate_geo.jobs.prepare import Job, prepared
from earthgate_geo.mapping.scene import MapEstimate, MapOutputs, estimate, map_scene
from earthgate_geo.mapping.vectorize import vectorize
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.destination import storage_error
from earthgate_geo.request import AdaptRequest, MapRequest
from earthgate_geo.staging import staged
from earthgate_geo.training.adapt import DEFAULT_STEPS

Paths = Mapping[str, Path]

STRIPS = "strips"
"""Name of the folder of finished cells within the hidden folder of a map."""

_TRAINING_S = 180.0
"""What the default number of steps takes on 2 CPU cores."""

_LIBRARIES_BYTES = 1_000_000_000
"""Memory of the program before it reads a pixel."""


def run_map(request: MapRequest, monitor: Monitor, *, engines: Engines | None = None) -> Document:
    """Map a scene with a model as it is.

    A run that is killed, interrupted or out of disk space leaves what it finished in the hidden
    folder beside the map; the same request goes on from there.

    Args:
        request: What is asked.
        monitor: Told the stages; may cancel.
        engines: What earlier requests have loaded.

    Returns:
        The result document of ``earthgate map --json``.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    if request.dst is None:
        raise InputError(found="a map without a destination", expected="dst, the file to write")
    with (
        Engines() if engines is None else nullcontext(engines) as at_hand,
        prepared(request, monitor, engines=at_hand) as job,
        staged_outputs(request, keep={"map": STRIPS}) as built,
    ):
        try:
            return mapped(job, job.model, request, built, monitor, engines=at_hand)
        except (KeyboardInterrupt, CancelledError) as error:
            if not (built["map"].parent / STRIPS).exists():
                raise
            fix = "Run the same command again to go on where it stopped"
            raise CancelledError(fix=fix) from error


def plan(request: MapRequest, monitor: Monitor, *, engines: Engines | None = None) -> Document:
    """Say what a job would do and need; nothing is written.

    Args:
        request: What is asked.
        monitor: Told what the user should check.
        engines: What earlier requests have loaded.

    Returns:
        ``scene``, ``grid``, ``model``, ``classes``, ``tiles``, ``tile_px``, ``stride_px``,
        ``gsd``, ``memory_mb``, ``disk_mb``, ``disk_free_mb``, ``seconds`` and ``outputs``.

    Raises:
        EarthgateError: As the job itself before it starts.
    """
    with (
        Engines() if engines is None else nullcontext(engines) as at_hand,
        prepared(request, monitor, engines=at_hand) as job,
    ):
        outputs = request.outputs()
        needed, tile_seconds = MapEstimate(tiles=0, memory_bytes=0, disk_bytes=0), 0.0
        if "map" in outputs:
            layers = _map_outputs(request, outputs, tags={}, strips=None)
            needed = estimate(job.task, layers, memory_bytes=memory_bytes(request))
            size = job.plan.network
            engine = at_hand.local(request, job.model, size, job.device)
            tile_seconds = engine.tile_seconds((job.task.channels, size.rows, size.cols))
        folder = next(iter(outputs.values())).parent
        return documents.about(job, job.model, request) | {
            "tiles": needed.tiles,
            "memory_mb": round((_LIBRARIES_BYTES + needed.memory_bytes) / 1e6),
            "disk_mb": round(needed.disk_bytes / 1e6),
            "disk_free_mb": round(shutil.disk_usage(folder).free / 1e6),
            "seconds": _training_seconds(request) + needed.tiles * tile_seconds,
        }


def mapped(
    job: Job,
    model: LoadedModel,
    request: MapRequest,
    built: Paths,
    monitor: Monitor,
    *,
    engines: Engines,
) -> Document:
    """Map with ``model``, trace the map and describe it; return the result document of a map.

    Args:
        job: The scene.
        model: The network.
        request: What is asked.
        built: Where to write, by role, as ``staged_outputs`` says.
        monitor: Told the stages; may cancel.
        engines: Holds what maps.

    Raises:
        EarthgateError: As ``map_scene``, ``vectorize`` and ``write_map_item``.
    """
    engine = engines.engine(request, model, job.plan.network, job.device, monitor)
    # What an adaptation maps is not there for the next run: it adapts anew.
    strips = None if isinstance(request, AdaptRequest) else built["map"].parent / STRIPS
    tags = documents.tags(job, model, request, engine.about)
    outputs = _map_outputs(request, built, tags=tags, strips=strips)
    result = map_scene(engine, job.task, outputs, monitor=monitor)
    document = documents.about(job, model, request) | {
        **engine.about,
        "tiles": result.tiles,
        "classes": documents.shares(job, result.class_pixels),
        "seconds": dict(result.seconds),
        "remarks": documents.height_remarks(job),
    }
    if "vector" in built:
        traced = vectorize(
            built["map"],
            built["vector"],
            options=request.vectors,
            confidence_path=outputs.confidence,
            monitor=monitor,
        )
        document["polygons"] = traced["polygons"]
    if "stac" in built:
        from earthgate_geo.stac import write_map_item  # noqa: PLC0415 - needs an extra

        write_map_item(
            built["stac"],
            document,
            scene=job.scene,
            built=built["map"],
            collection=request.collection,
        )
    return document


def staged_outputs(
    request: MapRequest, *, keep: Mapping[str, str] | None = None
) -> AbstractContextManager[dict[str, Path]]:
    """Give each output a hidden path to be built at; name them all on success.

    Args:
        request: What is asked.
        keep: As ``staged`` has it.
    """
    return staged(
        request.outputs(), overwrite=request.overwrite, inputs=request.inputs(), keep=keep
    )


def _training_seconds(request: MapRequest) -> float:
    if not isinstance(request, AdaptRequest):
        return 0.0
    if request.minutes is not None:
        return 60 * request.minutes
    return _TRAINING_S * (request.steps or DEFAULT_STEPS) / DEFAULT_STEPS


def refuse_early(
    job: Job, request: MapRequest, built: Paths, monitor: Monitor, *, engines: Engines
) -> None:
    """Refuse, before a training, what could only be refused after it otherwise.

    Raises:
        InputError: The memory does not suffice, or the runtime cannot be had.
        StorageError: The disk might not have room.
    """
    outputs = _map_outputs(request, built, tags={}, strips=None)
    needed = estimate(job.task, outputs, memory_bytes=memory_bytes(request)).disk_bytes
    if shutil.disk_usage(outputs.map.parent).free < needed:
        raise storage_error(outputs.map, needed)
    if (request.runtime, request.precision, request.engine) != ("auto", "auto", "local"):
        engines.engine(request, job.model, job.plan.network, job.device, monitor)


def _map_outputs(
    request: MapRequest, built: Paths, *, tags: Mapping[str, str], strips: Path | None
) -> MapOutputs:
    confidence = built.get("confidence")
    if confidence is None and "vector" in built:
        # Polygons always get their confidence; the raster goes with the hidden folder.
        confidence = built["map"].with_name(f"{built['map'].stem}_conf.tif")
    return MapOutputs(
        map=built["map"],
        confidence=confidence,
        probs=built.get("probs"),
        tags=tags,
        creation=request.creation,
        strips=strips,
        resume=request.resume,
    )
