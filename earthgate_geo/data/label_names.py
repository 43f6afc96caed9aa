"""What the words and codes of a label file mean in a model's classes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from earthgate_geo.errors import ClassNameError
from earthgate_geo.metrics import OTHER
from earthgate_geo.raster.classes import ClassTable

_OTHER_NAME = "other"
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """What the user says about a label file."""

    field: str | None = None
    """Field of a vector file that holds the class."""

    label_class: str | None = None
    """Class of every shape of a vector file without such a field."""

    label_map: Mapping[str, str] | None = None
    """From the file's words or codes to class names or ``other``."""


@dataclass(frozen=True)
class LabelNames:
    """From the words and codes of a label file to class values.

    The label map translates; a word that it leaves out stands for itself. Without a map, whole
    numbers are the model's own values.
    """

    classes: ClassTable
    """The classes of the model."""

    label_map: Mapping[str, str] | None
    """From word or code to class name or ``other``."""

    def __post_init__(self) -> None:
        for word, name in (self.label_map or {}).items():
            if name not in (*self.classes.names, _OTHER_NAME):
                raise ClassNameError(
                    found=f"--label-map {word}={name}",
                    expected=f"one of {', '.join(self.classes.names)} or {_OTHER_NAME}",
                )

    def value(self, word: str) -> int | None:
        """Return the class value of a word or code, ``OTHER``, or None if it is unknown."""
        name = (self.label_map or {}).get(word, word)
        if name in self.classes.names:
            return self.classes.names.index(name)
        if name == _OTHER_NAME:
            return OTHER
        own = self.label_map is None and word.isdecimal() and int(word) < len(self.classes)
        return int(word) if own else None

    def values(self, words: Iterable[str], where: str) -> dict[str, int]:
        """Return the class value of every word.

        Args:
            words: Words or codes, each once.
            where: Who says them, for the sentence of an error.

        Raises:
            ClassNameError: The model lacks some; the sentence lists them and the ways on.
        """
        values = {word: self.value(word) for word in words}
        unknown = [word for word, value in values.items() if value is None]
        if unknown:
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise ClassNameError(
                found=f"{where} names classes that the model lacks: "
                f"{', '.join(unknown[:_SHOWN])}{more}",
                expected=f"one of {', '.join(self.classes.names)}",
                fix=f"Rename them, e.g. --label-map {unknown[0]}={self.classes.names[0]} "
                f"or {unknown[0]}={_OTHER_NAME}, or train a model that has them: earthgate train",
            )
        return {word: value for word, value in values.items() if value is not None}

    def named(self, values: Iterable[int]) -> tuple[int, ...]:
        """Return the classes that labels with these ``values`` name, the map's among them."""
        mapped = (self.value(word) for word in self.label_map or {})
        return tuple(sorted({v for v in (*values, *mapped) if v is not None and v != OTHER}))


def word(value: Any) -> str:
    """Return a field value or raster code as the user would write it: 1, not 1.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
