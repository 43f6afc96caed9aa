import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from earthgate_geo.models.backbone import Backbone, BackboneConfig, build_backbone, freeze
from earthgate_geo.toolbox.attach import attach
from earthgate_geo.toolbox.base import Toolbox, ToolboxConfig

_SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ours": ("earthgate_tiny", {"dim": 64, "depth": 4, "stem": [16, 16, 32]}),
    "plain": ("vit_tiny_patch16_224", _SMALL),
    "dinov2": ("vit_small_patch14_dinov2", _SMALL),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", _SMALL),
    "dinov3": ("vit_small_patch16_dinov3", _SMALL),
    "dinov3-biased": ("vit_small_patch16_dinov3_qkvb", _SMALL),
    "dinov3-unfused": ("vit_small_patch16_dinov3_qkvb", {**_SMALL, "qkv_fused": False}),
    "eva-post-norm": ("vit_small_patch16_dinov3", {**_SMALL, "use_post_norm": True}),
    "sam": ("samvit_base_patch16", {**_SMALL, "img_size": 64, "global_attn_indexes": (1, 3)}),
}


@functools.cache
def _prototype(family: str) -> Backbone:
    name, options = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build_backbone(BackboneConfig(name=name, options=options)).eval()
        # LayerScale and position tables start so small that they would hide an error.
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    freeze(backbone)
    return backbone


def build_small(family: str) -> Backbone:
    return copy.deepcopy(_prototype(family))


@pytest.fixture(name="build_small")
def _build_small() -> Callable[[str], Backbone]:
    return build_small


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return build_small(request.param)


@pytest.fixture
def plain() -> Backbone:
    return build_small("plain")


@pytest.fixture
def small() -> ToolboxConfig:
    return ToolboxConfig(rank=4, bottleneck=6, frequency_bottleneck=3)


@pytest.fixture
def toolbox(plain: Backbone, small: ToolboxConfig) -> Toolbox:
    return attach(plain, small)


@pytest.fixture
def images() -> Callable[[Backbone], Tensor]:
    def make(backbone: Backbone) -> Tensor:
        shape = (2, 3, 4 * backbone.patch_px, 7 * backbone.patch_px)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    return make


@pytest.fixture
def disturb() -> Callable[..., None]:
    def add_noise(toolbox: Toolbox, slots: Any, *, by: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for slot in sorted(slots):
                for parameter in toolbox.parameters(slot).values():
                    parameter.add_(by * torch.randn(parameter.shape, generator=generator))

    return add_noise
