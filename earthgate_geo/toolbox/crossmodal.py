"""Modules of two streams: what trains for the image, for the heights, and between them.

Both streams pass a block as one batch, the images first (``models.fusion.TwoStreams``).
"""

from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from earthgate_geo.errors import InputError
from earthgate_geo.toolbox.base import (
    CROSSMODAL,
    Kind,
    SidePath,
    ToolboxConfig,
    drawn_linear,
    silence_linear,
    silent_linear,
)
from earthgate_geo.toolbox.spatial import LowRank, QueryValuePath

_INITIAL_SHARE = 0.5


class HeightPresence:
    """Which images of the batch that is in the network now have any height."""

    def __init__(self) -> None:
        self._present = torch.ones(1)

    def see(self, _backbone: Any, args: tuple[Tensor]) -> None:
        """Look at the last channel of images on their way into the backbone: 1 for a height."""
        self._present = args[0][:, -1].detach().amax(dim=(1, 2))

    def keep(self, update: Tensor) -> Tensor:
        """Return an update (b, ...) of the images, zero where an image has no height.

        In windows of attention ``b`` is a multiple of the number of images.
        """
        windows = len(update) // len(self._present)
        present = self._present[:, None].expand(-1, windows).to(update.dtype)
        return update * present.reshape(-1, *(1,) * (update.ndim - 1))


class StreamPath(nn.Module):
    """A side path that changes what parts of a block give, in one stream or in both.

    A subclass says which parts, and how they change.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False
        self._handles: list[RemovableHandle] = []

    def parts(self, block: Any) -> list[nn.Module]:
        """Return the parts of ``block`` whose outputs change."""
        raise NotImplementedError

    def updates(self, index: int, taken: Tensor, given: Tensor) -> tuple[Tensor | None, ...]:
        """Return what is to be added to the output of a part: for the images, for the heights.

        Args:
            index: Of the part, in the order of ``parts``.
            taken: Its input, (2 b, ..., in): the images, then the heights.
            given: Its output, (2 b, ..., out).

        Returns:
            Two tensors (b, ..., out), None for nothing.
        """
        raise NotImplementedError

    def silence(self) -> None:
        """Set the up-projections to zero."""
        raise NotImplementedError

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters."""
        return dict(self.named_parameters())

    def join(self, block: Any) -> None:
        """Add to the outputs of the parts of ``block``."""
        self._handles = [
            part.register_forward_hook(partial(self._add, index))
            for index, part in enumerate(self.parts(block))
        ]

    def leave(self, _block: Any) -> None:
        """Unhook."""
        for handle in self._handles:
            handle.remove()

    def _add(
        self, index: int, _part: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if not self.used:
            return None
        updates = self.updates(index, args[0], output)
        halves = zip(output.chunk(2), updates, strict=True)
        # Under autocast an update may be of another type than the stream, which has to keep its.
        return torch.cat([x if u is None else x + u.to(x.dtype) for x, u in halves])


class Place:
    """Where a mechanism is to make modules, and what they share.

    Args:
        block: The transformer block, with ``attn``, ``norm2`` and ``mlp``.
        dim: Width of a token.
        presence: Says which images have heights, when the network runs.
        config: Sizes of the modules.
        generator: Draws their initial values.
    """

    def __init__(
        self,
        block: Any,
        *,
        dim: int,
        presence: HeightPresence,
        config: ToolboxConfig,
        generator: torch.Generator,
    ) -> None:
        self.block, self.dim, self.presence = block, dim, presence
        self.config, self.generator = config, generator


class Mechanism(Protocol):
    """Makes the modules by which two streams are tuned: one class for each way to do so.

    A new module changes nothing. What the images take from the heights has to pass
    ``HeightPresence.keep``, so that an image without heights is mapped by itself.
    """

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Which of ``image``, ``height`` and ``fusion`` there are."""

    def make(self, kind: Kind, place: Place) -> SidePath:
        """Make the module of one of these kinds."""


class AdapterPath(StreamPath):
    """Bottleneck adapters of one stream: on the attention's output, and on request on the MLP's.

    Computes ``z + W_up GELU(W_down z)`` where ``z`` is what the attention gives; beside the MLP,
    ``W_up GELU(W_down t)`` is added for its input ``t``.

    Source:
        MFNet, arXiv:2410.11160, MMAdapter as its code has it: GELU, and no norm but the block's;
        the paper's equation has ReLU behind a norm of its own. ``W_up`` starts at zero, there at
        torch's initial values. A LayerScale, which SAM has not, comes behind it.

    Args:
        place: Where.
        stream: 0 for the images, 1 for the heights.
        with_mlp: Whether there is one beside the MLP too.
    """

    def __init__(self, place: Place, *, stream: int, with_mlp: bool = False) -> None:
        super().__init__()
        self._stream = stream
        self.adapters = nn.ModuleList(_Adapter(place) for _ in range(1 + with_mlp))

    def parts(self, block: Any) -> list[nn.Module]:
        """Return the attention and perhaps the MLP."""
        return [block.attn, block.mlp][: len(self.adapters)]

    def updates(self, index: int, taken: Tensor, given: Tensor) -> tuple[Tensor | None, ...]:
        """Adapt the attention's output, the MLP's input."""
        seen = (given, taken)[index].chunk(2)[self._stream]
        update: Tensor = self.adapters[index](seen)
        return (update, None) if self._stream == 0 else (None, update)

    def silence(self) -> None:
        """Set every ``W_up`` and its bias to zero."""
        for adapter in self.adapters:
            silence_linear(cast("_Adapter", adapter).up)


class _Exchange(nn.Module):
    """What two streams take from updates of their own and of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.image_share = nn.Parameter(torch.tensor(_INITIAL_SHARE))
        self.height_share = nn.Parameter(torch.tensor(_INITIAL_SHARE))

    def forward(
        self, of_image: Tensor, of_height: Tensor, presence: HeightPresence
    ) -> tuple[Tensor, Tensor]:
        to_image = presence.keep((1 - self.image_share) * of_height)
        return (
            self.image_share * of_image + to_image,
            self.height_share * of_height + (1 - self.height_share) * of_image,
        )


class MLPExchangePath(StreamPath):
    """Bottleneck adapters beside the MLP that either stream takes its share of.

    Computes ``l a_x + (1 - l) a_y`` for the images, with ``a = W_up GELU(W_down t)`` of either
    stream's input ``t``, and the same the other way round for the heights. Each stream has a
    learned ``l`` of its own, which starts at 0.5 and has no bounds.

    Source:
        MFNet, arXiv:2410.11160, MMAdapter; see ``AdapterPath``.

    Args:
        place: Where.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._presence = place.presence
        self.image, self.height, self.exchange = _Adapter(place), _Adapter(place), _Exchange()

    def parts(self, block: Any) -> list[nn.Module]:
        """Return the MLP."""
        return [block.mlp]

    def updates(self, _index: int, taken: Tensor, _given: Tensor) -> tuple[Tensor | None, ...]:
        """Adapt both halves of the MLP's input and share them out."""
        image, height = taken.chunk(2)
        shared: tuple[Tensor, Tensor] = self.exchange(
            self.image(image), self.height(height), self._presence
        )
        return shared

    def silence(self) -> None:
        """Set both ``W_up`` and their biases to zero."""
        silence_linear(self.image.up)
        silence_linear(self.height.up)


class _Adapter(nn.Module):
    def __init__(self, place: Place) -> None:
        super().__init__()
        width = max(1, round(place.dim * place.config.adapter_ratio))
        self.down = drawn_linear(place.dim, width, generator=place.generator)
        self.up = silent_linear(width, place.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        update: Tensor = self.up(functional.gelu(self.down(tokens)))
        return update


class StreamLoRAPath(QueryValuePath):
    """LoRA on the queries and values of one stream, at a scale of 1 / rank.

    Source:
        MFNet, arXiv:2410.11160, MMLoRA: rank 4, alpha 1.

    Args:
        place: Where.
        stream: 0 for the images, 1 for the heights.
    """

    def __init__(self, place: Place, *, stream: int) -> None:
        rank = place.config.fusion_rank
        super().__init__(place.block.attn, rank=rank, generator=place.generator)
        self._stream, self._scale = stream, 1 / rank

    def update(self, low_rank: LowRank, tokens: Tensor) -> Tensor:
        """Map tokens of both streams (2 b, ..., in) to updates, zero for the other stream."""
        ours = self._scale * low_rank(tokens.chunk(2)[self._stream])
        others = torch.zeros_like(ours)
        return torch.cat((ours, others) if self._stream == 0 else (others, ours))


class LoRAExchangePath(StreamPath):
    """Low-rank updates of every linear layer of the MLP that either stream takes its share of.

    Computes ``W x + l B_x A_x x + (1 - l) B_y A_y y`` for the images, and the same the other way
    round for the heights. Each stream has an ``l`` of its own at each layer, which starts at 0.5.

    Source:
        MFNet, arXiv:2410.11160, MMLoRA: rank 4 and no scale. ``A`` starts as in its code.

    Args:
        place: Where.

    Raises:
        InputError: The MLP has no linear layers.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._presence = place.presence
        layers = _linear_layers(place.block.mlp)
        if not layers:
            raise InputError(
                found=f"an MLP of type {type(place.block.mlp).__name__}",
                expected="one with linear layers, as mmlora updates them",
            )
        self.image, self.height = (
            nn.ModuleList(_low_rank(layer, place) for layer in layers) for _ in range(2)
        )
        self.exchange = nn.ModuleList(_Exchange() for _ in layers)

    def parts(self, block: Any) -> list[nn.Module]:
        """Return the linear layers of the MLP."""
        return [*_linear_layers(block.mlp)]

    def updates(self, index: int, taken: Tensor, _given: Tensor) -> tuple[Tensor | None, ...]:
        """Update both halves of a layer's input and share them out."""
        image, height = taken.chunk(2)
        shared: tuple[Tensor, Tensor] = self.exchange[index](
            self.image[index](image), self.height[index](height), self._presence
        )
        return shared

    @torch.no_grad()
    def silence(self) -> None:
        """Set every ``B`` to zero."""
        for low_rank in (*self.image, *self.height):
            low_rank.get_parameter("up").zero_()


def _linear_layers(mlp: nn.Module) -> list[nn.Linear]:
    return [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]


def _low_rank(layer: nn.Linear, place: Place) -> LowRank:
    return LowRank(
        layer.in_features,
        layer.out_features,
        rank=place.config.fusion_rank,
        generator=place.generator,
    )


class MMAdapter:
    """Adapters on the attention of each stream; an exchange beside the MLP."""

    kinds = CROSSMODAL

    def make(self, kind: Kind, place: Place) -> SidePath:
        """Make the module of ``kind``."""
        if kind is Kind.FUSION:
            return MLPExchangePath(place)
        return AdapterPath(place, stream=_stream(kind))


class MMLoRA:
    """LoRA on the attention of each stream; an exchange within the MLP."""

    kinds = CROSSMODAL

    def make(self, kind: Kind, place: Place) -> SidePath:
        """Make the module of ``kind``."""
        if kind is Kind.FUSION:
            return LoRAExchangePath(place)
        return StreamLoRAPath(place, stream=_stream(kind))


class Separate:
    """Adapters on the attention and beside the MLP of each stream, without exchange: a control."""

    kinds = (Kind.IMAGE, Kind.HEIGHT)

    def make(self, kind: Kind, place: Place) -> SidePath:
        """Make the module of ``kind``."""
        return AdapterPath(place, stream=_stream(kind), with_mlp=True)


def _stream(kind: Kind) -> int:
    return (Kind.IMAGE, Kind.HEIGHT).index(kind)


_MECHANISMS: dict[str, Mechanism] = {
    "mmadapter": MMAdapter(),
    "mmlora": MMLoRA(),
    "separate": Separate(),
}


def register(name: str, made_by: Mechanism) -> None:
    """Make a mechanism known by a name, which ``ToolboxConfig.mechanism`` can then have.

    Call it before a file that was made with it is loaded.

    Raises:
        InputError: Another has that name.
    """
    if _MECHANISMS.setdefault(name, made_by) is not made_by:
        raise InputError(
            found=f"a second mechanism named {name!r}", expected="a name that none has yet"
        )


def mechanism(name: str) -> Mechanism:
    """Return the mechanism of that name.

    Raises:
        InputError: There is none.
    """
    if name not in _MECHANISMS:
        raise InputError(
            found=f"the mechanism {name!r}",
            expected=f"one of {', '.join(_MECHANISMS)}",
            fix="Register it first, with toolbox.crossmodal.register",
        )
    return _MECHANISMS[name]
