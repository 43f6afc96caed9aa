"""Work in the background of QGIS, told to the main thread by signals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Callable

from qgis.core import Qgis, QgsMessageLog, QgsTask
from qgis.PyQt.QtCore import pyqtSignal

from earthgate_qgis.engine import EngineCancelled, EngineError, run_engine

LOG = "earthgate"
"""Tab of the message log."""

# Where each stage lies in the whole, in percent: training takes most of the time.
_STAGES = {
    "adapt": ("Adapting to the scene", 0, 80),
    "map": ("Mapping", 80, 93),
    "finish": ("Writing the map", 93, 96),
    "vectorize": ("Drawing polygons", 96, 100),
}
# QGIS's own "Task complete" would hide our message; before 3.26 it cannot be told.
_FLAGS = QgsTask.Flag.CanCancel | getattr(QgsTask.Flag, "Silent", QgsTask.Flag.CanCancel)
_MINUTES_FROM_S = 90.0
_ETA_AFTER_S = 3.0  # earlier it jumps


class BackgroundTask(QgsTask):
    """A task whose outcome is a signal, which arrives in the main thread.

    Args:
        description: What QGIS shows.
        work: Does it, away from the main thread, and returns the result; may raise EngineError.
            It gets the task to ask whether it is cancelled.
    """

    result = pyqtSignal(object)
    failed = pyqtSignal(str)
    cancelled = pyqtSignal()
    told = pyqtSignal(str)
    """What is going on now, one line."""

    def __init__(self, description: str, work: Callable[[BackgroundTask], Any]) -> None:
        super().__init__(description, _FLAGS)
        self._title = description
        self._work = work
        self._outcome: Any = None
        self._problem = ""
        self.told.connect(self.setDescription)

    def stop(self, *_: Any) -> None:
        """Cancel it; signals may call this, whatever they say."""
        self.cancel()

    def run(self) -> bool:
        """Do the work; called by QGIS, away from the main thread."""
        try:
            self._outcome = self._work(self)
        except EngineCancelled:
            self.cancel()
        except EngineError as error:
            self._problem = str(error)
        except Exception as error:  # noqa: BLE001  # in a thread nobody else would see it
            log(f"{type(error).__name__}: {error}")
            self._problem = (
                f"The plugin failed with {type(error).__name__}: {error}; please report it."
            )
        return not self._problem and not self.isCanceled()

    def finished(self, done: bool) -> None:  # noqa: FBT001  # QGIS calls it so
        """Say how it ended; called by QGIS in the main thread."""
        self.setDescription(self._title)
        if done:
            self.result.emit(self._outcome)
        elif self._problem and not self.isCanceled():
            self.failed.emit(self._problem)
        else:
            self.cancelled.emit()


class EngineTask(BackgroundTask):
    """One command of the engine, with the progress and the time left in its description.

    Args:
        description: What QGIS shows until the engine speaks.
        arguments: The command and its options.
        command: What starts the engine.
        adapt_s: Time at which adapting ends, however many of its steps are done.
    """

    def __init__(
        self,
        description: str,
        arguments: Sequence[str],
        command: Sequence[str],
        *,
        adapt_s: float,
    ) -> None:
        super().__init__(description, lambda _: self._run_engine())
        self.arguments = list(arguments)
        self._command, self._adapt_s = list(command), adapt_s
        self._stage, self._since_s = "", 0.0

    def _run_engine(self) -> dict[str, Any]:
        return run_engine(
            self.arguments,
            command=self._command,
            on_progress=self._progressed,
            on_log=log,
            is_cancelled=self.isCanceled,
        )

    def _progressed(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._since_s = stage, now_s
        passed_s, share = now_s - self._since_s, done / max(total, 1)
        if stage == "adapt":
            share = max(share, min(passed_s / self._adapt_s, 1))
        title, begin, end = _STAGES.get(stage, (stage.capitalize(), 0, 100))
        self.setProgress(begin + (end - begin) * share)
        self.told.emit(f"{title}{_left(passed_s, share)}")


def _left(passed_s: float, share: float) -> str:
    """Return the time that the stage still takes, in words, once it can be told."""
    if not 0 < share < 1 or passed_s < _ETA_AFTER_S:
        return "..."
    left_s = passed_s / share * (1 - share)
    rough = (
        f"{round(left_s / 60)} min" if left_s >= _MINUTES_FROM_S else f"{max(round(left_s), 1)} s"
    )
    return f", about {rough} left"


def duration(seconds: float) -> str:
    """Return a time in words, e.g. ``1 min 40 s``."""
    minutes, rest = divmod(max(round(seconds), 1), 60)
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def log(line: str) -> None:
    """Write a line to the plugin's tab of the message log; any thread may."""
    QgsMessageLog.logMessage(line, LOG, Qgis.MessageLevel.Info, False)
