"""earthgate: adapt a frozen vision model to an unseen scene and map it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earthgate_geo.api import AdaptedScene, SceneMap, adapt, map_scene
    from earthgate_geo.bench.check import check_settings
    from earthgate_geo.bench.run import run_bench
    from earthgate_geo.bench.settings import list_settings
    from earthgate_geo.bench.summary import summarise_bench
    from earthgate_geo.doctor import diagnose
    from earthgate_geo.export_request import ExportRequest
    from earthgate_geo.jobs.adapt import plan_adapt, run_adapt
    from earthgate_geo.jobs.batch import plan_batch, run_batch
    from earthgate_geo.jobs.catalogue import catalogue_models
    from earthgate_geo.jobs.export import run_export
    from earthgate_geo.jobs.import_model import run_import
    from earthgate_geo.jobs.inventory import describe, list_models
    from earthgate_geo.jobs.map import plan, run_map
    from earthgate_geo.jobs.run import load_model, run_evaluate, run_vectorize
    from earthgate_geo.jobs.styles import plan_styles, run_styles
    from earthgate_geo.jobs.train import plan_train, run_train
    from earthgate_geo.raster.read import open_scene
    from earthgate_geo.request import (
        AdaptRequest,
        BatchRequest,
        EvaluateRequest,
        ImportRequest,
        MapRequest,
        VectorizeRequest,
        VectorOptions,
    )
    from earthgate_geo.styles_request import StylesRequest
    from earthgate_geo.training.fit import process_rank
    from earthgate_geo.training_request import BenchRequest, TrainRequest

__version__ = "0.1.0"

# Loaded on first use: torch and TorchGeo take seconds, and `earthgate --help` needs neither.
_HOMES = {
    "AdaptedScene": "api",
    "SceneMap": "api",
    "adapt": "api",
    "map_scene": "api",
    "check_settings": "bench.check",
    "list_settings": "bench.settings",
    "run_bench": "bench.run",
    "summarise_bench": "bench.summary",
    "diagnose": "doctor",
    "run_export": "jobs.export",
    "run_import": "jobs.import_model",
    "catalogue_models": "jobs.catalogue",
    "describe": "jobs.inventory",
    "list_models": "jobs.inventory",
    "load_model": "jobs.run",
    "plan": "jobs.map",
    "plan_adapt": "jobs.adapt",
    "plan_batch": "jobs.batch",
    "run_adapt": "jobs.adapt",
    "run_batch": "jobs.batch",
    "run_evaluate": "jobs.run",
    "run_map": "jobs.map",
    "run_vectorize": "jobs.run",
    "plan_styles": "jobs.styles",
    "run_styles": "jobs.styles",
    "plan_train": "jobs.train",
    "run_train": "jobs.train",
    "open_scene": "raster.read",
    "AdaptRequest": "request",
    "BatchRequest": "request",
    "BenchRequest": "training_request",
    "EvaluateRequest": "request",
    "ExportRequest": "export_request",
    "ImportRequest": "request",
    "MapRequest": "request",
    "StylesRequest": "styles_request",
    "TrainRequest": "training_request",
    "VectorOptions": "request",
    "VectorizeRequest": "request",
    "process_rank": "training.fit",
}
__all__ = [
    "AdaptRequest",
    "AdaptedScene",
    "BatchRequest",
    "BenchRequest",
    "EvaluateRequest",
    "ExportRequest",
    "ImportRequest",
    "MapRequest",
    "SceneMap",
    "StylesRequest",
    "TrainRequest",
    "VectorOptions",
    "VectorizeRequest",
    "__version__",
    "adapt",
    "catalogue_models",
    "check_settings",
    "describe",
    "diagnose",
    "list_models",
    "list_settings",
    "load_model",
    "map_scene",
    "open_scene",
    "plan",
    "plan_adapt",
    "plan_batch",
    "plan_styles",
    "plan_train",
    "process_rank",
    "run_adapt",
    "run_batch",
    "run_bench",
    "run_evaluate",
    "run_export",
    "run_import",
    "run_map",
    "run_styles",
    "run_train",
    "run_vectorize",
    "summarise_bench",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
