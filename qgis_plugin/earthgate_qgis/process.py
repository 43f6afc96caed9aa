"""Child processes: a clean environment, output line by line, and an end that takes the children."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Callable

if os.name == "nt":
    import msvcrt
else:
    import fcntl

WHERE = "Settings > Options > earthgate"
"""Where users choose and test the engine; sentences name it."""

LONGEST_BYTES = 4_000_000
"""Length at which a line is cut; a result document is far shorter."""

_FOREIGN_PREFIXES = ("PYTHON", "PROJ_", "GDAL_", "QGIS_", "QT_", "DYLD_", "CONDA_")
_FOREIGN_NAMES = {"VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "OGR_DRIVER_PATH"}
_FOREIGN_NAMES |= {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}

_POLL_S = 0.1
_POLITE_S = 1.2  # a step of training, or a tile, after which the engine notices
_TERMINATE_S = 0.3
_LINGER_S = 1.0  # a pipe that stays open after the process ended has another holder
_FAREWELL_S = 2.0
_WAITING_LINES = 16  # read ahead of the one who listens


class EngineError(Exception):
    """The engine failed or is missing; ``str()`` is one sentence with the next step."""


class EngineCancelled(EngineError):  # noqa: N818  # no error, but what the user wanted
    """The run was cancelled, and no process of it is left."""


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what QGIS set for itself; proxies and certificates stay."""
    kept = {
        key: value
        for key, value in environ.items()
        if not key.upper().startswith(_FOREIGN_PREFIXES) and key.upper() not in _FOREIGN_NAMES
    }
    # What lies in the working folder must not stand in for the engine's packages.
    return {**kept, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}


class Child:
    """A process whose output is read line by line.

    Args:
        command: Program and arguments.

    Raises:
        EngineError: It cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = start(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._lines: queue.Queue[bytes] = queue.Queue(_WAITING_LINES)
        # Windows cannot wait for a pipe and a clock at once.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._process.stdout as stream:
            while True:
                line = stream.readline(LONGEST_BYTES)
                self._lines.put(line)
                if not line:
                    return

    def lines(self) -> Iterator[bytes]:
        """Yield its lines until the last; ``b""`` every tenth of a second without one."""
        ended_s = None
        while True:
            try:
                line = self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                if self._process.poll() is not None:
                    ended_s = ended_s or time.monotonic()
                    if time.monotonic() - ended_s > _LINGER_S:
                        return
                yield b""
                continue
            if not line:
                return
            yield line

    def exit_code(self) -> int | None:
        """Return its exit code after its last line; None if it does not end."""
        try:
            return self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            return None

    def end_politely(self) -> None:
        """Let it clean up, as after Ctrl-C; end it within two seconds all the same."""
        self._close_stdin()
        self._read_until(self._has_ended, _POLITE_S)
        if os.name != "nt" and not self._has_ended():
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._read_until(self._has_ended, _TERMINATE_S)
        self.end()

    def end(self) -> None:
        """End it, and whatever it started and left behind."""
        end_group(self._process)
        self._close_stdin()
        self._read_until(lambda: not self._reader.is_alive(), _TERMINATE_S)

    def _close_stdin(self) -> None:
        with suppress(OSError):
            self._process.stdin.close()

    def _has_ended(self) -> bool:
        return self._process.poll() is not None

    def _read_until(self, is_over: Callable[[], bool], seconds: float) -> None:
        """Wait, and read on: a full pipe would keep the process from ending."""
        until = time.monotonic() + seconds
        while not is_over() and time.monotonic() < until:
            with suppress(queue.Empty):
                self._lines.get(timeout=0.02)


def start(
    command: Sequence[str], *, stdin: int, stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, so that it can be ended with its children.

    Raises:
        EngineError: It cannot be started.
    """
    if os.name == "nt":
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        apart: dict[str, Any] = {"creationflags": flags}
    else:
        apart = {"start_new_session": True}
    try:
        return subprocess.Popen(
            list(command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=clean_environment(os.environ),
            **apart,
        )
    except OSError as error:
        raise EngineError(
            f"{command[0]} cannot be started ({error.strerror or error}); choose an earthgate "
            f"executable, or a Python that has it, in {WHERE}."
        ) from error


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that ``start`` gave, and its children, at once."""
    if os.name != "nt":
        with suppress(OSError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        subprocess.run(
            ["taskkill", "/F", "/T", "/PID", str(process.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            creationflags=subprocess.CREATE_NO_WINDOW,
            check=False,
        )
    with suppress(subprocess.TimeoutExpired):  # a dead network drive holds even the killed
        process.wait(_LINGER_S)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file, made where it is missing; give whether nobody else holds it.

    The system opens the lock if the process dies. The engine locks its outputs like this, too.
    """
    with path.open("a+b") as file:
        try:
            if os.name == "nt":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
