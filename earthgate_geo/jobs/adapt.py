"""Adaptation, from paths to files and a result document."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from earthgate_geo import model_file
from earthgate_geo.errors import CancelledError
from earthgate_geo.jobs import documents
from earthgate_geo.jobs.batch import made_folder, run_batch
from earthgate_geo.jobs.before_after import class_areas, show_place
from earthgate_geo.jobs.documents import Document
from earthgate_geo.jobs.engines import Engines
from earthgate_geo.jobs.map import mapped, plan, refuse_early, staged_outputs
from earthgate_geo.jobs.prepare import Job, prepared_together
from earthgate_geo.model_file import AdapterRecord
from earthgate_geo.monitor import Monitor
from earthgate_geo.recipe import Policy
from earthgate_geo.report import write_report
from earthgate_geo.request import AdaptRequest, BatchRequest, MapRequest
from earthgate_geo.training.adapt import Adaptation, AdaptOptions, adapt_scene


def run_adapt(request: AdaptRequest, monitor: Monitor) -> Document:
    """Adapt a model to a scene, or once to several; then map where ``dst`` or ``out_dir`` is given.

    With ``out_dir`` the adapter file and the report have their names before the scenes are mapped
    as a batch, and keep them whatever becomes of the maps.

    Returns:
        The result document of ``earthgate adapt --json``. Of several scenes it says the names in
        ``scene`` and what the first is like; with ``out_dir`` also ``scenes`` and ``manifest``, as
        ``run_batch``.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
        CancelledError: Interrupted; the sentence names the adapter file if that is done.
    """
    started = time.perf_counter()
    batch = request.batch()
    base = model_file.find_model(request.model, folders=request.model_folders)
    with Engines() as engines, made_folder(batch.out_dir) if batch else nullcontext():
        document = _adapt(request, base, monitor, engines)
        if batch:
            document |= _all_mapped(batch, base, monitor, engines)
    document["seconds"]["total"] = time.perf_counter() - started
    return document


def plan_adapt(request: AdaptRequest, monitor: Monitor) -> Document:
    """Say what an adaptation would do and need; nothing is written.

    Returns:
        What ``plan`` says; of several scenes in all, and of each that would be mapped in
        ``scenes``, with its ``src`` and the ``state`` planned.

    Raises:
        EarthgateError: As the job itself before it starts.
    """
    batch = request.batch()
    if batch is None and not request.more:
        return plan(request, monitor)
    with Engines() as engines, prepared_together(request, monitor, engines=engines) as jobs:
        names, has_heights = _names(jobs), [job.heights is not None for job in jobs]
        as_it_is = MapRequest(
            src=request.src, model=request.model, model_folder=request.model_folder
        )
        takes_heights = engines.model(as_it_is).segmenter.config.heights
    training = replace(
        request,
        more=(),
        out_dir=None,
        out=request.outputs()["adapter"],
        labels=None,  # they may lie in another scene
        label_field=None,
        label_class=None,
        label_map=None,
    )
    if not has_heights[0]:
        training = training.without_heights()
    # What the adapter will add for heights is not there yet: its time is not known.
    asked = [
        each if takes_heights and has else each.without_heights()
        for each, has in zip(batch.requests() if batch else (), has_heights, strict=False)
    ]
    with made_folder(batch.out_dir) if batch else nullcontext():
        document = plan(training, monitor)
        scenes: list[Document] = [
            {"src": each.src, "state": "planned"}
            | plan(replace(each, model=request.model), monitor)
            for each in asked
        ]
    summed = {key: sum(entry[key] for entry in scenes) for key in ("tiles", "disk_mb", "seconds")}
    return document | {
        "scene": names,
        **{key: document[key] + value for key, value in summed.items()},
        "memory_mb": max(entry["memory_mb"] for entry in (document, *scenes)),
        "scenes": scenes,
    }


def _adapt(request: AdaptRequest, base: Path, monitor: Monitor, engines: Engines) -> Document:
    """Adapt, map where ``dst`` is given, and report; return the result document."""
    started = time.perf_counter()
    with (
        prepared_together(request, monitor, engines=engines) as jobs,
        staged_outputs(request) as built,
    ):
        if request.dst:
            refuse_early(jobs[0], request, built, monitor, engines=engines)
        adaptation = _adaptation(jobs, request, built["adapter"], monitor)
        # As a user would: what is mapped is in the file.
        folders = [*request.model_folders, base.parent]
        adapted = model_file.load_model(built["adapter"], folders=folders)
        models = {"before": jobs[0].model}
        if adaptation.decision == "adapted":
            models["after"] = adapted
        areas: Document = {}
        if request.report:
            areas["areas"] = class_areas(jobs[0], models, monitor, step=adaptation.steps)
        document = documents.about(jobs[0], adapted, request) | {"scene": _names(jobs)}
        if request.dst:
            # Workers of a cluster load what they map with from its file.
            asked = replace(request, model=str(built["adapter"]), model_folder=base.parent)
            document |= mapped(jobs[0], adapted, asked, built, monitor, engines=engines)
        document |= documents.about_adaptation(jobs[0], adaptation, request) | areas
        document["seconds"] = document.get("seconds", {}) | {
            "adapt": adaptation.seconds,
            "total": time.perf_counter() - started,
        }
        document["provenance"] = documents.provenance(jobs[0], document)
        if request.report:
            write_report(built["report"], document, show_place(jobs[0], models))
        return document


def _all_mapped(batch: BatchRequest, base: Path, monitor: Monitor, engines: Engines) -> Document:
    """Map every scene with the adapter file; return what a batch adds to the result document."""
    try:
        # The base may lie anywhere: the adapter file names it by digest alone.
        found = replace(batch, each=replace(batch.each, model_folder=base.parent))
        document = run_batch(found, monitor, engines=engines)
    except CancelledError as error:
        fix = (
            f"The adapter file is there: earthgate map --model {batch.each.model} --out-dir "
            f"{batch.out_dir} with the same scenes goes on"
        )
        raise CancelledError(fix=fix) from error
    return {key: document[key] for key in ("scenes", "manifest", "collection") if key in document}


def _names(jobs: Sequence[Job]) -> str:
    return ", ".join(job.scene.name for job in jobs)


def _adaptation(
    jobs: Sequence[Job], request: AdaptRequest, path: Path, monitor: Monitor
) -> Adaptation:
    """Adapt, and write the adapter file."""
    model = jobs[0].model
    options = AdaptOptions(
        steps=request.steps,
        minutes=request.minutes,
        seed=request.seed,
        device=jobs[0].device,
        policy=Policy(request.policy),
        tile_px=min(AdaptOptions.tile_px, jobs[0].plan.network.rows),
    )
    views = [job.view for job in jobs]
    adaptation = adapt_scene(model, views, options=options, monitor=monitor)
    record = AdapterRecord(
        decision=adaptation.decision,
        evidence=adaptation.evidence,
        slots=tuple(map(str, adaptation.slots)) if adaptation.toolbox else (),
        scores={str(slot): score for slot, score in adaptation.scores.normalised.items()},
        trained_parameters=adaptation.trained_parameters,
        steps=adaptation.steps,
        seed=request.seed,
        scene=_names(jobs),
        policy=request.policy,
        temperature=adaptation.temperature,
        view=adaptation.view,
        heights=model.segmenter.config.heights,
    )
    model_file.save_adapter(
        path,
        model,
        record=record,
        toolbox=adaptation.toolbox,
        head=adaptation.head,
        backbone=adaptation.backbone,
    )
    return adaptation
