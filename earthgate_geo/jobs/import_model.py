"""What ``earthgate models import`` does, from a released checkpoint to a model file."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from earthgate_geo.checkpoint_file import read_checkpoint
from earthgate_geo.data.pairs import read_classes
from earthgate_geo.errors import InputError
from earthgate_geo.model_file import file_digest, save_model
from earthgate_geo.models.backbone import pretrained_state
from earthgate_geo.models.crossearth import BACKBONE, Conversion, convert
from earthgate_geo.models.segmenter import SegmenterConfig
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.raster.destination import Destination, publish
from earthgate_geo.request import ImportRequest

Document = dict[str, Any]

_PUBLISHED = "published"
_SHRUNK = 2
"""Most that their training enlarged or shrank an image by."""

_ANY_GSD = (0.01, 100.0)


@dataclass(frozen=True)
class _Dataset:
    colors: Mapping[str, str]
    """Colour by class, in the order of the released heads."""

    gsd_m: tuple[float, ...] = ()
    """Ground sizes of its pixels."""


_DATASETS = {
    "isprs": _Dataset(
        {
            "impervious surface": "#ffffff",
            "building": "#0000ff",
            "low vegetation": "#00ffff",
            "tree": "#00ff00",
            "car": "#ffff00",
            "clutter": "#ff0000",
        },
        (0.05, 0.09),  # Potsdam and Vaihingen
    ),
    "loveda": _Dataset(
        {
            "background": "#ffffff",
            "building": "#ff0000",
            "road": "#ffff00",
            "water": "#0000ff",
            "barren": "#9f81b7",
            "forest": "#00ff00",
            "agricultural": "#ffc380",
        },
        (0.3,),
    ),
    "casid": _Dataset(
        {
            "background": "#ffffff",
            "building": "#ff0000",
            "forest": "#00ff00",
            "road": "#ffff00",
            "water": "#0000ff",
        }
    ),
}


def run_import(request: ImportRequest, monitor: Monitor) -> Document:
    """Convert a checkpoint and write the model file.

    Source:
        The released weights of CrossEarth, arXiv:2410.22629. Its authors do not state a range of
        ground sizes: ours is that of the training images, halved and doubled, as their training
        resized them. Their images are divided by 255; ours are scaled by each scene's statistics.

    Returns:
        The result document of ``earthgate models import --json``.

    Raises:
        EarthgateError: As its subclasses say; no model file is left behind.
    """
    request.check()
    started = time.perf_counter()
    classes, sizes_m = _classes(request.classes)
    sizes_m = sizes_m if request.gsd is None else (request.gsd,)
    low_m, high_m = (min(sizes_m) / _SHRUNK, max(sizes_m) * _SHRUNK) if sizes_m else _ANY_GSD
    if not sizes_m:
        monitor.warn(
            "Nothing says on which ground size of a pixel the model was trained, so every scene "
            "will be mapped at its own; --gsd says it"
        )
    config = SegmenterConfig(
        classes=classes, bands=request.channels, gsd_min_m=low_m, gsd_max_m=high_m
    )
    with Destination(request.out, overwrite=request.overwrite, inputs=request.inputs()) as place:
        made = convert(
            read_checkpoint(request.checkpoint),
            config,
            backbone=_backbone(request.weights),
            tile_px=request.tile_px,
        )
        document = _told(request, made)
        built = place.scratch / request.out.name
        document["digest"] = save_model(built, made.segmenter, card=_card(request, document))
        publish(built, request.out)
    return document | {"seconds": {"total": time.perf_counter() - started}}


def _classes(name: str) -> tuple[ClassTable, tuple[float, ...]]:
    """Return the classes and the ground sizes in metres that a dataset or a file tells."""
    if name in _DATASETS:
        dataset = _DATASETS[name]
        entries = (LandClass(i, *entry) for i, entry in enumerate(dataset.colors.items()))
        return ClassTable(tuple(entries)), dataset.gsd_m
    if not Path(name).is_file():
        raise InputError(
            found=f"--classes {name}, which is no file",
            expected=f"{', '.join(_DATASETS)} or a classes.json in the checkpoint's order",
        )
    return read_classes(Path(name)), ()


def _backbone(weights: str | None) -> dict[str, Tensor] | None:
    if weights is None:
        return None
    return pretrained_state(BACKBONE) if weights == _PUBLISHED else read_checkpoint(weights)


def _told(request: ImportRequest, made: Conversion) -> Document:
    config = made.segmenter.config
    return {
        "classes": list(config.classes.names),
        "gsd": [config.gsd_min_m, config.gsd_max_m],
        "tile_px": config.tile_px,
        "channels": list(config.bands),
        "used": len(made.used),
        "ignored": made.ignored_parts(),
        "backbone": made.backbone.lines(),
        "outputs": {role: str(path) for role, path in request.outputs().items()},
    }


def _card(request: ImportRequest, document: Document) -> Document:
    source = {
        "checkpoint": request.checkpoint.name,
        "digest": file_digest(request.checkpoint),
        "weights": request.weights and Path(request.weights).name,
    }
    told = {key: document[key] for key in ("used", "ignored")}
    return {"name": request.out.stem, "licence": "not stated", "imported": source | told}
