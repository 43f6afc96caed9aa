"""Put a toolbox into a backbone, take it out, or fold it in."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from earthgate_geo.errors import InputError
from earthgate_geo.toolbox.base import Kind, SidePath, Slot, Toolbox, ToolboxConfig
from earthgate_geo.toolbox.frequency import FrequencyPath, TokenGrid
from earthgate_geo.toolbox.semantic import SemanticPath
from earthgate_geo.toolbox.spatial import SpatialPath


class Attachable(Protocol):
    """A backbone that can carry a toolbox: a module called on images (batch, channel, row, col)."""

    @property
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks, first to last, each with ``attn``, ``norm2`` and ``mlp``."""

    @property
    def dim(self) -> int:
        """Width of a token."""

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens before the patch tokens."""

    @property
    def patch_px(self) -> int:
        """Height and width of a patch in pixels."""

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook`` before every forward pass, as ``nn.Module`` does."""


def attach(
    backbone: Attachable, config: ToolboxConfig, *, generator: torch.Generator | None = None
) -> Toolbox:
    """Put one module of each kind into every block of ``backbone``, all unused and closed.

    The modules hook into the parts of timm's blocks (attention, MLP, block output) and become
    part of the backbone's tree. Its own parameters stay as they are; freeze them first.

    Args:
        backbone: The frozen transformer; its output does not change by a bit.
        config: Sizes of the modules.
        generator: Draws the down-projections; by default one of a fixed seed.

    Raises:
        InputError: The blocks are not of the anatomy that the modules need, or carry some already.
    """
    for layer, block in enumerate(backbone.blocks):
        _check_anatomy(layer, block)
    generator = generator or torch.Generator().manual_seed(0)
    grid = TokenGrid()
    slots: dict[Slot, SidePath] = {}
    for layer, block in enumerate(backbone.blocks):
        spatial = SpatialPath(block.attn, config=config, generator=generator)
        semantic = SemanticPath(backbone.dim, config=config, generator=generator)
        frequency = FrequencyPath(
            backbone.dim,
            prefix_tokens=backbone.prefix_tokens,
            grid=grid,
            config=config,
            generator=generator,
        )
        weight = next(block.parameters())
        block.side_paths = nn.ModuleDict(
            {Kind.SPATIAL: spatial, Kind.SEMANTIC: semantic, Kind.FREQUENCY: frequency}
        ).to(weight.device, weight.dtype)
        paths: tuple[SidePath, ...] = (spatial, semantic, frequency)
        for kind, path in zip(Kind, paths, strict=True):
            slots[Slot(layer, kind)] = path
            path.join(block)  # the frequency module last: it takes what the others made
    grid_hook = backbone.register_forward_pre_hook(grid.see)
    toolbox = Toolbox(slots=slots, blocks=list(backbone.blocks), grid_hook=grid_hook)
    toolbox.open(())
    return toolbox


def detach(toolbox: Toolbox) -> None:
    """Take every module out; the backbone is then bit for bit what it was before ``attach``."""
    _remove(toolbox, list(toolbox.slots))


def fold(toolbox: Toolbox) -> None:
    """Merge the used spatial modules into the weights and take out all that are unused.

    Used semantic and frequency modules stay. ``state_dict`` no longer has the spatial ones: save
    an adapter before folding.
    """
    for slot in toolbox.used:
        path = toolbox.slots[slot]
        if isinstance(path, SpatialPath):
            path.merge(toolbox.blocks[slot.layer])
    spatial = [slot for slot in toolbox.slots if slot.kind is Kind.SPATIAL]
    _remove(toolbox, {*spatial, *(toolbox.slots.keys() - toolbox.used)})


def _remove(toolbox: Toolbox, slots: Iterable[Slot]) -> None:
    for slot in slots:
        block: Any = toolbox.blocks[slot.layer]
        toolbox.slots.pop(slot).leave(block)
        del block.side_paths[slot.kind]
        if not block.side_paths:
            del block.side_paths
    if toolbox.grid_hook and not any(slot.kind is Kind.FREQUENCY for slot in toolbox.slots):
        toolbox.grid_hook.remove()


def _check_anatomy(layer: int, block: Any) -> None:
    if hasattr(block, "side_paths"):
        raise InputError(found="a backbone that already carries a toolbox", fix="Detach it first")
    if not all(hasattr(block, part) for part in ("attn", "norm2", "mlp")):
        raise InputError(
            found=f"block {layer} is of type {type(block).__name__}",
            expected="a transformer block with attn, norm2 and mlp, such as a timm ViT's",
        )
