"""Banks of styles as safetensors files with a JSON header: save, load, tell from other files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from earthgate_geo.data.style import StyleBank, StyleKind, dimension
from earthgate_geo.errors import DataError, InputError, StorageError

_HEADER, _VERSION = "earthgate-styles", 1
_NETWORKS = "network."


def save_bank(bank: StyleBank, path: Path) -> None:
    """Write a bank.

    Raises:
        StorageError: The file cannot be written.
    """
    about = {
        "version": _VERSION,
        "kind": bank.kind,
        "bands": bank.bands,
        "count": bank.count,
        "provenance": dict(bank.provenance),
    }
    tensors = {"mean": bank.mean, "covariance": bank.covariance}
    tensors |= {_NETWORKS + name: weights for name, weights in bank.networks.items()}
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(kept, path, {_HEADER: json.dumps(about)})
    except (OSError, SafetensorError) as error:
        raise StorageError(
            found=f"{path} could not be written ({error})",
            expected="a writable folder with room for it",
        ) from error


def is_bank(path: Path) -> bool:
    """Tell whether a file calls itself a bank of styles; it may still be damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return _HEADER in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_bank(path: Path) -> StyleBank:
    """Read what ``save_bank`` wrote.

    Raises:
        InputError: There is no such file.
        DataError: It is no bank of styles, is damaged, or of another version.
    """
    if not path.is_file():
        raise InputError(
            found=f"{path} does not exist", expected="a file that 'earthgate styles build' wrote"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_HEADER])
            _check_version(path, about["version"])  # first: nothing else is known of another one
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
        return _bank(about, tensors)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            found=f"{path} is damaged or no bank of styles",
            expected="a file that 'earthgate styles build' wrote",
        ) from error


def _check_version(path: Path, version: Any) -> None:
    if version != _VERSION:
        raise DataError(
            found=f"{path} has format version {version}",
            expected=f"version {_VERSION}",
            fix="Build it again",
        )


def _bank(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StyleBank:
    kind, bands, mean = about["kind"], int(about["bands"]), tensors["mean"]
    if kind not in get_args(StyleKind):
        raise ValueError(kind)
    if mean.shape != (dimension(kind, bands=bands),):
        raise ValueError(tuple(mean.shape))
    if tensors["covariance"].shape != mean.shape * 2:
        raise ValueError(tuple(tensors["covariance"].shape))
    return StyleBank(
        kind=kind,
        bands=bands,
        count=int(about["count"]),
        mean=mean,
        covariance=tensors["covariance"],
        networks={
            name.removeprefix(_NETWORKS): tensor
            for name, tensor in tensors.items()
            if name.startswith(_NETWORKS)
        },
        provenance=about.get("provenance", {}),
    )
