"""Model files, and whether the default one maps here."""

import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from earthgate_geo.doctor.check import Doubt
from earthgate_geo.errors import EarthgateWarning, ModelFileError

_SIDE_PX = 64


def default_model() -> str:
    """Load the packaged model, which compares its digest, and run it in torch."""
    torch = import_module("torch")
    model = import_module("earthgate_geo.model_file").load_model()
    logits = model.segmenter(_grey(model))
    if not torch.isfinite(logits).all():
        raise ArithmeticError(f"{model.name} gives numbers that are not finite")
    return f"{model.name}, as released: sha256 {model.digest}"


def openvino() -> str:
    """Convert a layer and run it."""
    told = import_module("earthgate_geo.mapping.runtime_openvino").try_out()
    return str(told)


def mapping() -> str | Doubt:
    """Make the default model ready as ``earthgate map`` does, and run it."""
    runtimes = import_module("earthgate_geo.mapping.runtime")
    grid = import_module("earthgate_geo.raster.grid")
    model = import_module("earthgate_geo.model_file").load_model()
    options = runtimes.RuntimeOptions(
        device=import_module("earthgate_geo.jobs.prepare").torch_device("auto")
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runtime = runtimes.open_runtime(model, grid.Size(rows=_SIDE_PX, cols=_SIDE_PX), options)
        logits = runtime.start(_grey(model))()
    if not logits.isfinite().all():
        raise ArithmeticError(f"{runtime.name} gives numbers that are not finite")
    found = f"runs {runtime.name} in {runtime.precision} on {runtime.device}"
    remarks = [str(each.message) for each in told if each.category is EarthgateWarning]
    return Doubt(f"{found}; {remarks[0]}", "see the check of OpenVINO") if remarks else found


def model_folder(folder: Path) -> str | Doubt:
    """Look through the local models for files that do not open and adapters without a base."""
    if not folder.exists():
        return f"{folder}, not there yet"
    if not folder.is_dir():
        return Doubt(f"{folder} is a file", "set EARTHGATE_MODELS to a folder")
    problems: list[str] = []
    headers = dict(_readable(folder, problems))
    file_digest = import_module("earthgate_geo.model_file").file_digest
    models = {file_digest(path) for path, each in headers.items() if each["kind"] == "model"}
    adapters = {path: each["base"] for path, each in headers.items() if each["kind"] == "adapter"}
    problems += [
        f"{path} needs the model {base['name']} ({base['digest'][:12]}), which is not at hand"
        for path, base in adapters.items()
        if base["digest"] not in models
    ]
    if problems:
        return Doubt("; ".join(problems), "copy these files again, and models beside adapters")
    own = [path for path in headers if path.parent == folder]
    return f"{folder}, {len(own)} files, all of them readable"


def _readable(folder: Path, problems: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the header of each model file at hand; tell of the local ones without."""
    files = import_module("earthgate_geo.model_file")
    for path in files.list_models([folder]):
        try:
            yield path, files.read_header(path)
        except ModelFileError as error:
            if path.parent == folder:
                problems.append(error.found)


def _grey(model: Any) -> Any:
    channels = model.segmenter.config.channels
    return import_module("torch").full((1, channels, _SIDE_PX, _SIDE_PX), 0.5)
