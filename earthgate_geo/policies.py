"""What trains: the policies over one toolbox, one option apart."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earthgate_geo.errors import InputError
from earthgate_geo.gate import Scores, choose, fisher_scores, gradient_norm_scores
from earthgate_geo.models.backbone import freeze
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.recipe import Policy, Selection
from earthgate_geo.toolbox.attach import Attachable, attach, detach
from earthgate_geo.toolbox.base import GATED, Kind, Slot, Toolbox, ToolboxConfig
from earthgate_geo.toolbox.crossmodal import mechanism

_KINDS: Mapping[Policy, tuple[Kind, ...]] = {
    Policy.SPATIAL: (Kind.SPATIAL,),
    Policy.SEMANTIC: (Kind.SEMANTIC,),
    Policy.FREQUENCY: (Kind.FREQUENCY,),
    Policy.REIN: (Kind.REIN,),
    Policy.HEAD_ONLY: (),
    Policy.FULL: (),
}
_CHOOSING = (Policy.GATE, Policy.RANDOM_K, Policy.FIXED_K, Policy.GRAD_NORM_K)


class Tuner:
    """Opens for training what a policy trains, and chooses modules anew when it is due.

    Freezes the model, attaches the modules that the policy needs and opens those that are always
    open. The head trains under every policy. While a policy that chooses has not chosen yet,
    nothing else does.

    In a network with heights a policy that chooses does so among the modules of the image, the
    heights and their fusion that ``sizes.mechanism`` makes, and ``all`` opens these. That is our
    extension of CrossEarth-Gate to MFNet. Heights start without influence on the classes, so at
    the first choice the modules of their stream score zero.

    Args:
        model: Changed in place; it carries no toolbox yet.
        policy: What trains.
        selection: When and how many modules a policy that chooses opens.
        seed: Of the modules' initial values and of random choices.
        sizes: Of the modules; the policy decides on their kinds.
        batch: Images in a training step, on which the default number of ``images`` depends.

    Raises:
        InputError: The backbone cannot carry modules, no module is narrow enough for
            ``matched-all``, or the policy needs heights and the model has none.
    """

    policy: Policy
    """What trains."""

    toolbox: Toolbox | None
    """All modules; None for ``full`` and ``head-only``."""

    sizes: ToolboxConfig | None
    """What the toolbox was attached with; None where there is none."""

    parameters: dict[str, nn.Parameter]
    """All that may ever train: ``{slot}.{name}``, ``head.{name}``, ``backbone.{name}``."""

    scores: Scores
    """Of the last choice; empty before it, and where nothing is scored."""

    history: list[tuple[Slot, ...]]
    """The slots of every choice, best first."""

    combine: Callable[[Tensor], Tensor] | None
    """Joins the raw scores of several processes, (slot,) in float64, so that all choose alike."""

    def __init__(
        self,
        model: Segmenter,
        policy: Policy,
        *,
        selection: Selection,
        seed: int,
        sizes: ToolboxConfig | None = None,
        batch: int = 4,
    ) -> None:
        self.policy, self.toolbox, self.sizes = policy, None, None
        self.scores, self.history, self.combine = Scores({}), [], None
        self._selection, self._seed, self._batch = selection, seed, batch
        freeze(model)
        model.head.requires_grad_(True)
        self.parameters = {}
        wanted = _wanted(policy, sizes or ToolboxConfig(), heights=model.config.heights)
        if wanted is not None:
            self._attach(model.backbone, wanted)
        elif policy is Policy.FULL:
            model.backbone.requires_grad_(True)
            self.parameters = {f"backbone.{k}": p for k, p in model.backbone.named_parameters()}
        self.parameters |= {f"head.{k}": p for k, p in model.head.named_parameters()}

    def _attach(self, backbone: Attachable, sizes: ToolboxConfig) -> None:
        if self.policy is Policy.MATCHED_ALL:
            sizes = narrowed(backbone, sizes, share=self._selection.share)
        generator = torch.Generator().manual_seed(self._seed)
        toolbox = attach(backbone, sizes, generator=generator)
        self.toolbox, self.sizes = toolbox, sizes
        self.parameters = {
            f"{slot}.{name}": parameter
            for slot in toolbox.slots
            for name, parameter in toolbox.parameters(slot).items()
        }
        if self.policy not in _CHOOSING:
            toolbox.open(toolbox.slots)

    @property
    def images(self) -> int:
        """Number of single images that ``select`` needs the losses of."""
        if self.policy not in _CHOOSING or self.policy is Policy.RANDOM_K:
            return 0
        return self._selection.images_for(self._batch)

    @property
    def trained_parameters(self) -> int:
        """Number of parameters that trained so far beside the head: those of used modules."""
        if self.policy is Policy.FULL:
            return sum(p.numel() for k, p in self.parameters.items() if k.startswith("backbone."))
        if self.toolbox is None:
            return 0
        return _count(self.toolbox, self.toolbox.used)

    def due(self, step: int) -> bool:
        """Say whether modules are to be chosen before ``step``, counted from 0."""
        if self.policy is Policy.FIXED_K:
            return step == 0
        return self.policy in _CHOOSING and step % self._selection.interval == 0

    def select(self, losses: Sequence[Callable[[], Tensor]]) -> None:
        """Choose modules, open them and close the others.

        Args:
            losses: Each computes the loss of one of ``images`` single images.

        Raises:
            InputError: The policy does not choose, or there are no losses where it needs some.
            EarthgateError: A gradient is not finite.
        """
        if self.toolbox is None or self.policy not in _CHOOSING:
            raise InputError(
                found=f"a choice of modules under the policy {self.policy}",
                expected=f"one of {', '.join(_CHOOSING)}",
            )
        k = max(1, round(self._selection.share * len(self.toolbox.slots)))
        if self.policy is Policy.RANDOM_K:
            slots = sorted(self.toolbox.slots)
            rng = np.random.default_rng((self._seed, len(self.history)))
            chosen = tuple(slots[i] for i in rng.permutation(len(slots))[:k])
        else:
            self.scores = self._score(self.toolbox, losses)
            chosen = choose(self.scores, k)
        self.toolbox.open(chosen)
        self.history.append(chosen)

    def _score(self, toolbox: Toolbox, losses: Sequence[Callable[[], Tensor]]) -> Scores:
        by_gradient = self.policy is Policy.GRAD_NORM_K
        scores = (gradient_norm_scores if by_gradient else fisher_scores)(toolbox, losses)
        if self.combine is None:
            return scores
        joined = self.combine(torch.tensor(list(scores.raw.values()), dtype=torch.float64))
        return Scores(dict(zip(scores.raw, joined.tolist(), strict=True)))

    def state(self) -> dict[str, Any]:
        """Return all that is not in the model's own state, as JSON values."""
        toolbox = self.toolbox or Toolbox(slots={})
        return {
            "used": list(map(str, sorted(toolbox.used))),
            "opened": list(map(str, sorted(toolbox.opened))),
            "history": [list(map(str, slots)) for slots in self.history],
            "scores": {str(slot): score for slot, score in self.scores.raw.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned, from a tuner of the same policy and model.

        Raises:
            InputError: It names a slot that this toolbox does not have.
        """
        if self.toolbox is not None:
            self.toolbox.open(tuple(map(Slot.parse, state["opened"])))
            self.toolbox.used = tuple(map(Slot.parse, state["used"]))
        self.history = [tuple(map(Slot.parse, slots)) for slots in state["history"]]
        self.scores = Scores({Slot.parse(k): score for k, score in state["scores"].items()})


def _wanted(policy: Policy, sizes: ToolboxConfig, *, heights: bool) -> ToolboxConfig | None:
    """Return ``sizes`` for the kinds that a policy trains; None where it needs no modules."""
    if policy.needs_heights:
        return replace(sizes, kinds=mechanism(policy).kinds, mechanism=policy.value)
    gated = mechanism(sizes.mechanism).kinds if heights else GATED
    kinds = _KINDS.get(policy, gated)
    return replace(sizes, kinds=kinds) if kinds else None


def narrowed(backbone: Attachable, sizes: ToolboxConfig, *, share: float) -> ToolboxConfig:
    """Return the widest proportional sizes with at most ``share`` of the parameters of ``sizes``.

    Raises:
        InputError: Modules of width 1 have more.
    """

    def scaled(width: int) -> ToolboxConfig:
        return replace(
            sizes,
            rank=max(1, sizes.rank * width // widest),
            bottleneck=max(1, sizes.bottleneck * width // widest),
            frequency_bottleneck=max(1, sizes.frequency_bottleneck * width // widest),
            adapter_ratio=sizes.adapter_ratio * width / widest,
            fusion_rank=max(1, sizes.fusion_rank * width // widest),
        )

    def parameters(width: int) -> int:
        toolbox = attach(backbone, scaled(width))
        counted = _count(toolbox, toolbox.slots)
        detach(toolbox)
        return counted

    widest = max(sizes.rank, sizes.bottleneck, sizes.frequency_bottleneck)
    full = parameters(widest)
    width = bisect_right(range(1, widest + 1), share * full, key=parameters)
    if width == 0:
        raise InputError(
            found=f"{parameters(1)} parameters in modules of width 1",
            expected=f"at most {int(share * full)}, a share of {share:g} of {full}",
            fix="Choose wider modules or a larger share",
        )
    return scaled(width)


def _count(toolbox: Toolbox, slots: Collection[Slot]) -> int:
    return sum(p.numel() for slot in slots for p in toolbox.parameters(slot).values())
