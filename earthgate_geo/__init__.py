"""earthgate: adapt a frozen vision model to an unseen scene and map it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from earthgate_geo.raster.read import open_scene
    from earthgate_geo.request import AdaptRequest, EvaluateRequest, MapRequest, VectorizeRequest

__version__ = "0.1.0"

# Loaded on first use: torch and TorchGeo take seconds, and `earthgate --help` needs neither.
_HOMES = {
    "diagnose": "doctor",
    "describe": "jobs.inventory",
    "list_models": "jobs.inventory",
    "load_model": "jobs.run",
    "plan": "jobs.run",
    "run_adapt": "jobs.run",
    "run_evaluate": "jobs.run",
    "run_map": "jobs.run",
    "run_vectorize": "jobs.run",
    "open_scene": "raster.read",
    "AdaptRequest": "request",
    "EvaluateRequest": "request",
    "MapRequest": "request",
    "VectorizeRequest": "request",
}
__all__ = [
    "AdaptRequest",
    "EvaluateRequest",
    "MapRequest",
    "VectorizeRequest",
    "__version__",
    "describe",
    "diagnose",
    "list_models",
    "load_model",
    "open_scene",
    "plan",
    "run_adapt",
    "run_evaluate",
    "run_map",
    "run_vectorize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
