"""All checks, in the order in which a person would mend what they find."""

import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from earthgate_geo import __version__
from earthgate_geo.doctor import geodata, machine, models, packages
from earthgate_geo.doctor.check import REINSTALL, Check, look

_PAIR = "install both anew from one place: pip install --force-reinstall torch torchvision"
_MENDS = {"torch": _PAIR, "torchvision": _PAIR}
"""Torch of one place beside torchvision of another, say one without CUDA, does not load."""

_TORCH = f"{REINSTALL}; until then map with --runtime torch"


def diagnose(
    *,
    model_folder: Path | None = None,
    cache_folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Look at everything a run needs, and compute a little with it.

    Args:
        model_folder: Folder of models beside the packaged ones.
        cache_folder: Folder of converted networks.
        environment: Variables of the process, searched for those that lead libraries astray.

    Returns:
        ``healthy`` (nothing is broken), ``version``, ``python``, ``platform``, ``packages`` (name
        to version, None where it is not installed) and ``checks``, each with ``name``, ``state``
        (``ok``, ``absent``, ``warn`` or ``broken``), ``ok`` (not broken), ``found`` and ``fix``,
        as JSON values.
    """
    checks = [
        *_libraries(environment or {}),
        *machine.processors(),
        *_models(model_folder),
        *_places(cache_folder),
    ]
    return {
        "healthy": all(check.state != "broken" for check in checks),
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages.versions(),
        "checks": [asdict(check) | {"ok": check.state != "broken"} for check in checks],
    }


def _libraries(environment: Mapping[str, str]) -> Iterator[Check]:
    yield look("packages", packages.needed, REINSTALL)
    for name in packages.COMPILED:
        yield look(name, partial(packages.imported, name), _MENDS.get(name, REINSTALL))
    for name in packages.extras():
        yield look(f"extra {name}", partial(packages.extra, name), REINSTALL)
    mend, foreign = geodata.mend(geodata.leaders(environment)), geodata.foreign(environment)
    yield look("GDAL", geodata.gdal, mend)
    yield look("PROJ", geodata.proj, mend)
    yield look("GeoPackage", geodata.geopackage, mend)
    yield look("environment", partial(geodata.environment, foreign), mend)


def _models(folder: Path | None) -> Iterator[Check]:
    yield look("default model", models.default_model, REINSTALL)
    yield look("OpenVINO", models.openvino, _TORCH)
    yield look("mapping", models.mapping, REINSTALL)
    if folder is not None:
        told = "set EARTHGATE_MODELS to a folder that can be read"
        yield look("model folder", partial(models.model_folder, folder), told)


def _places(cache_folder: Path | None) -> Iterator[Check]:
    yield look("memory", machine.memory, "close other programs")
    told = "run in a folder that can be written, on a disk with room"
    yield look("current folder", partial(machine.room, Path.cwd, fix=told), told)
    told = "set TMPDIR (TEMP on Windows) to a writable folder with room"
    yield look("temporary folder", partial(machine.room, tempfile.gettempdir, fix=told), told)
    if cache_folder is not None:
        told = "set EARTHGATE_CACHE to a folder that can be written"
        yield look("cache folder", partial(machine.cache, cache_folder, fix=told), told)
