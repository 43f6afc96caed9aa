"""Confusion counts and the scores that follow from them: numpy only."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.errors import InputError

UNKNOWN = 255
"""Code of a pixel that nobody labelled or mapped; it is never counted."""

OTHER = 254
"""Truth code of a pixel known to be none of the classes that the labels name."""


class Confusion:
    """Counts of truth against map, and the scores that follow from them.

    Truth may say ``OTHER``: none of the classes that it names. There the map is wrong where it
    shows a named class and right where it shows any class that the labels do not name.

    Args:
        names: Class names by value, at most 254 of them.
        named: Values of the classes that the truth names; None means every class. It decides
            only what is right where truth is ``OTHER``.
    """

    def __init__(self, names: Sequence[str], *, named: Collection[int] | None = None) -> None:
        self.names = tuple(names)
        size = len(self.names)
        self.named = frozenset(range(size) if named is None else named)
        self.counts: NDArray[np.int64] = np.zeros((size, size), np.int64)
        """Pixels by (truth, prediction)."""
        self.on_other: NDArray[np.int64] = np.zeros(size, np.int64)
        """Pixels by prediction where truth is ``OTHER``."""

    def add(self, truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> None:
        """Count the pixels of two arrays of one shape; 255 in either is left out.

        Raises:
            InputError: The shapes differ, or an array holds a value that is no class.
        """
        if truth.shape != prediction.shape:
            raise InputError(
                found=f"truth of shape {truth.shape} and a map of shape {prediction.shape}",
                expected="one shape",
            )
        size = len(self.names)
        known = (truth != UNKNOWN) & (prediction != UNKNOWN)
        rows, cols = truth[known].astype(np.int64), prediction[known].astype(np.int64)
        other = rows == OTHER
        _check_classes(rows[~other], size)
        _check_classes(cols, size)
        rows[other] = size  # one more row below the classes
        table = np.bincount(rows * size + cols, minlength=(size + 1) * size)
        table = table.reshape(size + 1, size)
        self.counts += table[:size]
        self.on_other += table[size]

    @property
    def pixels(self) -> int:
        """Pixels counted so far."""
        return int(self.counts.sum() + self.on_other.sum())

    @property
    def truth_pixels(self) -> NDArray[np.int64]:
        """Pixels of each class in the truth."""
        totals: NDArray[np.int64] = self.counts.sum(axis=1)
        return totals

    @property
    def map_pixels(self) -> NDArray[np.int64]:
        """Pixels of each class in the map, where the truth is known."""
        totals: NDArray[np.int64] = self.counts.sum(axis=0) + self.on_other
        return totals

    def iou(self) -> NDArray[np.float64]:
        """Return intersection over union per class.

        NaN for a class that the truth does not name, or that is in neither truth nor map.
        """
        hits = self.counts.diagonal()
        return self._ratio(hits, self.truth_pixels + self.map_pixels - hits)

    def f1(self) -> NDArray[np.float64]:
        """Return the F1 score per class, NaN where ``iou`` is."""
        return self._ratio(2 * self.counts.diagonal(), self.truth_pixels + self.map_pixels)

    def mean_iou(self) -> float:
        """Return the mean IoU over the classes present in the truth, NaN if there is none."""
        return self._mean_over_truth(self.iou())

    def mean_f1(self) -> float:
        """Return the mean F1 over the classes present in the truth, NaN if there is none."""
        return self._mean_over_truth(self.f1())

    def accuracy(self) -> float:
        """Return the share of counted pixels that the map has right, NaN without pixels."""
        unnamed = [value for value in range(len(self.names)) if value not in self.named]
        right = self.counts.trace() + self.on_other[unnamed].sum()
        return float(right / self.pixels) if self.pixels else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return all scores for JSON, with None where a score is undefined."""
        columns = zip(
            self.names, self.iou(), self.f1(), self.truth_pixels, self.map_pixels, strict=True
        )
        return {
            "pixels": self.pixels,
            "accuracy": _defined(self.accuracy()),
            "mean_iou": _defined(self.mean_iou()),
            "mean_f1": _defined(self.mean_f1()),
            "classes": [
                {
                    "name": name,
                    "iou": _defined(iou),
                    "f1": _defined(f1),
                    "truth_pixels": int(in_truth),
                    "map_pixels": int(in_map),
                }
                for name, iou, f1, in_truth, in_map in columns
            ],
            "confusion": self.counts.tolist(),
            "on_other": self.on_other.tolist(),
        }

    def _ratio(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        scored = np.isin(np.arange(len(self.names)), list(self.named)) & (whole > 0)
        ratio: NDArray[np.float64] = np.full(len(self.names), np.nan)
        ratio[scored] = part[scored] / whole[scored]
        return ratio

    def _mean_over_truth(self, scores: NDArray[np.float64]) -> float:
        present = self.truth_pixels > 0
        return float(scores[present].mean()) if present.any() else math.nan


def _check_classes(values: NDArray[np.int64], size: int) -> None:
    wrong = values[(values < 0) | (values >= size)]
    if wrong.size:
        raise InputError(found=f"class value {wrong[0]}", expected=f"0..{size - 1}")


def _defined(score: float) -> float | None:
    return None if math.isnan(score) else float(score)
