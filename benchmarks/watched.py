"""Child processes under watch: what they print, how long they take, how much memory."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CLI = (sys.executable, "-c", "import sys; from earthgate_cli.main import main; sys.exit(main())")
"""The command line, as it is installed."""

_EVERY_S = 0.05


@dataclass(frozen=True)
class Watched:
    """A child that has ended well."""

    printed: str
    """What it wrote to its standard output."""

    peak_bytes: int
    """Most memory that it and its own children held at once, looked at 20 times a second."""


def watch(command: Sequence[str]) -> Watched:
    """Run a command to its end.

    Raises:
        CalledProcessError: It failed.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        top, peak = psutil.Process(child.pid), 0
        while child.poll() is None:
            peak = max(peak, _tree_bytes(top))
            time.sleep(_EVERY_S)
        assert child.stdout is not None  # noqa: S101 - a script
        printed = child.stdout.read()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, printed)
    return Watched(printed, peak)


def run_for(command: Sequence[str], seconds: float) -> bool:
    """Run a command, kill it and its children after ``seconds``; return whether it was alive."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(child.pid).children(recursive=True), child]:
                process.kill()
    return child.returncode != 0


def high_water_bytes() -> int:
    """Return the most memory that this process ever held, as Linux counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (most,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(most)


def _tree_bytes(top: psutil.Process) -> int:
    held = 0
    try:
        for process in (top, *top.children(recursive=True)):
            held += process.memory_info().rss
    except psutil.NoSuchProcess:  # ended while we looked
        pass
    return held
