"""Rein modules: every patch token attends to learned tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from earthgate_geo.toolbox.base import ToolboxConfig, drawn_linear


class ReinShared(nn.Module):
    """What the Rein modules of all layers share: ``W_t``, ``W_f`` and the scale."""

    def __init__(self, dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.values = drawn_linear(dim, dim, generator=generator)
        self.up = drawn_linear(dim, dim, generator=generator)
        self.scale = nn.Parameter(torch.zeros(()))


class ReinPath(nn.Module):
    """Attention from the patch tokens of one block's output to tokens learned for this layer.

    Computes ``f + s W_f(f + softmax(f Tᵀ / √d) W_t T)`` on patch tokens ``f`` with the learned
    tokens ``T = A B``; the first of them takes attention and gives nothing. ``W_t``, ``W_f`` and
    ``s`` are the same in all layers: those modules are opened and saved together. Prefix tokens
    pass through.

    Source:
        Wei et al. 2024, "Stronger, fewer, & superior", arXiv:2312.04265, its low-rank form and
        the initial values of its code. We differ twice: ``s`` starts at 0, there at 0.001; and
        there is no link to the queries of Mask2Former, as all rivals share one head.

    Args:
        dim: Token width.
        prefix_tokens: Class and register tokens that lead the sequence.
        first: The module of the first layer, whose shared part this one uses; None there.
        config: Gives the number of tokens and their rank.
        generator: Draws all but ``s``.
    """

    def __init__(
        self,
        dim: int,
        *,
        prefix_tokens: int,
        first: "ReinPath | None",
        config: ToolboxConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.used = False
        self._handles: list[RemovableHandle] = []
        self._prefix_tokens = prefix_tokens
        rank = config.rein_rank
        self.a = nn.Parameter(torch.empty(config.rein_tokens, rank))
        self.b = nn.Parameter(torch.empty(rank, dim))
        # The code's 16 x 16 is a patch of three channels, whatever the backbone.
        bound = (6 / (3 * 16 * 16 + (dim * rank) ** 0.5)) ** 0.5
        for factor in (self.a, self.b):
            nn.init.uniform_(factor, -bound, bound, generator=generator)
        if first is None:
            self.shared = ReinShared(dim, generator=generator)
        self._owner = () if first is None else (first,)  # a tuple hides it from the module tree

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (..., dim) to what is to be added, (..., dim)."""
        shared = self._shared
        tokens = self.a @ self.b  # (token, dim)
        attention = (patches @ tokens.T * tokens.shape[1] ** -0.5).softmax(dim=-1)
        seen = attention[..., 1:] @ shared.values(tokens[1:])
        update: Tensor = shared.scale * shared.up(seen + patches)
        return update.to(patches.dtype)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters; those that the layers share are the first layer's."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def silence(self) -> None:
        """Set the scale to zero, in all layers."""
        self._shared.scale.zero_()

    def join(self, block: Any) -> None:
        """Add to the output of ``block``."""
        self._handles = [block.register_forward_hook(self._add)]

    def leave(self, _block: Any) -> None:
        """Unhook."""
        for handle in self._handles:
            handle.remove()

    @property
    def _shared(self) -> ReinShared:
        return self._owner[0].shared if self._owner else self.shared

    def _add(self, _block: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.used:
            return None
        if output.ndim == 4:  # SAM keeps its tokens on the grid, without a prefix
            update: Tensor = self(output)
            return output + update
        update = self(output[:, self._prefix_tokens :])
        return output + functional.pad(update, (0, 0, self._prefix_tokens, 0))
