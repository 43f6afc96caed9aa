"""The engine: find it, run a command of it as a child process, follow its events.

It has an environment of its own, because its GDAL, PROJ and numpy would break QGIS's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable

from earthgate_qgis import install
from earthgate_qgis.process import (
    LONGEST_BYTES,
    WHERE,
    Child,
    EngineCancelled,
    EngineError,
    clean_environment,
    end_group,
    locked,
    start,
)

__all__ = [
    "EngineCancelled",
    "EngineError",
    "clean_environment",
    "find_engine",
    "output_files",
    "query_engine",
    "run_engine",
    "understood",
]

_PROTOCOL = ("--progress", "json", "--watch-stdin")
_OUTPUTS = ("--dst", "--vector", "--out", "--report")
_FAREWELL_S = 2.0  # from the result to the end of the process
_MOST_LINES = {"log": 2_000, "foreign": 200}  # in the log; a library can say millions
_MOST_CHARS = 500
_POLL_S = 0.1
_WRAPPING = " \t\"'"  # around a path that was copied
_KILLED = (-9, 137)  # 137 is how a shell passes on -9


def find_engine(setting: str, environ: Mapping[str, str]) -> list[str]:
    """Return the words that start the engine, before its arguments.

    Args:
        setting: An ``earthgate`` executable, a Python whose environment has it, or nothing.
        environ: EARTHGATE_EXECUTABLE in it beats the setting.

    Raises:
        EngineError: There is none.
    """
    chosen = environ.get("EARTHGATE_EXECUTABLE", "").strip(_WRAPPING) or setting.strip(_WRAPPING)
    if chosen:
        found = shutil.which(str(Path(chosen).expanduser()), path=environ.get("PATH"))
        if found is None:
            raise EngineError(
                f"{chosen} is not a program on this machine; choose an earthgate executable, or "
                f"a Python that has it, in {WHERE} or as EARTHGATE_EXECUTABLE."
            )
        return _python(found) if Path(found).stem.lower().startswith("python") else [found]
    managed = install.installed_python(environ)
    if managed is not None:
        return _python(str(managed))
    on_path = shutil.which("earthgate", path=environ.get("PATH"))
    if on_path is None:
        raise EngineError(
            f"The mapping engine is not installed; open {WHERE} and press Install, or choose an "
            "earthgate executable or a Python that has it."
        )
    return [on_path]


def run_engine(
    arguments: Sequence[str],
    *,
    command: Sequence[str],
    on_progress: Callable[[str, int, int], None],
    on_log: Callable[[str], None],
    is_cancelled: Callable[[], bool],
) -> dict[str, Any]:
    """Run one command of the engine and return its result document.

    Memory stays bounded, whatever it prints. All callbacks are called from the caller's thread.

    Args:
        arguments: The command and its options.
        command: What ``find_engine`` gave.
        on_progress: Takes the stage, the steps done and their total.
        on_log: Takes a line for people.
        is_cancelled: Asked at least five times a second; once it is true, the engine and all
            that it started end within two seconds.

    Raises:
        EngineCancelled: ``is_cancelled`` was true; what the engine keeps to go on with is gone.
        EngineError: The engine failed, or is missing.
    """
    listener = _Listener(on_progress, on_log)
    child = Child([*command, *arguments, *_PROTOCOL])
    try:
        for line in child.lines():
            if is_cancelled():
                child.end_politely()
                _remove_unfinished(arguments)
                raise EngineCancelled("The run was cancelled.")
            if line:
                listener.hear(line)
            elif listener.seconds_since_result() > _FAREWELL_S:
                break
        code = child.exit_code()
    finally:
        child.end()
    return listener.outcome(code, command)


def query_engine(
    arguments: Sequence[str],
    *,
    command: Sequence[str],
    timeout_s: float = 60,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Any:
    """Return the JSON that a short command of the engine prints, whatever its exit code.

    Raises:
        EngineCancelled: ``is_cancelled`` was true.
        EngineError: It prints none in time, or is missing.
    """
    until = time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start([*command, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            while process.poll() is None:
                if is_cancelled():
                    raise EngineCancelled("The question was cancelled.")
                if time.monotonic() > until:
                    raise EngineError(
                        f"The engine did not answer within {timeout_s:g} s; try again, and if it "
                        f"stays so, install it again in {WHERE}."
                    )
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            end_group(process)
        out.seek(0)
        try:
            return json.loads(out.read(LONGEST_BYTES))
        except ValueError:
            err.seek(0)
            last_words = [_text(line) for line in err.read(LONGEST_BYTES).splitlines()]
            raise EngineError(_failure(process.returncode, last_words[-3:], command)) from None


@contextmanager
def understood() -> Iterator[None]:
    """Turn what a document of another version of the engine lacks into a sentence.

    Raises:
        EngineError: The block did not find what it reads.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"The engine's answer does not fit this plugin ({type(error).__name__}: {error}); "
            f"install the engine of the plugin's version in {WHERE}."
        ) from error


def output_files(arguments: Sequence[str]) -> list[str]:
    """Return the files that a command of the engine is told to write."""
    found = {option: value for option, value in zip(arguments, arguments[1:]) if option in _OUTPUTS}
    if "--confidence" in arguments:
        path = Path(found["--dst"])
        found["--confidence"] = str(path.parent / f"{path.stem}_conf.tif")
    return list(found.values())


def _python(executable: str) -> list[str]:
    return [executable, "-m", "earthgate_cli"]


def _remove_unfinished(arguments: Sequence[str]) -> None:
    """Remove the hidden folder beside each output, unless another run holds it."""
    for path in map(Path, output_files(arguments)):
        folder = path.parent / f".{path.name}.earthgate"
        with suppress(OSError):  # the run is cancelled all the same
            if not folder.is_dir():
                continue
            with locked(folder / "lock") as is_ours:
                pass
            if is_ours:  # Windows does not remove a file that is locked
                shutil.rmtree(folder, ignore_errors=True)


class _Listener:
    """Makes calls of the engine's lines, and keeps what the last event said."""

    def __init__(
        self, on_progress: Callable[[str, int, int], None], on_log: Callable[[str], None]
    ) -> None:
        self._on_progress, self._on_log = on_progress, on_log
        self._result: dict[str, Any] | None = None
        self._result_s = 0.0
        self._error = ""
        self._told: Counter[str] = Counter()
        self._last_words: deque[str] = deque(maxlen=3)

    def seconds_since_result(self) -> float:
        return 0.0 if self._result is None else time.monotonic() - self._result_s

    def hear(self, line: bytes) -> None:
        event = _event(line)
        kind = event.pop("event", None)
        if kind == "progress":
            self._on_progress(event["stage"], event["done"], event["total"])
        elif kind == "log":
            warned = "Warning: " if event.get("level") == "warning" else ""
            self._tell("log", f"{warned}{event.get('message') or ''}")
        elif kind == "result":
            self._result, self._error, self._result_s = event, "", time.monotonic()
        elif kind == "error":
            self._result, self._error = None, str(event.get("message") or "")
            problems = event.get("problems")
            for problem in problems if isinstance(problems, list) else ():
                self._tell("log", str(problem))
        else:
            self._hear_foreign(_text(line))

    def outcome(self, code: int | None, command: Sequence[str]) -> dict[str, Any]:
        if self._result is None:
            raise EngineError(self._error or _failure(code, self._last_words, command))
        if code != 0:  # the files are complete and have their names
            self._on_log("Warning: the engine did not end in order after its result.")
        return self._result

    def _hear_foreign(self, text: str) -> None:
        if text:
            self._last_words.append(text)
            self._tell("foreign", text)

    def _tell(self, kind: str, text: str) -> None:
        self._told[kind] += 1
        if self._told[kind] <= _MOST_LINES[kind]:
            self._on_log(text[:_MOST_CHARS])
        elif self._told[kind] == _MOST_LINES[kind] + 1:
            self._on_log("(further lines are left out)")


def _event(line: bytes) -> dict[str, Any]:
    """Return the object of an event; an empty one for anything else."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(event, dict):
        return {}
    if event.get("event") == "progress":
        wanted = {"stage": str, "done": int, "total": int}
        if not all(isinstance(event.get(key), kind) for key, kind in wanted.items()):
            return {}
    return event


def _text(line: bytes) -> str:
    return line[: 4 * _MOST_CHARS].decode("utf-8", "replace").strip()[:_MOST_CHARS]


def _failure(code: int | None, last_words: Sequence[str], command: Sequence[str]) -> str:
    """Say in a sentence why there is no result, and what to do."""
    said = f" It last said: {last_words[-1]}" if last_words else ""
    advice = f"look at the log, and press Test in {WHERE}.{said}"
    if code in _KILLED:
        return (
            "The engine was killed by the system, which happens when memory runs out; close "
            "other programs, or map a smaller part of the scene."
        )
    if any("No module named" in words and "earthgate" in words for words in last_words):
        return f"{command[0]} does not have earthgate; choose another one in {WHERE}."
    if code is None:
        return f"The engine closed its output without a result and did not end; {advice}"
    if code == 0:
        return f"The engine ended without a result; {advice}"
    return f"The engine stopped with exit code {code}; {advice}"
