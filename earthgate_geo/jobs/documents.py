"""Result documents and provenance: JSON values only."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple
from typing import Any

from earthgate_geo import __version__
from earthgate_geo.jobs.prepare import Job
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.report import (
    advice,
    comparison,
    decision_sentence,
    heights_remark,
    remarks,
)
from earthgate_geo.request import AdaptRequest, MapRequest
from earthgate_geo.toolbox.base import Kind
from earthgate_geo.training.adapt import Adaptation

Document = dict[str, Any]

_SQUARE_METRES = 10_000  # in a hectare


def tags(
    job: Job, model: LoadedModel, request: MapRequest, runtime: Mapping[str, Any]
) -> dict[str, str]:
    """Return the provenance: what decides the map, without paths, dates and devices.

    Args:
        job: The scene and its tiles.
        model: The network.
        request: What is asked.
        runtime: What runs the network, as ``Engine.about``.
    """
    options = {
        "area": job.area and job.area.digest,
        "bands": job.bands,
        "network_px": astuple(job.plan.network),
        "nodata": request.nodata,
        "stride_px": astuple(job.plan.stride),
        "tile_px": astuple(job.plan.tile),
        **runtime,
    }
    found = {
        "EARTHGATE_VERSION": __version__,
        "EARTHGATE_MODEL": f"{model.name} sha256:{model.digest}",
        "EARTHGATE_RADIOMETRY": _canonical(asdict(job.radiometry)),
        "EARTHGATE_OPTIONS": _canonical(options),
    }
    if job.heights and job.height_radiometry:
        found["EARTHGATE_HEIGHTS"] = _canonical(asdict(job.height_radiometry))
    # Behind a closed gate the adapter file is empty: the map is the source model's.
    if model.adapter and model.adapter.decision == "adapted":
        found["EARTHGATE_ADAPTER"] = f"sha256:{model.adapter_digest}"
    return found


def _canonical(document: Document) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def about(job: Job, model: LoadedModel, request: MapRequest) -> Document:
    """Return what result documents have in common."""
    grid, gsd, plan = job.scene.grid, job.scene.grid.gsd(), job.plan
    down, across = plan.network.rows / plan.tile.rows, plan.network.cols / plan.tile.cols
    return {
        "scene": job.scene.name,
        "grid": {
            "rows": grid.size.rows,
            "cols": grid.size.cols,
            "gsd": [gsd.row_m, gsd.col_m],
            "crs": grid.crs.to_string(),
        },
        "model": {"name": model.name, "digest": model.digest, "adapter": model.adapter_digest},
        "classes": [asdict(entry) for entry in job.task.classes],
        "tile_px": plan.network.rows,
        "stride_px": round(plan.stride.rows * down),
        "gsd": gsd.mean_m / math.sqrt(down * across),
        "outputs": {role: str(path) for role, path in request.outputs().items()},
        **({} if job.height_radiometry is None else {"heights": {"covered": _covered(job)}}),
    }


def height_remarks(job: Job) -> list[str]:
    """Return what one must know of the scene's heights, for a network that takes them."""
    return [] if job.height_radiometry is None else [heights_remark(_covered(job))]


def _covered(job: Job) -> float:
    return job.heights.covered(job.scene) if job.heights else 0.0


def shares(job: Job, class_pixels: Mapping[str, int]) -> list[Document]:
    """Return every class with its ``share`` of the mapped pixels and its ``hectares``."""
    gsd = job.scene.grid.gsd()
    total = sum(class_pixels.values())
    return [
        asdict(entry)
        | {
            "share": class_pixels[entry.name] / max(total, 1),
            "hectares": class_pixels[entry.name] * gsd.row_m * gsd.col_m / _SQUARE_METRES,
        }
        for entry in job.task.classes
    ]


def about_adaptation(job: Job, adaptation: Adaptation, request: AdaptRequest) -> Document:
    """Return what is told of an adaptation."""
    decision, evidence, names = adaptation.decision, adaptation.evidence, job.task.classes.names
    kinds, scores = list(Kind), adaptation.scores.normalised
    places = sorted(scores, key=lambda slot: (kinds.index(slot.kind), slot.layer))
    return {
        "policy": request.policy,
        "decision": decision,
        "sentence": decision_sentence(decision, evidence),
        "table": comparison(evidence, names),
        "remarks": [*height_remarks(job), *remarks(decision, evidence)],
        "next": advice(decision, evidence, names),
        "evidence": dict(evidence),
        "temperature": adaptation.temperature,
        "scores": {str(slot): scores[slot] for slot in places},
        "slots": list(map(str, adaptation.slots)),
        "trained_parameters": adaptation.trained_parameters,
        "steps": adaptation.steps,
        "seed": request.seed,
        "curves": {"loss": adaptation.losses},
        "command": request.command,
    }


def provenance(job: Job, document: Mapping[str, Any]) -> Document:
    """Return what an adaptation was made from and with, for a person."""
    model, grid = document["model"], document["grid"]
    gsd = " x ".join(f"{side_m:.4g}" for side_m in grid["gsd"])
    mapped = {key: document[key] for key in ("runtime", "precision") if key in document}
    inside = {"mapped": "only inside --aoi"} if job.area and mapped else {}
    kept = ("policy", "steps", "seed", "trained_parameters", "temperature", "seconds")
    return {
        "earthgate": __version__,
        "model": f"{model['name']}, sha256 {model['digest']}",
        "adapter": f"sha256 {model['adapter']}",
        "scene": f"{grid['rows']} x {grid['cols']} px of {gsd} m, {grid['crs']}",
        "bands": job.bands,
        "normalisation": asdict(job.radiometry),
        "network": {"gsd_m": document["gsd"], "tile_px": document["tile_px"], **mapped},
        **inside,
        **{key: document[key] for key in kept},
    }
