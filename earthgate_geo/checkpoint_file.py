"""Checkpoints that others wrote: files in, named tensors out."""

import argparse
import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from earthgate_geo.errors import InputError, ModelFileError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# What torch raises on files that are cut or have flipped bits.
_DAMAGE = (
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
)


class _Discarded:
    """Stands in for what a training logged beside its weights: takes anything, keeps nothing."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


# MMEngine's checkpoints, CrossEarth's among them, hold the curves of the training. None of these
# functions is called: the stand-in takes the place of each.
_LOGGED = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *("numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"),
    *("numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"),
)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a checkpoint; names of nested dictionaries are joined by dots.

    Pickles are read as weights alone: no code of them runs. One that holds more is refused, but
    for plain values, options and the curves that MMEngine logs, which are left out.

    Raises:
        InputError: There is no such file, or its suffix is none of ``SUFFIXES``.
        ModelFileError: The file is damaged, holds more than data, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise InputError(
            found=f"no checkpoint {path}", expected=f"a file that ends in {', '.join(SUFFIXES)}"
        )
    try:
        content = _content(path)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            found=f"{path} is damaged, or holds objects that could run code when opened",
            expected="tensors by name and plain values",
            fix="Where you trust it, save its state dict alone with torch.save and give that",
        ) from error
    except _DAMAGE as error:
        raise ModelFileError(
            found=f"{path} is damaged or no checkpoint",
            expected="a complete safetensors file or torch.save's",
            fix="Copy the file again",
        ) from error
    tensors = dict(_tensors(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelFileError(
            found=f"{path} holds no tensors by name", expected="a state dict, plain or nested"
        )
    return tensors


def _content(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        return load_file(path)
    # Training scripts, MAE's among them, store their options in a Namespace: plain values.
    stand_ins = [(_Discarded, name) for name in _LOGGED]
    with torch.serialization.safe_globals([argparse.Namespace, *stand_ins]):
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - no code runs


def _tensors(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
