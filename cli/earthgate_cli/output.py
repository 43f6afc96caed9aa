"""What the program says: bars, events and errors on stderr, results on stdout."""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from earthgate_geo.errors import EarthgateWarning
from earthgate_geo.monitor import Monitor

Document = Mapping[str, Any]
Summary = Callable[[Document], Iterable[str]]

_EVENT_INTERVAL_S = 0.1
_RATES = {"adapt": "steps/s", "map": "tiles/s", "train": "steps/s"}


@dataclass(frozen=True, kw_only=True)
class Speech:
    """How one run speaks."""

    progress: str | None = None
    """``bar``, ``json``, ``none``; without a choice a bar where stderr is a terminal."""

    as_json: bool = False
    """Whether stdout carries the result document instead of a summary."""

    quiet: bool = False
    """Whether to say nothing but errors and the document of ``as_json``."""

    verbose: bool = False
    """Whether to relay the log lines of the libraries below, too."""

    def run(self, job: Callable[[Monitor], Document], summary: Summary) -> Document:
        """Do the job, print its result and return it."""
        with self._monitor() as monitor, _relayed(monitor, verbose=self.verbose):
            document = job(monitor)
        self.result(document, summary)
        return document

    def result(self, document: Document, summary: Summary) -> None:
        """Print the document or its summary on stdout, and the event on stderr."""
        if self.as_json:
            click.echo(json.dumps(document))
        elif not self.quiet:
            for line in summary(document):
                click.echo(line)
        if self.progress == "json":
            say_event("result", **document)

    @contextmanager
    def _monitor(self) -> Iterator[Monitor]:
        if self.progress == "json":
            yield EventMonitor()
            return
        wanted = self.progress == "bar" or (
            self.progress is None and not self.quiet and sys.stderr.isatty()
        )
        with _bars() if wanted else nullcontext() as bars:
            yield TextMonitor(quiet=self.quiet, verbose=self.verbose, bars=bars)


def say_event(event: str, **facts: Any) -> None:
    """Write one object of the progress protocol on stderr."""
    click.echo(json.dumps({"event": event, **facts}), err=True)


class EventMonitor:
    """One JSON object a line: what the QGIS plugin reads."""

    def __init__(self) -> None:
        self._stage, self._total, self._said_s = "", 0, 0.0

    def stage(self, name: str, total: int) -> None:
        """Say that the stage begins."""
        self._stage, self._total = name, total
        self._say(0)

    def update(self, done: int) -> None:
        """Say the progress, at most ten times a second and always the last step."""
        if done >= self._total or time.monotonic() - self._said_s >= _EVENT_INTERVAL_S:
            self._say(done)

    def log(self, message: str) -> None:
        """Say the message."""
        say_event("log", level="info", message=message)

    def warn(self, message: str) -> None:
        """Say the warning."""
        say_event("log", level="warning", message=message)

    def _say(self, done: int) -> None:
        self._said_s = time.monotonic()
        say_event("progress", stage=self._stage, done=done, total=self._total)


class TextMonitor:
    """Lines on stderr for people, under a bar where there is one."""

    def __init__(self, *, quiet: bool, verbose: bool, bars: Progress | None = None) -> None:
        self._quiet, self._verbose, self._bars = quiet, verbose, bars
        self._stages: dict[str, TaskID] = {}
        self._open: TaskID | None = None
        self._total = 0

    def stage(self, name: str, total: int) -> None:
        """Begin a bar, or begin again the one that an earlier scene had for the stage."""
        if self._bars is None:
            return
        if name in self._stages:
            self._bars.reset(self._stages[name], total=total, note="")
        else:
            self._stages[name] = self._bars.add_task(name, total=total, note="")
        self._open, self._total = self._stages[name], total

    def update(self, done: int) -> None:
        """Move the newest bar."""
        if self._bars is not None and self._open is not None:
            self._bars.update(self._open, completed=done)
            if done >= self._total:
                self._open = None

    def log(self, message: str) -> None:
        """Show the message beside the bar that moves, else above; print it if more is wanted."""
        if self._verbose:
            click.echo(message, err=True)
        elif self._bars is not None and self._open is not None:
            self._bars.update(self._open, note=message)
        elif self._bars is not None:
            self._bars.console.print(message, markup=False, highlight=False)

    def warn(self, message: str) -> None:
        """Print the warning unless less was asked for."""
        if not self._quiet:
            click.echo(f"Warning: {message}", err=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = _RATES.get(task.description)
        return Text(f"{task.speed:.1f} {unit}" if unit and task.speed else "")


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description:<9}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )


class _LogRelay(logging.Handler):
    def __init__(self, monitor: Monitor) -> None:
        super().__init__()
        self._monitor = monitor

    def emit(self, record: logging.LogRecord) -> None:
        self._monitor.log(f"{record.name}: {record.getMessage()}")


@contextmanager
def _relayed(monitor: Monitor, *, verbose: bool) -> Iterator[None]:
    """Keep what libraries warn and log from breaking the protocol and the bars."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, EarthgateWarning):
            monitor.warn(str(message))
        elif verbose:
            monitor.log(f"{category.__name__}: {message}")

    handler = _LogRelay(monitor) if verbose else logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", EarthgateWarning)
            warnings.showwarning = show
            yield
    finally:
        logging.getLogger().removeHandler(handler)
