"""Makers of small networks and model files for tests."""

from pathlib import Path

import numpy as np
import torch

from earthgate_geo.data.replay import Replay
from earthgate_geo.data.synthetic import CLASSES
from earthgate_geo.mapping.cluster_worker import ClusterNetwork
from earthgate_geo.model_file import load_model, save_model
from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig
from earthgate_geo.raster.grid import Size

_SIZES = {"embed_dim": 64, "num_heads": 2, "depth": 4}
FAMILIES = [
    ("earthgate_tiny", {"dim": 64, "depth": 4, "stem": [16, 16, 32]}),
    ("vit_tiny_patch16_224", _SIZES),
    ("vit_base_patch16_224.mae", _SIZES | {"img_size": 128}),
    ("vit_small_patch14_reg4_dinov2", _SIZES),
    ("vit_small_patch14_dinov2", _SIZES | {"patch_size": 16, "img_size": [64, 96]}),
    ("vit_small_patch14_reg4_dinov2", _SIZES | {"patch_size": 16, "img_size": [96, 64]}),
    ("vit_small_patch16_dinov3", _SIZES),
    ("vit_small_patch16_dinov3_qkvb", _SIZES),
    ("samvit_base_patch16", _SIZES),
]
"""Names and small options of backbones, one or more of each family."""


def small_config(**changes: object) -> SegmenterConfig:
    wanted = {
        "classes": CLASSES,
        "backbone": BackboneConfig(options={"dim": 64, "depth": 4, "stem": [16, 16, 32]}),
        "head": HeadConfig(width=16),
        "tile_px": 64,
    }
    return SegmenterConfig(**(wanted | changes))


def small_segmenter(*, seed: int = 0, **changes: object) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(small_config(**changes)).eval()


def small_replay(tiles: int = 4, size_px: int = 64) -> Replay:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(tiles, dtype=np.uint8) % len(CLASSES), size_px**2)
    labels = labels.reshape(tiles, size_px, size_px)
    images = rng.integers(0, 256, (tiles, 3, size_px, size_px), dtype=np.uint8)
    return Replay(images=images, labels=labels)


def write_model(path: Path, *, seed: int = 0) -> Path:
    card = {"name": "small", "licence": "CC0-1.0"}
    save_model(path, small_segmenter(seed=seed), card=card, replay=small_replay())
    return path


def cluster_network(model: Path, size: Size) -> ClusterNetwork:
    """Name a model file to workers that map with torch, so that all give the same bits."""
    return ClusterNetwork(
        model=str(model),
        digests=(load_model(model).digest, None),
        size=size,
        runtime="torch",
        precision="fp32",
        device="cpu",
    )
