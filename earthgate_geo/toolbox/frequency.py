"""Frequency modules: a mixture of adapters on the bands of a block's output."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from earthgate_geo.errors import InputError
from earthgate_geo.toolbox.base import (
    ToolboxConfig,
    drawn_linear,
    silence_linear,
    silent_linear,
)

INITIAL_SCALE = 0.1


class TokenGrid:
    """The shape of the grid of patch tokens of the images that are in the network now."""

    def __init__(self) -> None:
        self.rows = 0
        self.cols = 0

    def see(self, backbone: Any, args: tuple[Tensor]) -> None:
        """Take the shape from images on their way into ``backbone``."""
        self.rows, self.cols = (side // backbone.patch_px for side in args[0].shape[-2:])


class FrequencyPath(nn.Module):
    """A mixture of three adapters on the output of one block, chosen token by token.

    Computes ``f + scale · (w₁ A₁(f) + w₂ A₂(low) + w₃ A₃(high))`` on patch tokens ``f``, where
    ``low + high = f`` are split in the Fourier domain, ``w = softmax(R f)`` per token and each
    adapter is linear, ReLU, linear. Prefix tokens pass through.

    Source:
        Earth-Adapter, arXiv:2504.06220. We differ in the start: its up-projections are random,
        ours are zero. The token grid is the image's; the original's is fixed.

    Args:
        dim: Token width.
        prefix_tokens: Class and register tokens that lead the sequence.
        grid: Says how the patch tokens lie.
        config: Gives the bottleneck and the low band.
        generator: Draws the down-projections and the router.
    """

    def __init__(
        self,
        dim: int,
        *,
        prefix_tokens: int,
        grid: TokenGrid,
        config: ToolboxConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.used = False
        self._handles: list[RemovableHandle] = []
        self._prefix_tokens = prefix_tokens
        self._grid = grid
        self._rho = config.rho
        self._width = width = config.frequency_bottleneck
        self.whole = _Adapter(dim, width, generator=generator)
        self.low = _Adapter(dim, width, generator=generator)
        self.high = _Adapter(dim, width, generator=generator)
        self.router = drawn_linear(dim, 3, generator=generator)
        self.scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (batch, row, col, dim) to what is to be added, of the same shape."""
        return self._widen(self._mix(self._narrow(patches)))

    # Splitting works along rows and columns, a projection along channels: their order does not
    # matter. So all projections run as one product and the bands are split behind it, where the
    # tokens are narrow; likewise the tokens are mixed before the products that widen them again.

    def _narrow(self, tokens: Tensor) -> Tensor:
        """Map (..., dim) to the projections of the three adapters and the router, no biases."""
        layers = (self.whole.down, self.low.down, self.high.down, self.router)
        return functional.linear(tokens, torch.cat([layer.weight for layer in layers]))

    def _mix(self, narrow: Tensor) -> Tensor:
        """Map (batch, row, col, 3 width + 3) to weighted activations and their weights."""
        adapters = (self.whole, self.low, self.high)
        width = self._width
        low, high = split_bands(narrow[..., width : 3 * width], rho=self._rho)
        bands = (narrow[..., :width], low[..., :width], high[..., width:])
        weights = self.scale * (narrow[..., 3 * width :] + self.router.bias).softmax(dim=-1)
        mixed = [
            weights[..., i : i + 1] * (band + adapter.down.bias).relu()
            for i, (band, adapter) in enumerate(zip(bands, adapters, strict=True))
        ]
        return torch.cat((*mixed, weights), dim=-1).to(narrow.dtype)

    def _widen(self, mixed: Tensor) -> Tensor:
        """Map (..., 3 width + 3) to (..., dim)."""
        layers = (self.whole.up, self.low.up, self.high.up)
        biases = torch.stack([layer.bias for layer in layers], dim=1)  # (dim, 3)
        return functional.linear(mixed, torch.cat([*(up.weight for up in layers), biases], dim=1))

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters."""
        return dict(self.named_parameters())

    def silence(self) -> None:
        """Set the up-projections and their biases to zero."""
        for adapter in (self.whole, self.low, self.high):
            silence_linear(adapter.up)

    def join(self, block: Any) -> None:
        """Add to the output of ``block``."""
        self._handles = [block.register_forward_hook(self._add)]

    def leave(self, _block: Any) -> None:
        """Unhook."""
        for handle in self._handles:
            handle.remove()

    def _add(self, _block: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.used:
            return None
        if output.ndim == 4:  # SAM keeps its tokens on the grid
            return output + cast("Tensor", self(output))
        narrow = self._narrow(output)[:, self._prefix_tokens :]
        rows, cols = self._grid.rows, self._grid.cols
        if narrow.shape[1] != rows * cols:
            raise InputError(
                found=f"{narrow.shape[1]} patch tokens",
                expected=f"{rows} x {cols}, the grid of the last image that the backbone was given",
            )
        mixed = self._mix(narrow.reshape(-1, rows, cols, narrow.shape[-1])).flatten(1, 2)
        # Zeros for the prefix: nothing is added there. A sum keeps the memory layout, on which the
        # bits of later convolutions depend.
        return output + self._widen(functional.pad(mixed, (0, 0, self._prefix_tokens, 0)))


class _Adapter(nn.Module):
    def __init__(self, dim: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.down = drawn_linear(dim, width, generator=generator)
        self.up = silent_linear(width, dim)


def split_bands(patches: Tensor, *, rho: float) -> tuple[Tensor, Tensor]:
    """Split a map of tokens into a low and a high band that sum to it.

    The low band is the square of frequencies -c..c-1 in both directions, with
    c = floor(min(rows, cols) · rho / 2). The transform runs in float32 under any autocast.

    Args:
        patches: (batch, row, col, dim).
        rho: Side of the low band as a share of the spectrum's, in 0..1.
    """
    rows, cols = patches.shape[1:3]
    half = int(min(rows, cols) * rho / 2)
    with torch.autocast(patches.device.type, enabled=False):
        exact = patches.float()
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            low = low_band_by_products(exact, half)
        else:
            spectrum = torch.fft.fft2(exact, dim=(1, 2), norm="ortho")
            keep = _low(rows, half, patches.device)[:, None] & _low(cols, half, patches.device)
            low = torch.fft.ifft2(spectrum * keep[:, :, None], dim=(1, 2), norm="ortho").real
        high = exact - low
    return low.to(patches.dtype), high.to(patches.dtype)


def low_band_by_products(patches: Tensor, half: int) -> Tensor:
    """Return the low band of ``split_bands`` by two real products, for converted networks.

    To keep the frequencies -c..c-1 along one axis is to multiply by ``A + iB``; of a real map,
    the real part of both axes' products is ``A X Aᵀ - B X Bᵀ``.

    Args:
        patches: Float32 (batch, row, col, dim).
        half: The ``c`` above.
    """
    rows, cols, dim = map(int, patches.shape[1:])
    # In numpy: a tracer takes what comes out for a constant, and none of the steps.
    real, imaginary = _projection(cols, half)
    across = torch.from_numpy(np.concatenate([real, imaginary])).to(patches)
    real, imaginary = _projection(rows, half)
    down = torch.from_numpy(np.stack([real, -imaginary], axis=2)).to(patches)
    along = (across @ patches).reshape(-1, 2 * rows, cols * dim)
    return (down.reshape(rows, 2 * rows) @ along).reshape(-1, rows, cols, dim)


def _projection(count: int, half: int) -> NDArray[np.float32]:
    """Return A and B, (2, count, count): a cosine and a sine of each kept frequency."""
    places = np.arange(count)
    shifts = (places[:, None] - places) * (2 * np.pi / count)
    phases = np.arange(-half, half)[:, None, None] * shifts
    waves = np.stack([np.cos(phases).sum(axis=0), np.sin(phases).sum(axis=0)])
    return (waves / count).astype(np.float32)


def _low(count: int, half: int, device: torch.device) -> Tensor:
    # Frequency -f sits at index count - f, so adding half brings -half..half-1 to 0..2·half-1.
    return (torch.arange(count, device=device) + half) % count < 2 * half
