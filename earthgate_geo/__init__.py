"""earthgate: adapt a frozen vision model to an unseen scene and map it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earthgate_geo.bench.check import check_settings
    from earthgate_geo.bench.run import run_bench
    from earthgate_geo.bench.settings import list_settings
    from earthgate_geo.doctor import diagnose
    from earthgate_geo.jobs.inventory import describe, list_models
    from earthgate_geo.jobs.run import (
        load_model,
        plan,
        run_adapt,
        run_evaluate,
        run_map,
        run_vectorize,
    )
    from earthgate_geo.jobs.train import plan_train, run_train
    from earthgate_geo.raster.read import open_scene
    from earthgate_geo.request import (
        AdaptRequest,
        BenchRequest,
        EvaluateRequest,
        MapRequest,
        TrainRequest,
        VectorizeRequest,
    )
    from earthgate_geo.training.fit import process_rank

__version__ = "0.1.0"

# Loaded on first use: torch and TorchGeo take seconds, and `earthgate --help` needs neither.
_HOMES = {
    "check_settings": "bench.check",
    "list_settings": "bench.settings",
    "run_bench": "bench.run",
    "diagnose": "doctor",
    "describe": "jobs.inventory",
    "list_models": "jobs.inventory",
    "load_model": "jobs.run",
    "plan": "jobs.run",
    "run_adapt": "jobs.run",
    "run_evaluate": "jobs.run",
    "run_map": "jobs.run",
    "run_vectorize": "jobs.run",
    "plan_train": "jobs.train",
    "run_train": "jobs.train",
    "open_scene": "raster.read",
    "AdaptRequest": "request",
    "BenchRequest": "request",
    "EvaluateRequest": "request",
    "MapRequest": "request",
    "TrainRequest": "request",
    "VectorizeRequest": "request",
    "process_rank": "training.fit",
}
__all__ = [
    "AdaptRequest",
    "BenchRequest",
    "EvaluateRequest",
    "MapRequest",
    "TrainRequest",
    "VectorizeRequest",
    "__version__",
    "check_settings",
    "describe",
    "diagnose",
    "list_models",
    "list_settings",
    "load_model",
    "open_scene",
    "plan",
    "plan_train",
    "process_rank",
    "run_adapt",
    "run_bench",
    "run_evaluate",
    "run_map",
    "run_train",
    "run_vectorize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
