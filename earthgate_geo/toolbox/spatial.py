"""Spatial modules: low-rank updates of the query and value projections."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from earthgate_geo.toolbox.base import ToolboxConfig


class LowRank(nn.Module):
    """A linear update of low rank, ``x Aᵀ Bᵀ``; ``B`` starts at zero."""

    def __init__(self, in_dim: int, out_dim: int, *, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_dim))
        self.up = nn.Parameter(torch.zeros(out_dim, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return functional.linear(functional.linear(tokens, self.down), self.up)

    def delta(self) -> Tensor:
        """Return the same update as a weight, (out, in)."""
        return self.up @ self.down


class QueryValuePath(nn.Module):
    """Low-rank updates of the queries and values of one attention, not of its keys or output.

    Hooks into the projections, fused or apart, so the attention itself is whatever the backbone
    has.

    Args:
        attention: The attention to update, with ``qkv`` or with ``q_proj`` and ``v_proj``.
        rank: Inner width of the updates.
        generator: Draws ``A``.
    """

    def __init__(self, attention: Any, *, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.used = False
        self._handles: list[RemovableHandle] = []
        q, v = _projections(attention)
        self.q = LowRank(q.shape[1], q.shape[0], rank=rank, generator=generator)
        self.v = LowRank(v.shape[1], v.shape[0], rank=rank, generator=generator)

    def update(self, low_rank: LowRank, tokens: Tensor) -> Tensor:
        """Map tokens (..., in) to what is to be added to their projection, (..., out)."""
        raise NotImplementedError

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def silence(self) -> None:
        """Set both ``B`` to zero."""
        self.q.up.zero_()
        self.v.up.zero_()

    def join(self, block: Any) -> None:
        """Add the updates to the outputs of the projections of ``block``."""
        attention = block.attn
        if attention.qkv is None:
            self._handles = [
                attention.q_proj.register_forward_hook(self._add_to_q),
                attention.v_proj.register_forward_hook(self._add_to_v),
            ]
            return
        _lend_bias(attention)
        self._handles = [attention.qkv.register_forward_hook(self._add_to_qkv)]

    def leave(self, block: Any) -> None:
        """Unhook, and give back what ``join`` moved if no other needs it."""
        for handle in self._handles:
            handle.remove()
        _return_bias(block.attn)

    def _add_to_qkv(self, _layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        if not self.used:
            return None
        q, k, v = output.chunk(3, dim=-1)
        (tokens,) = args
        return torch.cat((q + self.update(self.q, tokens), k, v + self.update(self.v, tokens)), -1)

    def _add_to_q(self, _layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        return output + self.update(self.q, args[0]) if self.used else None

    def _add_to_v(self, _layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        return output + self.update(self.v, args[0]) if self.used else None


class SpatialPath(QueryValuePath):
    """LoRA: computes ``W x + B A x`` for W_q and W_v.

    Source:
        CrossEarth-Gate, arXiv:2511.20302; Hu et al. 2022, "LoRA", arXiv:2106.09685. The scale
        alpha / rank is 1, as the paper's is not known; no dropout.

    Args:
        attention: The attention to update, with ``qkv`` or with ``q_proj`` and ``v_proj``.
        config: Gives the rank.
        generator: Draws ``A``.
    """

    def __init__(
        self, attention: Any, *, config: ToolboxConfig, generator: torch.Generator
    ) -> None:
        super().__init__(attention, rank=config.rank, generator=generator)

    def update(self, low_rank: LowRank, tokens: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        added: Tensor = low_rank(tokens)
        return added

    @torch.no_grad()
    def merge(self, block: Any) -> None:
        """Add both updates to the weights of ``block``."""
        q, v = _projections(block.attn)
        q += self.q.delta()
        v += self.v.delta()


def _lend_bias(attention: Any) -> None:
    # timm's EVA and BEiT keep the bias outside the layer, then multiply by qkv.weight without
    # calling the layer, past its hooks. Inside the layer it is the same operation.
    if getattr(attention, "q_bias", None) is None or attention.qkv_bias_separate:
        return
    bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias)).detach()
    attention.qkv.bias = nn.Parameter(bias, requires_grad=False)
    attention.q_bias = None


def _return_bias(attention: Any) -> None:
    # Two modules may stand on one layer, for two streams: the last to leave gives it back.
    lent = getattr(attention, "v_bias", None) is not None and attention.q_bias is None
    if lent and not attention.qkv._forward_hooks:
        q_bias = attention.qkv.bias.detach()[: len(attention.v_bias)].clone()
        attention.q_bias = nn.Parameter(q_bias, attention.v_bias.requires_grad)
        attention.qkv.bias = None


def _projections(attention: Any) -> tuple[Tensor, Tensor]:
    """Return the weights of W_q and W_v, each (out, in), as views."""
    if attention.qkv is None:
        return attention.q_proj.weight, attention.v_proj.weight
    q, _, v = attention.qkv.weight.chunk(3)
    return q, v
