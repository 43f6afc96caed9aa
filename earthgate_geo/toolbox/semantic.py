"""Semantic modules: bottleneck adapters beside the MLP."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from earthgate_geo.toolbox.base import (
    ToolboxConfig,
    drawn_linear,
    silence_linear,
    silent_linear,
)


class SemanticPath(nn.Module):
    """A bottleneck adapter parallel to the MLP of one block.

    Computes ``t + MLP(t) + W_up GELU(W_down t)`` where ``t`` is the residual stream after
    attention, not normalised; LayerScale does not touch the adapter.

    Source:
        CrossEarth-Gate, arXiv:2511.20302; Chen et al. 2022, "AdaptFormer", with its initial
        values. Our reading where the paper is silent: no scale, no dropout, no normalisation.

    Args:
        dim: Token width.
        config: Gives the bottleneck.
        generator: Draws ``W_down``.
    """

    def __init__(self, dim: int, *, config: ToolboxConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.used = False
        self._handles: list[RemovableHandle] = []
        self._stream: Tensor | None = None
        self.down = drawn_linear(dim, config.bottleneck, generator=generator)
        nn.init.zeros_(self.down.bias)
        self.up = silent_linear(config.bottleneck, dim)

    def forward(self, stream: Tensor) -> Tensor:
        """Map (..., dim) to what is to be added, (..., dim)."""
        update: Tensor = self.up(functional.gelu(self.down(stream)))
        return update

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters."""
        return dict(self.named_parameters())

    def silence(self) -> None:
        """Set ``W_up`` and its bias to zero."""
        silence_linear(self.up)

    def join(self, block: Any) -> None:
        """Take the stream where the MLP takes it, and add to the block's output."""
        # Pre-norm blocks call norm2 first, post-norm blocks the MLP: the first of them gets t.
        self._handles = [
            block.register_forward_pre_hook(self._forget_stream),
            block.norm2.register_forward_pre_hook(self._keep_stream),
            block.mlp.register_forward_pre_hook(self._keep_stream),
            block.register_forward_hook(self._add),
        ]

    def leave(self, _block: Any) -> None:
        """Unhook."""
        for handle in self._handles:
            handle.remove()

    def _forget_stream(self, _block: nn.Module, _args: tuple[Tensor, ...]) -> None:
        self._stream = None  # of a call that failed half-way

    def _keep_stream(self, _part: nn.Module, args: tuple[Tensor]) -> None:
        if self.used and self._stream is None:
            self._stream = args[0]

    def _add(self, _block: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        stream, self._stream = self._stream, None
        if stream is None:
            return None
        update: Tensor = self(stream)
        return output + update.view_as(output)
