"""What the pixels of a label file mean: class indices by code or by colour."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.errors import DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN

Code = int | tuple[int, int, int]
"""A value of a one-band label file, or a red, green and blue of a coloured one."""

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class LabelCodes:
    """From the codes or colours of label files to class indices."""

    values: Mapping[Code, int]
    """Class index, ``OTHER`` or ``UNKNOWN`` by code, or by (red, green, blue); not both kinds."""

    rest: int | None = None
    """What every code means that ``values`` leaves out; None refuses such a code."""

    def __post_init__(self) -> None:
        if len({isinstance(code, tuple) for code in self.values}) != 1:
            raise InputError(
                found=f"label codes: {_some(self.values) or 'none'}",
                expected="at least one, either all numbers or all (red, green, blue)",
            )

    @classmethod
    def of_indices(cls, classes: int) -> "LabelCodes":
        """Return the codes of labels that are class indices, ``OTHER`` and ``UNKNOWN`` already."""
        return cls(values={value: value for value in (*range(classes), OTHER, UNKNOWN)})

    def read(self, raw: NDArray[Any], path: Path) -> NDArray[np.uint8]:
        """Turn the pixels of a label file into class indices.

        Args:
            raw: (band, row, col) as in the file. Codes stand in one band or in three equal
                ones, colours in the first three.
            path: The file, for the sentence of an error.

        Returns:
            Class indices (row, col), with ``OTHER`` and ``UNKNOWN``.

        Raises:
            DataError: The bands are not those of the table, or the labels hold a code that means
                nothing and ``rest`` is None.
        """
        colored = isinstance(next(iter(self.values)), tuple)
        codes = _colors(raw, path) if colored else _numbers(raw, path)
        labels, known = self._look_up(codes)
        if not known.all():
            if self.rest is None:
                pixel = raw[: 3 if colored else 1, ~known][:, 0].tolist()
                raise DataError(
                    found=f"{path} holds the label {tuple(pixel) if colored else pixel[0]}",
                    expected=f"one of {_some(self.values)}",
                )
            labels[~known] = self.rest
        return labels

    def _look_up(self, codes: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the class indices of codes, and True where a code is in the table."""
        if codes.dtype == np.uint8:  # five times faster than searching for every pixel
            labels, known = self._look_up(np.arange(256))
            return labels[codes], known[codes]
        table = sorted(
            (_packed(*np.atleast_1d(code)), value) for code, value in self.values.items()
        )
        keys, values = (
            np.array([key for key, _ in table]),
            np.array([v for _, v in table], np.uint8),
        )
        spots = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
        return values[spots], keys[spots] == codes


def _packed(red: Any, green: Any = 0, blue: Any = 0) -> Any:
    """Return a colour as one number that a code of one band keeps as it is."""
    return red + green * 256 + blue * 65536


def _colors(raw: NDArray[Any], path: Path) -> NDArray[Any]:
    if len(raw) < 3:
        raise DataError(
            found=f"the labels {path} have {len(raw)} band",
            expected="red, green and blue",
            fix="Give its codes instead, or turn a palette into colours with gdal_translate "
            "-expand rgb",
        )
    packed: NDArray[Any] = _packed(*raw[:3].astype(np.int64))
    return packed


def _numbers(raw: NDArray[Any], path: Path) -> NDArray[Any]:
    if len(raw) >= 3 and (raw[1:3] != raw[0]).any():
        raise DataError(
            found=f"the labels {path} are coloured",
            expected="one band of class codes",
            fix="Write the class of every pixel into a one-band file, e.g. a PNG",
        )
    codes: NDArray[Any] = raw[0]
    return codes


def _some(codes: Mapping[Code, int]) -> str:
    more = f" and {len(codes) - _SHOWN} more" if len(codes) > _SHOWN else ""
    return ", ".join(map(str, list(codes)[:_SHOWN])) + more
