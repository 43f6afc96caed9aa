"""Every exception that earthgate raises on purpose.

Each is one sentence made of three facts: what was found, what was expected, what to do.
"""

from functools import partial
from typing import Any


class EarthgateError(Exception):
    """Base of all deliberate errors.

    Args:
        found: What the program met, with the value in question.
        expected: What would have been right, without a leading "expected".
        fix: What the user can do next.
    """

    exit_code = 1

    def __init__(self, *, found: str, expected: str = "", fix: str = "") -> None:
        self.found = found
        self.expected = expected
        self.fix = fix
        sentence = f"{found}; expected {expected}" if expected else found
        super().__init__(f"{sentence}. {fix}." if fix else f"{sentence}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the facts: a worker's error comes back as it is."""
        facts = {"found": self.found, "expected": self.expected, "fix": self.fix}
        return partial(type(self), **facts), ()


class InputError(EarthgateError, ValueError):
    """The call can be corrected: an option, a path, a combination."""

    exit_code = 2


class BandError(InputError):
    """The bands of a scene cannot be given the meaning a model needs."""


class OutsideAreaError(InputError):
    """A scene lies outside the area that is to be mapped."""


class ClassNameError(InputError):
    """Labels name a class that the model does not have."""


class OutputError(InputError):
    """A destination cannot be written: it exists, is locked, or is the input."""


class DataError(EarthgateError):
    """A readable file whose content cannot be used."""

    exit_code = 2


class MissingCrsError(DataError):
    """A raster without a coordinate reference system."""


class LabelsElsewhereError(DataError):
    """Labels of which none lies in the scene."""


class HeightsElsewhereError(DataError):
    """A surface model without a height in the scene."""


class EmptySceneError(DataError):
    """A scene without a single valid pixel."""


class ModelFileError(EarthgateError):
    """A model file that is foreign, damaged, too new, or does not fit."""

    exit_code = 2


class StorageError(EarthgateError, OSError):
    """Writing failed in the middle: a full disk, a quota, a lost mount."""


class EngineError(EarthgateError):
    """Workers of a cluster fail at a part of a map: they die, or see other files."""


class LostEngineError(EngineError):
    """A cluster that cannot map anything: its scheduler is lost or does not answer."""


class CancelledError(EarthgateError):
    """The user stopped the run: not a failure, but never success either."""

    exit_code = 130

    def __init__(
        self,
        *,
        found: str = "interrupted",
        expected: str = "",
        fix: str = "Run the same command again to start over",
    ) -> None:
        super().__init__(found=found, expected=expected, fix=fix)


class MissingDependencyError(EarthgateError, ImportError):
    """An optional library that is not installed; the sentence names the extra that brings it."""


class EarthgateWarning(UserWarning):
    """Something the user may want to know while the run goes on correctly."""
