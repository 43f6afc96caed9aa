"""Processors, memory and folders of this machine."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from earthgate_geo.doctor.check import Check, Doubt, look

_LEAST_DISK_MB = 1_000
_LEAST_MEMORY_MB = 2_000
"""About a gigabyte for the program itself, and what mapping takes at least by default."""

_NATIVE = {
    "bf16": ("avx512_bf16", "amx_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8"),
}
"""Instructions of an x86 processor that multiply in a precision."""

_TENSOR_CORES = {"bf16": (8, 0), "fp16": (7, 0), "int8": (7, 2)}
"""Compute capability from which an NVIDIA card multiplies fast in a precision."""


def processors() -> Iterator[Check]:
    """Try out the processor and each graphics card that torch knows."""
    fix = "install a torch build that fits this machine"
    yield look("processor", _processor, fix)
    try:
        torch = import_module("torch")
        cards = torch.cuda.device_count()
        metal = torch.backends.mps.is_available()
    except Exception:  # noqa: BLE001  # the check of torch says what is wrong with it
        return
    for index in range(cards):
        yield look(f"cuda:{index}", partial(_card, index), f"{fix}, or add --device cpu")
    if metal:
        yield look("mps", partial(_computing, "mps", "runs fp32"), f"{fix}, or add --device cpu")


def memory() -> str | Doubt:
    """Compare the free memory with what a run takes at least."""
    there = import_module("psutil").virtual_memory()
    told = f"{there.total / 1e9:.1f} GB, {there.available / 1e9:.1f} GB of it free"
    if there.available < _LEAST_MEMORY_MB * 1e6:
        return Doubt(told, f"free {_LEAST_MEMORY_MB / 1000:.0f} GB: close other programs")
    return told


def room(where: Callable[[], str | Path], *, fix: str) -> str | Doubt:
    """Write into a folder, which ``where`` may fail to tell, and compare the room that is left."""
    folder = where()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"earthgate")
    free_mb = shutil.disk_usage(folder).free / 1e6
    told = f"{folder}, {free_mb / 1000:.1f} GB free"
    return told if free_mb >= _LEAST_DISK_MB else Doubt(told, fix)


def cache(folder: Path, *, fix: str) -> str | Doubt:
    """Look whether converted networks can be kept, for which the folder may yet be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return str(folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Doubt(f"{folder} cannot be written ({reason}): each map converts its model", fix)


def card(properties: Any) -> str:
    """Describe an NVIDIA card by what torch tells of it."""
    able = (properties.major, properties.minor)
    fast = [kind for kind, least in _TENSOR_CORES.items() if able >= least]
    size = f"{properties.total_memory / 1e9:.0f} GB, compute capability {'.'.join(map(str, able))}"
    return f"{properties.name}, {size}, fast in {_listed('fp32', *fast)}"


def _processor() -> str:
    torch = import_module("torch")
    # Older torch cannot tell of a processor.
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    native = [kind for kind, names in _NATIVE.items() if any(able.get(n) for n in names)]
    cores = f"cores: {os.cpu_count()}, threads: {torch.get_num_threads()}"
    return _computing("cpu", f"{cores}, fast in {_listed('fp32', *native)}")


def _card(index: int) -> str:
    properties = import_module("torch").cuda.get_device_properties(index)
    return _computing(f"cuda:{index}", card(properties))


def _computing(device: str, told: str) -> str:
    if float(import_module("torch").ones(2, device=device).sum()) != 2:
        raise ArithmeticError(f"1 + 1 is not 2 on {device}")
    return told


def _listed(*kinds: str) -> str:
    return " and ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))
