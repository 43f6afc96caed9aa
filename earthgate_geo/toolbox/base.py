"""Slots, side paths, and the toolbox that opens and closes them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from earthgate_geo.errors import InputError, ModelFileError


class Kind(StrEnum):
    """What a side path changes."""

    SPATIAL = "spatial"
    """Attention: a low-rank update of the query and value projections."""

    SEMANTIC = "semantic"
    """The MLP: a bottleneck adapter beside it."""

    FREQUENCY = "frequency"
    """The block's output: a mixture of adapters on frequency bands."""

    REIN = "rein"
    """The block's output: attention to learned tokens. A rival; the gate never chooses it."""

    IMAGE = "image"
    """With heights: what the stream of the image alone trains."""

    HEIGHT = "height"
    """With heights: what the stream of the heights alone trains."""

    FUSION = "fusion"
    """With heights: what the streams exchange."""


GATED = (Kind.SPATIAL, Kind.SEMANTIC, Kind.FREQUENCY)
"""The kinds among which the gate chooses."""

CROSSMODAL = (Kind.IMAGE, Kind.HEIGHT, Kind.FUSION)
"""The kinds among which it chooses in a network with heights, made by one mechanism."""


@dataclass(frozen=True, order=True)
class Slot:
    """A place in the backbone that holds one module; its string is "3.spatial"."""

    layer: int
    """Index of the transformer block, from 0."""

    kind: Kind
    """What the module there changes."""

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Slot":
        """Read "3.spatial".

        Raises:
            ValueError: There is no such slot.
        """
        layer, _, kind = text.partition(".")
        return cls(int(layer), Kind(kind))


@runtime_checkable
class SidePath(Protocol):
    """A trainable module beside a frozen block: what the toolbox asks of every kind.

    An unused side path is skipped by the forward pass. A silent one runs and changes nothing.
    """

    used: bool

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter that this module added, by its name within the module."""

    def silence(self) -> None:
        """Set the up-projections to zero: the side path then changes nothing, bit for bit."""

    def join(self, block: Any) -> None:
        """Hook into ``block``, a transformer block of timm's anatomy."""

    def leave(self, block: Any) -> None:
        """Undo ``join``, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class ToolboxConfig:
    """Which modules, and their sizes.

    Source:
        Widths of CrossEarth-Gate, arXiv:2511.20302, as reported second hand. Its ``rho`` is not
        known; ours is the default of Earth-Adapter, arXiv:2504.06220. Those of Rein are of its
        code, arXiv:2312.04265.
    """

    kinds: tuple[Kind, ...] = GATED
    """What is put into every layer; any order and their names will do, as JSON gives them."""

    rank: int = 64
    """Inner width of the spatial modules."""

    bottleneck: int = 64
    """Inner width of the semantic modules."""

    frequency_bottleneck: int = 32
    """Inner width of each of the three adapters of a frequency module."""

    rho: float = 0.3
    """Side of the low band as a share of the spectrum's, in 0..1."""

    rein_tokens: int = 100
    """Learned tokens of a Rein module."""

    rein_rank: int = 16
    """Rank of the matrix of these tokens."""

    mechanism: str = "mmadapter"
    """What makes modules of the image, the heights and their fusion: see ``crossmodal``."""

    adapter_ratio: float = 0.25
    """Inner width of ``mmadapter`` and ``separate`` as a share of a token's."""

    fusion_rank: int = 4
    """Inner width of ``mmlora``."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(Kind))
        if unknown or not self.kinds:
            raise InputError(
                found=f"modules of the kinds {list(map(str, self.kinds))}",
                expected=f"some of {', '.join(Kind)}",
            )
        # In the order of Kind: a frequency module takes what the others of its block made.
        object.__setattr__(self, "kinds", tuple(kind for kind in Kind if kind in self.kinds))
        narrowest = min(
            *(self.rank, self.bottleneck, self.frequency_bottleneck),
            *(self.rein_tokens - 1, self.rein_rank),  # the first token has no value
            self.fusion_rank,
        )
        if narrowest < 1:
            raise InputError(found=f"a module of width {narrowest}", expected="1 or more")
        if not 0 <= self.rho <= 1:
            raise InputError(found=f"rho {self.rho}", expected="a share in 0..1")
        if self.adapter_ratio <= 0:
            raise InputError(
                found=f"an adapter ratio of {self.adapter_ratio:g}", expected="a positive number"
            )


@dataclass(kw_only=True)
class Toolbox:
    """Every module in a backbone, and which of them are used and open.

    A module is *used* once it has been open: it stays in the forward pass from then on, frozen
    while closed. A module never used is silent and skipped. The modules belong to the backbone's
    tree, so they move, train and copy with it; copy a model together with its toolbox as
    ``copy.deepcopy((model, toolbox))``. One thread at a time may run such a model: the side paths
    pass tensors from one hook of a block to the next.
    """

    slots: dict[Slot, SidePath]
    """The module in each slot."""

    blocks: Sequence[nn.Module] = ()
    """The transformer blocks, by layer."""

    watches: Mapping[Kind, RemovableHandle] = field(default_factory=dict)
    """Tell modules of these kinds, before every pass, what they have to know of the images."""

    @property
    def used(self) -> frozenset[Slot]:
        """Slots in the forward pass; assignable, as in ``teacher.used = student.used``."""
        return frozenset(slot for slot, path in self.slots.items() if path.used)

    @used.setter
    def used(self, slots: Collection[Slot]) -> None:
        for slot, path in self.slots.items():
            path.used = slot in slots

    @property
    def opened(self) -> frozenset[Slot]:
        """Slots whose parameters train now."""
        return frozenset(
            slot
            for slot in self.slots
            if all(parameter.requires_grad for parameter in self.parameters(slot).values())
        )

    def parameters(self, slot: Slot) -> dict[str, nn.Parameter]:
        """Return the parameters of the module in ``slot`` by name."""
        return self.slots[slot].adapter_parameters()

    def open(self, slots: Collection[Slot]) -> None:
        """Train the modules in ``slots`` from now on, and no others.

        A closed parameter loses its gradient, so that no optimiser moves or decays it.

        Raises:
            InputError: A slot that this toolbox does not have.
        """
        self._check(slots)
        for slot, path in self.slots.items():
            path.used |= slot in slots
            for parameter in path.adapter_parameters().values():
                parameter.requires_grad_(slot in slots)
                if slot not in slots:
                    parameter.grad = None

    @contextmanager
    def all_open(self) -> Iterator[None]:
        """Open every module for a while, then restore which were used and which were open."""
        opened, used = self.opened, self.used
        self.open(self.slots)
        try:
            yield
        finally:
            self.open(opened)
            self.used = used

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the parameters of all used modules, as "{slot}.{parameter}"."""
        return {
            f"{slot}.{name}": parameter.detach().clone()
            for slot in sorted(self.used)
            for name, parameter in self.parameters(slot).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state: all other modules fall silent, and out of use unless they are open.

        Raises:
            ModelFileError: An entry is missing, foreign, or of another shape. Nothing was loaded.
        """
        named = {slot for slot in self.slots if any(key.startswith(f"{slot}.") for key in state)}
        own = {
            f"{slot}.{name}": parameter
            for slot in named
            for name, parameter in self.parameters(slot).items()
        }
        for key in sorted(own.keys() | state.keys()):
            _check_entry(key, found=state.get(key), expected=own.get(key))
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(state[key])
        for slot in self.slots.keys() - named:
            self.slots[slot].silence()
        self.used = named | self.opened

    def _check(self, slots: Collection[Slot]) -> None:
        foreign = sorted(slot for slot in slots if slot not in self.slots)
        if foreign:
            raise InputError(
                found=f"no module in the slot {foreign[0]}",
                expected=f"one of {len(self.slots)} slots",
            )


def drawn_linear(in_dim: int, out_dim: int, *, generator: torch.Generator) -> nn.Linear:
    """Make a linear layer with torch's own initial values, drawn from ``generator``."""
    layer = silent_linear(in_dim, out_dim)
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
    nn.init.uniform_(layer.bias, -(in_dim**-0.5), in_dim**-0.5, generator=generator)
    return layer


def silent_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """Make a linear layer of zeros; on the way torch draws nothing."""
    layer = nn.Linear(in_dim, out_dim, device="meta").to_empty(device="cpu")
    silence_linear(layer)
    return layer


@torch.no_grad()
def silence_linear(layer: nn.Linear) -> None:
    """Set weight and bias to zero."""
    layer.weight.zero_()
    layer.bias.zero_()


def _check_entry(key: str, *, found: Tensor | None, expected: Tensor | None) -> None:
    if found is None:
        raise ModelFileError(found=f"no entry {key} among the modules")
    if expected is None:
        raise ModelFileError(found=f"an entry {key} that fits no module of this backbone")
    if found.shape != expected.shape:
        raise ModelFileError(
            found=f"an entry {key} of shape {tuple(found.shape)}",
            expected=f"{tuple(expected.shape)}",
        )
