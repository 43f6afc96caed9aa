"""How a model is trained: plain values, without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

from earthgate_geo.errors import InputError


class Policy(StrEnum):
    """What trains beside the head. Every policy starts from the same frozen network."""

    GATE = "gate"
    """The k modules of the highest Fisher scores, chosen anew at intervals: CrossEarth-Gate."""

    ALL = "all"
    """Every module of the three kinds."""

    SPATIAL = "spatial"
    """LoRA in every layer."""

    SEMANTIC = "semantic"
    """A bottleneck adapter in every layer."""

    FREQUENCY = "frequency"
    """Earth-Adapter in every layer."""

    REIN = "rein"
    """Rein's tokens in every layer."""

    HEAD_ONLY = "head-only"
    """Nothing but the head."""

    FULL = "full"
    """Every weight of the backbone, without modules."""

    RANDOM_K = "random-k"
    """Control: k random modules, drawn anew whenever the gate would choose."""

    FIXED_K = "fixed-k"
    """Control: the gate's first choice, kept."""

    GRAD_NORM_K = "grad-norm-k"
    """Control: the k modules of the largest mean gradient instead of Fisher information."""

    MATCHED_ALL = "matched-all"
    """Control: every module, made so narrow that all together are as large as k modules."""


Weighting = Literal["none", "certainty", "share"]
"""What a pseudo-labelled pixel weighs: 1, its certainty, or its image's share of sure pixels."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """When the gate chooses, among how many, and what it looks at."""

    interval: int = 100
    """Steps between two choices."""

    share: float = 0.25
    """Share of the modules that is open, 0..1."""

    images: int | None = None
    """Single images behind a choice; 2.5 % of those that train in between, if absent."""

    def __post_init__(self) -> None:
        if self.interval < 1 or (self.images is not None and self.images < 1):
            raise InputError(
                found=f"a selection every {self.interval} steps on {self.images} images",
                expected="1 or more of each",
            )
        if not 0 < self.share <= 1:
            raise InputError(
                found=f"{self.share:g} of the modules open", expected="a share in 0..1"
            )

    def images_for(self, batch: int) -> int:
        """Return how many images a choice looks at where a step trains on ``batch``."""
        return self.images or max(1, self.interval * batch // 40)


@dataclass(frozen=True, kw_only=True)
class Dacs:
    """Self-training on an unlabelled target beside the labelled source.

    Source:
        Tranheden et al. 2021, "DACS", arXiv:2007.08702, as Earth-Adapter's code simplifies it:
        no threshold, no weights, no colour changes. ``weighting`` and ``aligned`` are options
        that this simplification leaves out.
    """

    start: float = 0.2
    """Share of the steps, 0..1, before the first pseudo-label."""

    weight: float = 0.5
    """Weight of the loss on the mixed images."""

    momentum: float = 0.99
    """Decay of the averaged teacher."""

    weighting: Weighting = "none"
    """What a pseudo-labelled pixel weighs."""

    threshold: float = 0.968
    """Certainty, 0..1, from which ``share`` counts a pixel as sure."""

    aligned: bool = False
    """Whether the teacher's class shares are held to those of the model at ``start``."""

    def __post_init__(self) -> None:
        if not (0 <= self.start < 1 and 0 <= self.momentum < 1 and 0 <= self.threshold <= 1):
            raise InputError(
                found=f"a start of {self.start:g}, a momentum of {self.momentum:g} and a "
                f"threshold of {self.threshold:g}",
                expected="shares in 0..1",
            )
        if self.weighting not in ("none", "certainty", "share"):
            raise InputError(
                found=f"the weighting {self.weighting!r}", expected="none, certainty or share"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run but its data and its starting weights.

    Source:
        Defaults are those of Earth-Adapter's code, arXiv:2504.06220; the recipe of CrossEarth-Gate
        is not known. ``backbone_share`` follows a note on Earth-Adapter's text, not its code, and
        the defaults of ``selection`` are CrossEarth-Gate's as reported second hand.
    """

    steps: int = 20_000
    """Optimiser steps."""

    batch: int = 4
    """Labelled source images in a step."""

    target_batch: int = 0
    """Unlabelled target images in a step; 0 trains on the source alone."""

    crop_px: int = 512
    """Height and width of a training crop."""

    learning_rate: float = 1e-4
    """Rate of modules and head at the first step; it falls to zero by a power."""

    backbone_share: float = 0.1
    """The backbone's rate as a share of ``learning_rate``, where the backbone trains."""

    weight_decay: float = 0.05
    """Of AdamW; none on norms and embeddings of queries and levels."""

    power: float = 0.9
    """Of the falling rate: ``(1 - step / steps) ** power``."""

    augment: bool = True
    """Whether crops are resized by 0.5 to 2, mirrored and varied in colour."""

    seed: int = 0
    """Of everything random."""

    policy: Policy = Policy.GATE
    """What trains beside the head."""

    selection: Selection = field(default_factory=Selection)
    """When the gate chooses; other policies that choose follow it."""

    dacs: Dacs | None = None
    """Self-training on the target; None without a target."""

    checkpoint_every: int = 1000
    """Steps between two states to resume from."""

    def __post_init__(self) -> None:
        smallest = min(self.steps, self.batch, self.crop_px, self.checkpoint_every)
        if smallest < 1 or self.target_batch < 0:
            raise InputError(
                found=f"{self.steps} steps of {self.batch} + {self.target_batch} crops of "
                f"{self.crop_px} px, saved every {self.checkpoint_every}",
                expected="positive numbers",
            )
        if min(self.learning_rate, self.backbone_share) <= 0 or self.weight_decay < 0:
            raise InputError(
                found=f"a learning rate of {self.learning_rate:g}, a backbone share of "
                f"{self.backbone_share:g} and a weight decay of {self.weight_decay:g}",
                expected="positive numbers",
            )
        if (self.dacs is None) != (self.target_batch == 0):
            raise InputError(
                found=f"{self.target_batch} target images in a step and dacs {self.dacs}",
                expected="both or neither",
            )

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Recipe":
        """Read what ``to_json`` wrote.

        Raises:
            InputError: A value is out of range.
            TypeError: A key is unknown.
        """
        fields = dict(document)
        if "policy" in fields:
            fields["policy"] = Policy(fields["policy"])
        if "selection" in fields:
            fields["selection"] = Selection(**fields["selection"])
        if fields.get("dacs") is not None:
            fields["dacs"] = Dacs(**fields["dacs"])
        return cls(**fields)
