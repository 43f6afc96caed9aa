"""Makers of small networks and model files for tests."""

from pathlib import Path

import numpy as np
import torch

from earthgate_geo.data.replay import Replay
from earthgate_geo.data.synthetic import CLASSES
from earthgate_geo.model_file import save_model
from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig


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
