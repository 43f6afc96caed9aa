"""How a model is trained: plain values, without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from earthgate_geo.errors import InputError


class Policy(StrEnum):
    """What trains beside the head. Every policy starts from the same frozen network."""

    GATE = "gate"
    """The k modules of the highest Fisher scores, chosen anew at intervals: CrossEarth-Gate."""

    ALL = "all"
    """Every module of the kinds that the gate chooses among."""

    SPATIAL = "spatial"
    """LoRA in every layer."""

    SEMANTIC = "semantic"
    """A bottleneck adapter in every layer."""

    FREQUENCY = "frequency"
    """Earth-Adapter in every layer."""

    REIN = "rein"
    """Rein's tokens in every layer."""

    MMADAPTER = "mmadapter"
    """With heights: adapters of both streams in every layer, and their exchange. MFNet."""

    MMLORA = "mmlora"
    """With heights: LoRA of both streams in every layer, and their exchange. MFNet."""

    SEPARATE = "separate"
    """Control with heights: adapters of both streams in every layer, without exchange."""

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

    @property
    def needs_heights(self) -> bool:
        """Whether only networks with heights can be trained so."""
        return self in (Policy.MMADAPTER, Policy.MMLORA, Policy.SEPARATE)


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
class Styles:
    """Training now and then on images whose style is mixed with a simulated one.

    Source:
        CrossEarth, arXiv:2410.22629, Earth-Style Injection: ``strength`` as in its code, the others
        as in a training build that its authors once published.
    """

    probability: float = 0.1
    """Share of the steps, 0..1, that train on styled images."""

    strength: float = 0.1
    """Weight of the simulated style, 0..1; the image's own weighs the rest."""

    styled: float = 0.7
    """Share of the blocks, 0..1, that are styled; the others stay as they are."""

    block_px: int = 64
    """Height and width of a block."""

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (self.probability, self.strength, self.styled)):
            raise InputError(
                found=f"styles with a probability of {self.probability:g}, a strength of "
                f"{self.strength:g} and {self.styled:g} of the blocks",
                expected="shares in 0..1",
            )
        if self.block_px < 1:
            raise InputError(found=f"styles in blocks of {self.block_px} px", expected="1 or more")


@dataclass(frozen=True, kw_only=True)
class MultiTask:
    """Learning to reconstruct hidden parts of an image beside its classes.

    Source:
        CrossEarth, arXiv:2410.22629: numbers of a training build that its authors once published.
        ``extractor`` is our reading of a figure; the networks that they released have none.
    """

    masked: float = 0.1
    """Share of the blocks, 0..1, that are hidden."""

    block_px: int = 64
    """Height and width of a block."""

    side_px: int = 512
    """Height and width at which reconstructions are compared; the crop's if that is smaller."""

    extractor: bool = False
    """Whether a convolutional extractor feeds the feature maps while training."""

    def __post_init__(self) -> None:
        if not 0 <= self.masked <= 1:
            raise InputError(
                found=f"{self.masked:g} of the blocks hidden", expected="a share in 0..1"
            )
        if min(self.block_px, self.side_px) < 1:
            raise InputError(
                found=f"hidden blocks of {self.block_px} px, compared at {self.side_px} px",
                expected="1 or more of each",
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

    optimiser: Literal["adamw", "sgd"] = "adamw"
    """How weights follow the gradient; ``sgd`` has a momentum of 0.9."""

    weight_decay: float = 0.05
    """Of the optimiser; none on norms and embeddings of queries and levels."""

    power: float = 0.9
    """Of the falling rate: ``(1 - step / steps) ** power``, counted from the end of ``warmup``."""

    drops: tuple[float, ...] = ()
    """Shares of the steps, 0..1, from each of which on the rate is a tenth of what it was before;
    where there are some, it does not fall by a power."""

    warmup: int = 0
    """Steps in which the rate rises evenly before it falls."""

    planned: int | None = None
    """Step at which the rate would reach zero, where training stops earlier; None for ``steps``."""

    augment: bool = True
    """Whether crops are resized by 0.5 to 2, mirrored and varied in colour."""

    mirrored: bool = False
    """Whether crops that are not varied so are mirrored along both axes, each half of the time."""

    seed: int = 0
    """Of everything random."""

    policy: Policy = Policy.GATE
    """What trains beside the head."""

    selection: Selection = field(default_factory=Selection)
    """When the gate chooses; other policies that choose follow it."""

    dacs: Dacs | None = None
    """Self-training on the target; None without a target."""

    styles: Styles | None = None
    """Steps on styled images; None for none."""

    multitask: MultiTask | None = None
    """Reconstruction of hidden blocks beside the classes; None without."""

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
        if not (0 <= self.warmup < self._end and self.steps <= self._end):
            raise InputError(
                found=f"{self.steps} of {self._end} planned steps, {self.warmup} to warm up",
                expected="no more steps than planned, and fewer to warm up",
            )
        if self.optimiser not in ("adamw", "sgd") or not all(0 < drop < 1 for drop in self.drops):
            raise InputError(
                found=f"the optimiser {self.optimiser!r}, whose rate drops at {self.drops}",
                expected="adamw or sgd, and shares of the steps in 0..1",
            )
        if (self.dacs is None) != (self.target_batch == 0):
            raise InputError(
                found=f"{self.target_batch} target images in a step and dacs {self.dacs}",
                expected="both or neither",
            )

    def rate(self, step: int) -> float:
        """Return the share of the learning rate, 0..1, that ``step``, counted from 0, trains at."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        fallen = min((step - self.warmup) / (self._end - self.warmup), 1.0)
        if self.drops:
            return float(0.1 ** sum(fallen >= drop for drop in self.drops))
        return float((1 - fallen) ** self.power)

    @property
    def _end(self) -> int:
        return self.steps if self.planned is None else self.planned

    def over(self, steps: int) -> "Recipe":
        """Return the recipe over another number of steps: the rate takes the same course.

        Raises:
            InputError: There are no steps.
        """
        warmup = self.warmup * steps // self.steps
        planned = None if self.planned is None else -(-self.planned * steps // self.steps)
        return replace(self, steps=steps, warmup=warmup, planned=planned)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return asdict(self) | {"drops": list(self.drops)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Recipe":
        """Read what ``to_json`` wrote.

        Raises:
            InputError: A value is out of range.
            TypeError: A key is unknown.
        """
        fields = dict(document)
        fields["drops"] = tuple(fields.get("drops", ()))
        if "policy" in fields:
            fields["policy"] = Policy(fields["policy"])
        if "selection" in fields:
            fields["selection"] = Selection(**fields["selection"])
        if fields.get("dacs") is not None:
            fields["dacs"] = Dacs(**fields["dacs"])
        if fields.get("styles") is not None:
            fields["styles"] = Styles(**fields["styles"])
        if fields.get("multitask") is not None:
            fields["multitask"] = MultiTask(**fields["multitask"])
        return cls(**fields)


CROSSEARTH_512 = Recipe(
    steps=30_000,
    planned=40_000,
    policy=Policy.REIN,
    styles=Styles(),
    multitask=MultiTask(),
)
"""CrossEarth's numbers for images of 512 pixels.

Source:
    CrossEarth, arXiv:2410.22629: the configuration ``512x512_bs1x4`` of its code; the batch is
    what that name says, one image on each of four devices. Beside it a deleted training build:
    styles and multi-task. We differ in the toolbox's Rein, whose scale starts at 0 and which makes
    no queries for Mask2Former, and in the crops, of which ``data.augment`` tells.
"""

CROSSEARTH_1024 = replace(CROSSEARTH_512, crop_px=1024, learning_rate=6e-5, warmup=10_000)
"""CrossEarth's numbers for images of 1024 pixels: the same, warmed up and at a lower rate."""


MFNET = Recipe(
    steps=50_000,
    batch=10,
    crop_px=256,
    learning_rate=0.01,
    optimiser="sgd",
    weight_decay=5e-4,
    drops=(0.5, 0.7, 0.9),
    augment=False,
    mirrored=True,
)
"""MFNet's numbers for images with heights; its modules are the policies ``mmadapter``, ``mmlora``.

Source:
    MFNet, arXiv:2410.11160, section IV-B, and its code: 50 epochs of 1000 steps, the rate a tenth
    after epochs 25, 35 and 45. Ours: norms do not decay.
"""


def published(name: str) -> Recipe:
    """Return a published recipe: ``crossearth-512`` or ``crossearth-1024``.

    Raises:
        InputError: There is no such recipe.
    """
    recipes = {"crossearth-512": CROSSEARTH_512, "crossearth-1024": CROSSEARTH_1024}
    if name not in recipes:
        raise InputError(found=f"the recipe {name!r}", expected=" or ".join(recipes))
    return recipes[name]
