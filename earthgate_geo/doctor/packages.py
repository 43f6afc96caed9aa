"""Installed packages against what this version of earthgate asks for."""

from importlib import import_module, metadata
from typing import Any

from earthgate_geo.doctor.check import Doubt

COMPILED = ("torch", "torchvision", "torchgeo", "timm", "rasterio", "pyproj", "pyogrio")
"""Packages that are large and compiled: they may be installed and still not load."""

EXTRAS = {
    "dask": "to map on a cluster",
    "stac": "to read and write STAC Items",
    "onnx": "to export ONNX files",
    "xarray": "for xarray arrays in Python",
    "mask2former": "for that head",
}
"""Optional parts, and what they are for."""

_DISTRIBUTION = "earthgate-geo"


def extras() -> list[str]:
    """Return the names of the optional parts; none where earthgate is not installed."""
    return [name for name in EXTRAS if _asked(name)]


def versions() -> dict[str, str | None]:
    """Return the version of each package that earthgate or an extra asks for."""
    wanted = [each for part in ("", *EXTRAS) for each in _asked(part)]
    return {each.name: _version(each.name) for each in wanted}


def needed() -> str | Doubt:
    """Compare all packages that earthgate cannot do without.

    Raises:
        ImportError: One is missing or of another version than asked for.
    """
    asked = _asked("")
    if not asked:
        return Doubt(
            "earthgate is not installed but runs from its source: no versions are compared",
            "run pip install . in the folder of its pyproject.toml",
        )
    if misfits := _misfits(asked):
        raise ImportError("; ".join(misfits))
    return f"{len(asked)} there, each of a version that earthgate asks for"


def imported(name: str) -> str:
    """Import a package and return its version."""
    import_module(name)
    return _version(name) or "without a version"


def extra(name: str) -> str | Doubt:
    """Compare the packages of an optional part."""
    install = f"pip install '{_DISTRIBUTION}[{name}]'"
    asked = _asked(name)
    there = {each.name: found for each in asked if (found := _version(each.name))}
    if len(there) < len(asked):
        return Doubt(f"not installed; needed {EXTRAS[name]}", install, state="absent")
    if misfits := _misfits(asked):
        return Doubt("; ".join(misfits), install)
    return ", ".join(f"{package} {found}" for package, found in there.items())


def _asked(extra: str) -> list[Any]:
    """Return what an extra adds to the requirements, or for "" those without an extra."""
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    every = [import_module("packaging.requirements").Requirement(line) for line in lines]
    asked = [each for each in every if _applies(each, extra)]
    return [each for each in asked if not extra or not _applies(each, "")]


def _applies(requirement: Any, extra: str) -> bool:
    return requirement.marker is None or bool(requirement.marker.evaluate({"extra": extra}))


def _misfits(asked: list[Any]) -> list[str]:
    found = {each: _version(each.name) for each in asked}
    return [
        f"{each.name} {version or 'is missing'} where {each.specifier} is asked for"
        for each, version in found.items()
        if version is None or not each.specifier.contains(version, prereleases=True)
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
