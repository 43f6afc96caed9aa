"""Install the engine into an environment of the plugin's own, with venv and pip.

It lies in the user's cache folder, not in the QGIS profile: paths there are too long for Windows,
and the plugin could not be removed while an engine runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Callable

from earthgate_qgis.process import Child, EngineCancelled, EngineError, end_group, locked, start

_NAMES = ("python3.12", "python3.11", "python3.13", "python3", "python")
_PROBE = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11) or sys.maxsize < 2**32)"
_PROBE_S = 20
_PIP = ("-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--progress-bar=off")
_WHEEL = "earthgate_geo-*.whl"
_STAMP = "engine.json"


def install_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of the environments that ``install_engine`` makes."""
    if sys.platform == "win32":
        cache = Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "earthgate" / "qgis"


def installed_python(environ: Mapping[str, str]) -> Path | None:
    """Return the Python of the finished installation; None without one."""
    folder = install_folder(environ)
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        python = _python_of(folder / stamp["environment"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return python if python.is_file() else None


def install_engine(
    source: Path,
    *,
    version: str,
    environ: Mapping[str, str],
    on_log: Callable[[str], None],
    is_cancelled: Callable[[], bool],
) -> Path:
    """Install the engine and return its Python; an earlier one serves until it is done.

    Args:
        source: The engine's wheel; or a folder with it, from which alone all is installed if
            further wheels lie there; or a folder with its source.
        version: The plugin's; under another one the same wheel is installed anew.
        environ: Says where the cache folder is, and where programs are.
        on_log: Takes a line for people.
        is_cancelled: Asked at least five times a second.

    Raises:
        EngineCancelled: ``is_cancelled`` was true; nothing is left of this installation.
        EngineError: There is no engine, no fitting Python, another QGIS installs, or pip failed.
    """
    requirements = _requirements(source)
    folder = install_folder(environ)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "install.lock") as is_ours:
        if not is_ours:
            raise EngineError("Another QGIS is installing the engine; wait until it has finished.")
        environment = folder / _name(requirements, version)
        python, before = _python_of(environment), installed_python(environ)
        if before == python:
            on_log("This engine is installed already.")
            return python
        try:
            for command in (
                [*_find_python(environ), "-m", "venv", "--clear", str(environment)],
                [str(python), *_PIP, *requirements],
                [str(python), "-m", "earthgate_cli", "--version"],
            ):
                _run(command, on_log, is_cancelled)
        except EngineError:
            shutil.rmtree(environment, ignore_errors=True)
            raise
        _stamp(folder, {"environment": environment.name, "version": version})
        kept = {environment, before.parents[1] if before else environment}  # an engine may run
        for other in folder.iterdir():
            if other.is_dir() and other not in kept:
                shutil.rmtree(other, ignore_errors=True)
    return python


def _python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _requirements(source: Path) -> list[str]:
    """Return what pip is to install."""
    if source.match(_WHEEL) and source.is_file():
        return [str(source)]
    if (source / "pyproject.toml").is_file():
        return [str(source)]
    if source.is_dir():
        engines = sorted(source.glob(_WHEEL), key=lambda wheel: wheel.stat().st_mtime)
        if engines:
            others = set(source.glob("*.whl")) - set(engines)
            offline = ["--no-index", "--find-links", str(source)] if others else []
            return [*offline, str(engines[-1])]
    raise EngineError(
        f"{source} is not the engine; choose a file {_WHEEL}, a folder with it, or a folder with "
        "the source of earthgate."
    )


def _name(requirements: Sequence[str], version: str) -> str:
    """Return a name that changes with what is installed; short, for Windows."""
    digest = hashlib.sha256(json.dumps([version, *requirements]).encode())
    wanted = Path(requirements[-1])
    digest.update(wanted.read_bytes() if wanted.is_file() else os.urandom(8))
    return digest.hexdigest()[:8]


def _find_python(environ: Mapping[str, str]) -> list[str]:
    """Return the words that start a Python on which the engine runs."""
    own = Path(sys.prefix) / ("python.exe" if os.name == "nt" else "bin/python3")
    found = [shutil.which(name, path=environ.get("PATH")) for name in (*_NAMES, str(own))]
    for python in filter(None, found):
        process = start(
            [python, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with suppress(subprocess.TimeoutExpired):
            if process.wait(_PROBE_S) == 0:
                return [python]
        end_group(process)
    raise EngineError(
        "No Python 3.11 or newer with venv was found on this machine; install one from python.org "
        "(on Debian and Ubuntu: python3-venv) and try again."
    )


def _run(
    command: Sequence[str], on_log: Callable[[str], None], is_cancelled: Callable[[], bool]
) -> None:
    last = ""
    child = Child(command)
    try:
        for line in child.lines():
            if is_cancelled():
                raise EngineCancelled("The installation was cancelled.")
            text = line[:2000].decode("utf-8", "replace").strip()
            if text:
                on_log(text)
                last = text if "error" in text.lower() or not last else last
        code = child.exit_code()
    finally:
        child.end()
    if code != 0:
        raise EngineError(
            f"The installation failed (exit code {code}); look at its log, mend what it names "
            f"and try again. It said: {last}"
        )


def _stamp(folder: Path, facts: Mapping[str, str]) -> None:
    """Write the stamp at once, so that no half of it is ever read."""
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        json.dump(facts, file)
    Path(file.name).replace(folder / _STAMP)
