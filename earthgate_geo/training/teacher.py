"""The averaged teacher of DACS: pseudo-labels for target images, and what they weigh."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.recipe import Dacs
from earthgate_geo.training.loop import WeightAverage, fast_arithmetic
from earthgate_geo.training.selftrain import Alignment, PseudoLabels, class_mix, shares


class Teacher:
    """The average of the weights that train, in the place of the student while it labels.

    Source:
        DACS, arXiv:2007.08702, as Earth-Adapter's code, arXiv:2504.06220, simplifies it: in update
        ``t`` from 0 the past weighs ``min(1 - 1 / (t + 1), momentum)``. Ours: the other weightings
        than ``none``, which multiply the loss and not only its parts, and ``aligned``.

    Args:
        model: The student.
        parameters: What trains of it.
        dacs: Momentum, weighting, alignment.
        mean: Means a tensor over all processes.
    """

    def __init__(
        self,
        model: Segmenter,
        parameters: Mapping[str, nn.Parameter],
        dacs: Dacs,
        *,
        mean: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self._model, self._dacs, self._mean = model, dacs, mean
        self._average = WeightAverage(parameters, decay=dacs.momentum, young=(-1, 0))
        self._align: Alignment | None = None

    def follow(self) -> None:
        """Move the teacher towards the student, once a step."""
        self._average.update()

    @property
    def weight(self) -> float:
        """Weight of the loss on mixed images."""
        return self._dacs.weight

    @property
    def must_look(self) -> bool:
        """Whether ``look`` must come before the first label."""
        return self._dacs.aligned and self._align is None

    def look(self, images: Tensor, valid: Tensor) -> None:
        """Hold the class shares from now on to those seen in images (batch, channel, row, col)."""
        seen = torch.cat([self._probabilities(image) for image in torch.split(images, 1)])
        self._align = Alignment(self._mean(shares(seen, valid)))

    def label(self, images: Tensor, valid: Tensor) -> PseudoLabels:
        """Label images (batch, channel, row, col) where ``valid``; change nothing."""
        return self._labelled(self._probabilities(images), valid)

    def _labelled(self, probabilities: Tensor, valid: Tensor) -> PseudoLabels:
        if self._align is not None:
            probabilities = self._align(probabilities)
        certainty, labels = probabilities.max(1)
        return PseudoLabels(
            labels=labels.masked_fill(~valid, UNKNOWN), weights=self._weights(certainty, valid)
        )

    def mix(
        self, batch: Mapping[str, Any], rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensor, PseudoLabels]:
        """Paste half of the classes of source images onto labelled target images.

        A pasted pixel weighs 1. Source images are used again where the target has more.

        Args:
            batch: As ``data.stream.StepStream`` yields it.
            rngs: Choose the classes, one for each target image.
        """
        images, (donors, labels) = batch["target"], batch["source"]
        valid, probabilities = batch["target_valid"], self._probabilities(images)
        if self._align is not None:
            self._align.follow(probabilities, valid)
            self._align.running = self._mean(self._align.running)
        pseudo = self._labelled(probabilities, valid)
        mixed = []
        for index, rng in enumerate(rngs):
            one, donor = slice(index, index + 1), [index % len(donors)]
            thought = PseudoLabels(labels=pseudo.labels[one], weights=pseudo.weights[one])
            donation = (donors[donor], labels[donor])
            mixed.append(class_mix(images[one], thought, donation, weight=1.0, rng=rng))
        return torch.cat([image for image, _ in mixed]), PseudoLabels(
            labels=torch.cat([known.labels for _, known in mixed]),
            weights=torch.cat([known.weights for _, known in mixed]),
        )

    def state(self) -> dict[str, Any]:
        """Return all that labelling depends on."""
        align = self._align and {"wanted": self._align.wanted, "running": self._align.running}
        return {"average": self._average.state(), "align": align}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned."""
        self._average.load_state(state["average"])
        if state["align"] is not None:
            device = next(self._model.parameters()).device
            self._align = Alignment(state["align"]["wanted"].to(device))
            self._align.running = state["align"]["running"].to(device, copy=True)

    @torch.no_grad()
    def _probabilities(self, images: Tensor) -> Tensor:
        with self._average.applied(), fast_arithmetic(images.device):
            return torch.softmax(self._model(images).float(), 1)

    def _weights(self, certainty: Tensor, valid: Tensor) -> Tensor:
        if self._dacs.weighting == "certainty":
            return certainty
        if self._dacs.weighting == "share":
            sure = ((certainty >= self._dacs.threshold) & valid).sum((1, 2), keepdim=True)
            return (sure / valid.sum((1, 2), keepdim=True).clamp(min=1)).expand_as(certainty)
        return torch.ones_like(certainty)
