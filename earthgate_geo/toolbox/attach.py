"""Put a toolbox into a backbone, take it out, fold it in, or settle it there."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from earthgate_geo.errors import InputError
from earthgate_geo.toolbox.base import (
    CROSSMODAL,
    Kind,
    SidePath,
    Slot,
    Toolbox,
    ToolboxConfig,
)
from earthgate_geo.toolbox.crossmodal import HeightPresence, Place, mechanism
from earthgate_geo.toolbox.frequency import FrequencyPath, TokenGrid
from earthgate_geo.toolbox.rein import ReinPath
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

    @property
    def streams(self) -> int:
        """How many images each input becomes on its way through the blocks."""

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook`` before every forward pass, as ``nn.Module`` does."""


@dataclass(frozen=True)
class Settled:
    """Modules that have become part of a network: what is needed to put them there again."""

    config: ToolboxConfig
    """Their sizes."""

    slots: tuple[Slot, ...]
    """Where they are."""

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return {"config": asdict(self.config), "slots": list(map(str, self.slots))}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Settled":
        """Read what ``to_json`` wrote.

        Raises:
            KeyError: A key is missing.
            TypeError: A key is unknown.
            ValueError: A value is out of range.
        """
        config = ToolboxConfig(**document["config"])
        return cls(config, tuple(map(Slot.parse, document["slots"])))


def attach(
    backbone: Attachable, config: ToolboxConfig, *, generator: torch.Generator | None = None
) -> Toolbox:
    """Put one module of each of the config's kinds into every block, all unused and closed.

    The modules hook into the parts of timm's blocks (attention, MLP, block output) and become
    part of the backbone's tree. Its own parameters stay as they are; freeze them first.

    Args:
        backbone: The frozen transformer; its output does not change by a bit.
        config: Kinds and sizes of the modules.
        generator: Draws the down-projections; by default one of a fixed seed.

    Raises:
        InputError: The blocks are not of the anatomy that the modules need, or carry some already,
            or modules of image and heights are wanted where there are no heights.
    """
    layers = range(len(backbone.blocks))
    slots = [Slot(layer, kind) for layer in layers for kind in config.kinds]
    return _put(backbone, config, slots, generator or torch.Generator().manual_seed(0))


def detach(toolbox: Toolbox) -> None:
    """Take every module out; the backbone is then bit for bit what it was before ``attach``."""
    _remove(toolbox, list(toolbox.slots))


def fold(toolbox: Toolbox) -> None:
    """Merge the used spatial modules into the weights and take out all that are unused.

    Used modules of other kinds stay. ``state_dict`` no longer has the spatial ones: save an
    adapter before folding.
    """
    for slot in toolbox.used:
        path = toolbox.slots[slot]
        if isinstance(path, SpatialPath):
            path.merge(toolbox.blocks[slot.layer])
    spatial = [slot for slot in toolbox.slots if slot.kind is Kind.SPATIAL]
    _remove(toolbox, {*spatial, *(toolbox.slots.keys() - toolbox.used)})


def settle(toolbox: Toolbox, config: ToolboxConfig) -> Settled:
    """Fold a toolbox and make what remains part of the network, frozen.

    The backbone then carries no toolbox: another can be attached, on top of the settled modules.
    In the backbone's state they are ``blocks.{layer}.settled.{index}.{kind}...``, where the index
    counts the toolboxes that settled something in this block.

    Args:
        toolbox: Left without modules.
        config: The one that it was attached with.
    """
    fold(toolbox)
    settled = Settled(config, tuple(sorted(toolbox.slots)))
    for layer in sorted({slot.layer for slot in settled.slots}):
        block: Any = toolbox.blocks[layer]
        block.side_paths.requires_grad_(False)
        if not hasattr(block, "settled"):
            block.settled = nn.ModuleList()
        block.settled.append(block.side_paths)
        del block.side_paths
    toolbox.slots.clear()
    return settled


def restore(backbone: Attachable, settled: Settled) -> None:
    """Put empty settled modules where those of a saved network were; load its state next.

    Call it for everything that was settled, in that order.

    Raises:
        InputError: The backbone cannot carry these modules.
    """
    too_deep = [slot for slot in settled.slots if slot.layer >= len(backbone.blocks)]
    if too_deep:
        raise InputError(
            found=f"a settled module {too_deep[0]}", expected=f"{len(backbone.blocks)} layers"
        )
    toolbox = _put(backbone, settled.config, settled.slots, torch.Generator())
    toolbox.used = settled.slots
    settle(toolbox, settled.config)


def _put(
    backbone: Attachable,
    config: ToolboxConfig,
    slots: Collection[Slot],
    generator: torch.Generator,
) -> Toolbox:
    """Make the modules of ``slots`` and hook them in, unused and closed."""
    for layer, block in enumerate(backbone.blocks):
        _check_anatomy(layer, block)
    _check_kinds(backbone, config, {slot.kind for slot in slots})
    maker = _Maker(backbone, config, generator)
    paths: dict[Slot, SidePath] = {}
    for layer, block in enumerate(backbone.blocks):
        kinds = [kind for kind in Kind if Slot(layer, kind) in slots]
        made: dict[str, Any] = {kind: maker.make(kind, block) for kind in kinds}
        if not made:
            continue
        weight = next(block.parameters())
        block.side_paths = nn.ModuleDict(made).to(weight.device, weight.dtype)
        for kind in kinds:
            paths[Slot(layer, kind)] = made[kind]
            made[kind].join(block)
    seers = {Kind.FREQUENCY: maker.grid.see} | dict.fromkeys(CROSSMODAL, maker.presence.see)
    watches = {
        kind: backbone.register_forward_pre_hook(see)
        for kind, see in seers.items()
        if any(slot.kind is kind for slot in paths)
    }
    toolbox = Toolbox(slots=paths, blocks=list(backbone.blocks), watches=watches)
    toolbox.open(())
    return toolbox


class _Maker:
    """Makes the modules of one toolbox, and holds what they share."""

    def __init__(
        self, backbone: Attachable, config: ToolboxConfig, generator: torch.Generator
    ) -> None:
        self.backbone, self.config, self.generator = backbone, config, generator
        self.grid, self.presence = TokenGrid(), HeightPresence()
        self.first: ReinPath | None = None

    def make(self, kind: Kind, block: Any) -> Any:
        """Make a module of ``kind`` for ``block``; Any, as it is a module and a side path."""
        config, generator = self.config, self.generator
        dim, prefix_tokens = self.backbone.dim, self.backbone.prefix_tokens
        match kind:
            case Kind.SPATIAL:
                return SpatialPath(block.attn, config=config, generator=generator)
            case Kind.SEMANTIC:
                return SemanticPath(dim, config=config, generator=generator)
            case Kind.FREQUENCY:
                return FrequencyPath(
                    dim,
                    prefix_tokens=prefix_tokens,
                    grid=self.grid,
                    config=config,
                    generator=generator,
                )
            case Kind.REIN:
                path = ReinPath(
                    dim,
                    prefix_tokens=prefix_tokens,
                    first=self.first,
                    config=config,
                    generator=generator,
                )
                self.first = self.first or path
                return path
            case Kind.IMAGE | Kind.HEIGHT | Kind.FUSION:
                place = Place(
                    block, dim=dim, presence=self.presence, config=config, generator=generator
                )
                return mechanism(config.mechanism).make(kind, place)


def _remove(toolbox: Toolbox, slots: Iterable[Slot]) -> None:
    for slot in slots:
        block: Any = toolbox.blocks[slot.layer]
        toolbox.slots.pop(slot).leave(block)
        del block.side_paths[slot.kind]
        if not block.side_paths:
            del block.side_paths
    for kind, watch in toolbox.watches.items():
        if not any(slot.kind is kind for slot in toolbox.slots):
            watch.remove()


def _check_kinds(backbone: Attachable, config: ToolboxConfig, kinds: Collection[Kind]) -> None:
    wanted = [kind for kind in CROSSMODAL if kind in kinds]
    if not wanted:
        return
    if backbone.streams == 1:
        raise InputError(
            found=f"modules of the kinds {', '.join(wanted)} in a network without heights",
            expected="a network with heights",
            fix="Give heights with --dsm, or make it one by with_heights()",
        )
    known = mechanism(config.mechanism).kinds
    if not set(wanted) <= set(known):
        raise InputError(
            found=f"modules of the kinds {', '.join(wanted)}",
            expected=f"some of {', '.join(known)}, which {config.mechanism} makes",
        )


def _check_anatomy(layer: int, block: Any) -> None:
    if hasattr(block, "side_paths"):
        raise InputError(found="a backbone that already carries a toolbox", fix="Detach it first")
    if not all(hasattr(block, part) for part in ("attn", "norm2", "mlp")):
        raise InputError(
            found=f"block {layer} is of type {type(block).__name__}",
            expected="a transformer block with attn, norm2 and mlp, such as a timm ViT's",
        )
