"""Several scenes at a time, for a cluster that one small scene does not fill."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from earthgate_geo.errors import CancelledError
from earthgate_geo.monitor import Monitor

Scene = TypeVar("Scene")
Result = TypeVar("Result")

AT_ONCE = 4
"""Scenes whose tasks a cluster is given at a time."""


def done_together(
    scenes: Sequence[Scene], work: Callable[[Scene, Monitor], Result], *, monitor: Monitor
) -> Generator[Result]:
    """Do ``work`` on every scene, ``AT_ONCE`` of them at a time, and yield results as they come.

    Once one raises, or the caller leaves, those that are begun stop at their next word to their
    monitor, and no other is begun.

    Args:
        scenes: What to work on.
        work: Called in threads, with a scene and the monitor that it is to use.
        monitor: Told the stage ``map``, in scenes, and what the scenes log; may cancel.

    Raises:
        CancelledError: The monitor said so; and whatever ``work`` raises.
    """
    one_of_many = _OneOfMany(monitor)
    monitor.stage("map", len(scenes))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(work, scene, one_of_many) for scene in scenes]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                yield future.result()
                monitor.update(done)
        finally:
            one_of_many.stopped.set()
            for future in futures:
                future.cancel()


class _OneOfMany:
    """The monitor of scenes that are mapped at the same time: their words, not their progress."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor, self._lock = monitor, threading.Lock()
        self.stopped = threading.Event()

    def stage(self, name: str, total: int) -> None:  # noqa: ARG002  # a monitor's
        self._check()

    def update(self, done: int) -> None:  # noqa: ARG002  # a monitor's
        self._check()

    def log(self, message: str) -> None:
        with self._lock:
            self._monitor.log(message)

    def warn(self, message: str) -> None:
        with self._lock:
            self._monitor.warn(message)

    def _check(self) -> None:
        if self.stopped.is_set():
            raise CancelledError
