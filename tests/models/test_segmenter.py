import pytest
import torch
from networks import small_config, small_segmenter

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig
from earthgate_geo.toolbox.attach import attach
from earthgate_geo.toolbox.base import ToolboxConfig


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (50, 33)])
def test_logits_have_the_size_of_the_image(size):
    with torch.inference_mode():
        logits = small_segmenter()(torch.rand(2, 3, *size))

    assert logits.shape == (2, 5, *size)


def test_a_configuration_survives_json():
    config = small_config(gsd_max_m=0.7)

    assert SegmenterConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "name",
    [
        "earthgate_tiny",
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "samvit_base_patch16",
    ],
)
def test_attaching_the_whole_toolbox_changes_no_bit_of_any_family(name):
    sizes = {"embed_dim": 64, "num_heads": 2, "depth": 4}
    if name == "earthgate_tiny":
        sizes = {"dim": 64, "depth": 4, "stem": [16, 16, 32]}
    model = small_segmenter(backbone=BackboneConfig(name=name, options=sizes))
    images = torch.rand(1, 3, 70, 100)
    with torch.inference_mode():
        before = model(images)

    toolbox = attach(model.backbone, ToolboxConfig())
    toolbox.open(toolbox.slots)

    with torch.inference_mode():
        assert torch.equal(model(images), before)


def test_an_unknown_head_is_refused():
    with pytest.raises(InputError) as refusal:
        Segmenter(small_config(head=HeadConfig(kind="mask")))

    assert str(refusal.value) == "head 'mask'; expected fpn."


def test_a_backward_gsd_range_is_refused():
    with pytest.raises(InputError) as refusal:
        small_config(gsd_min_m=1.0, gsd_max_m=0.5)

    assert str(refusal.value) == (
        "a GSD range of 1.0 to 0.5 m; expected two positive numbers in ascending order."
    )
