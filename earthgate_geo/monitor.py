"""Progress out, cancel in: the one thing that crosses every layer."""

from typing import Protocol


class Monitor(Protocol):
    """What a long job tells its front end. Any method may raise ``CancelledError``."""

    def stage(self, name: str, total: int) -> None:
        """Begin the stage ``name`` (adapt, map, vectorize, finish) of ``total`` steps."""

    def update(self, done: int) -> None:
        """Say that ``done`` steps of the current stage are finished."""

    def log(self, message: str) -> None:
        """Say something worth knowing, one line."""

    def warn(self, message: str) -> None:
        """Say something the user should check, one line; the run goes on correctly."""


class SilentMonitor:
    """A monitor that says nothing and never cancels."""

    def stage(self, name: str, total: int) -> None:
        """Ignore the stage."""

    def update(self, done: int) -> None:
        """Ignore the progress."""

    def log(self, message: str) -> None:
        """Ignore the message."""

    def warn(self, message: str) -> None:
        """Ignore the warning."""
