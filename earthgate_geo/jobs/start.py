"""The network that a training starts from: a model, or a backbone with a new head."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from earthgate_geo.checkpoint_file import read_checkpoint
from earthgate_geo.data.replay import Replay
from earthgate_geo.errors import InputError
from earthgate_geo.model_file import file_digest, load_model
from earthgate_geo.models.backbone import (
    BackboneConfig,
    default_options,
    default_scaling,
    pretrained_state,
)
from earthgate_geo.models.checkpoint import KeyReport, fit_checkpoint
from earthgate_geo.models.fusion import TwoStreams
from earthgate_geo.models.heads import default_head
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.training_request import TrainingRequest

PUBLISHED = "published"
"""Stands for the weights that timm knows of a backbone."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network before training, and where it came from."""

    segmenter: Segmenter
    """All of its parameters may be changed."""

    name: str
    """Of the model or the backbone."""

    digest: str | None
    """SHA-256 of its file; None where the weights are random or came over the network."""

    trained: bool
    """Whether its head knows the classes already."""

    keys: KeyReport | None = None
    """What became of a checkpoint's tensors."""

    licence: str = "not stated"
    """Of a model."""

    replay: Replay | None = None
    """Tiles of a model whose classes stay."""


def starting_model(
    choice: TrainingRequest, classes: ClassTable, *, crop_px: int, seed: int, heights: bool = False
) -> Start:
    """Return the network that a training starts from.

    A model keeps its head and its classes where these have the names of ``classes``, in whatever
    order, and no other head is asked for. Every other head is new.

    Args:
        choice: What the user says.
        classes: To tell apart.
        crop_px: Height and width of the crops that it will see.
        seed: Of new weights.
        heights: Whether it is to see heights; a model with heights sees them in any case.

    Raises:
        InputError: There is no such model, backbone or file, or the model is an adapter.
        ModelFileError: A file cannot be used, or does not fit the backbone.
        MissingDependencyError: The head needs an optional library.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        if choice.backbone is not None:
            return _from_backbone(choice, classes, crop_px, heights=heights)
        return _from_model(choice, classes, heights=heights)


def _from_backbone(
    choice: TrainingRequest, classes: ClassTable, crop_px: int, *, heights: bool
) -> Start:
    name = str(choice.backbone)
    scaling: dict[str, Any] = dict(default_scaling(name))
    config = SegmenterConfig(
        classes=classes,
        backbone=BackboneConfig(name=name, options=default_options(name, crop_px)),
        head=default_head(choice.head or "fpn"),
        tile_px=crop_px,
        heights=heights,
        **scaling,
    )
    segmenter = Segmenter(config)
    backbone = segmenter.backbone
    single = backbone.single if isinstance(backbone, TwoStreams) else backbone
    digest, keys = None, None
    if choice.weights == PUBLISHED:
        keys = fit_checkpoint(single, pretrained_state(name))
    elif choice.weights is not None:
        keys = fit_checkpoint(single, read_checkpoint(choice.weights))
        digest = file_digest(choice.weights)
    return Start(segmenter=segmenter, name=name, digest=digest, trained=False, keys=keys)


def _from_model(choice: TrainingRequest, classes: ClassTable, *, heights: bool) -> Start:
    loaded = load_model(choice.model, folders=choice.model_folders)
    if loaded.adapter is not None:
        raise InputError(
            found=f"{choice.model} is an adapter, made for {loaded.adapter.scene}",
            expected="a model",
            fix=f"Start from its base {loaded.name}",
        )
    segmenter = loaded.segmenter.with_heights() if heights else loaded.segmenter
    config = segmenter.config
    kept = choice.head in (None, config.head.kind) and set(classes.names) == set(
        config.classes.names
    )
    if not kept:
        head = config.head if choice.head is None else default_head(choice.head)
        fresh = Segmenter(replace(config, classes=classes, head=head))
        fresh.backbone, fresh.settled = segmenter.backbone, segmenter.settled
        segmenter = fresh
    return Start(
        segmenter=segmenter,
        name=loaded.name,
        digest=loaded.digest,
        trained=kept,
        licence=str(loaded.card.get("licence", "not stated")),
        replay=loaded.replay if kept else None,
    )
