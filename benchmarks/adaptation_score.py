"""How good a map of a target is, and how well its confidence is calibrated."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.labels import LabelLayer
from earthgate_geo.data.sampling import TopDownSampler
from earthgate_geo.data.scenes import NetworkInput, SceneDataset
from earthgate_geo.metrics import OTHER, UNKNOWN, Confusion
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.training.calibration import expected_calibration_error
from earthgate_geo.training.loop import fast_arithmetic
from earthgate_geo.training.tiles import SceneView


@dataclass(frozen=True)
class Score:
    """How a network does, over the classes that the truth names and all others as one."""

    miou: float
    """Mean over the classes in the truth, per cent."""

    iou: dict[str, float]
    """By class, per cent."""

    ece: float
    """Expected calibration error in 15 bins, per cent."""


def score(network: Segmenter, view: SceneView, truth: LabelLayer) -> Score:
    """Map a target tile by tile, without overlap, and compare it with what the truth knows."""
    names = network.config.classes.names
    merged = Merged(truth, len(names))
    confusion = Confusion([names[value] for value in merged.named] + ["other"])
    certain, right = [], []
    data = SceneDataset(
        view.dataset.scene,
        bands=view.dataset.bands,
        transforms=NetworkInput(view.radiometry, view.plan.network),
    )
    for query in TopDownSampler(data, view.plan.tile, view.plan.tile):
        sample = data[query]
        known = truth.read(sample["window"])
        known[~sample["valid"].numpy()] = UNKNOWN
        seen = (wanted := merged.codes[known]) != UNKNOWN
        if not seen.any():
            continue
        found, certainty = merged.mapped(_logits(network, sample["image"], known.shape))
        confusion.add(wanted, found)
        certain.append(certainty[seen])
        right.append(found[seen] == wanted[seen])
    error = expected_calibration_error(*map(_joined, (certain, right)))
    iou = dict(zip(confusion.names, 100 * confusion.iou(), strict=True))
    known = {name: float(value) for name, value in iou.items() if value == value}
    return Score(100 * confusion.mean_iou(), known, 100 * error)


class Merged:
    """The classes that a truth names, and all others as one more."""

    def __init__(self, truth: LabelLayer, classes: int) -> None:
        self.named = sorted(truth.named)
        rest, whole = len(self.named), len(self.named) == classes
        self.codes = np.full(256, UNKNOWN, np.uint8)
        """Merged class by class value."""
        self.codes[:classes] = rest
        self.codes[self.named] = range(rest)
        self.codes[OTHER] = UNKNOWN if whole else rest
        self._classes = classes

    def mapped(self, logits: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the merged class of the likeliest class, and the merged class's probability."""
        found = self.codes[logits.argmax(0).numpy()]
        shares = torch.softmax(logits, 0).numpy()
        belongs = self.codes[: self._classes, None, None] == found
        return found, (shares * belongs).sum(0)


def _logits(network: Segmenter, image: Tensor, shape: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(), fast_arithmetic(torch.device("cpu")):
        logits = network(image[None]).float()
    if logits.shape[-2:] != shape:
        logits = functional.interpolate(logits, shape, mode="bilinear")
    return logits[0]


def _joined(parts: list[NDArray[np.generic]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
