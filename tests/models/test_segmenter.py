import pytest
import torch
from networks import FAMILIES, small_config, small_segmenter
from torch.nn import functional

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import BackboneConfig, freeze
from earthgate_geo.models.heads import default_head
from earthgate_geo.models.segmenter import SegmenterConfig
from earthgate_geo.toolbox.attach import attach, fold
from earthgate_geo.toolbox.base import ToolboxConfig


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (50, 33)])
def test_logits_have_the_size_of_the_image(size):
    with torch.inference_mode():
        logits = small_segmenter()(torch.rand(2, 3, *size))

    assert logits.shape == (2, 5, *size)


def test_a_configuration_survives_json():
    config = small_config(gsd_max_m=0.7, head=default_head("mask2former"))

    assert SegmenterConfig.from_json(config.to_json()) == config


def test_features_are_what_the_head_sees_and_say_how_many_pixels_they_cover():
    model = small_segmenter()
    images = torch.rand(1, 3, 50, 70)

    with torch.inference_mode():
        maps, covered_px = model.features(images)
        logits = functional.interpolate(model.head(maps), size=covered_px, mode="bilinear")
        whole = model(images)

    assert covered_px == (64, 80)
    assert [tuple(m.shape[-2:]) for m in maps] == [(16, 20), (8, 10), (4, 5), (4, 5)]
    assert torch.equal(logits[..., :50, :70], whole)


def test_a_new_segmenter_has_no_settled_modules():
    assert small_segmenter().settled == []


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_attaching_the_whole_toolbox_changes_no_bit_of_any_family(name, options):
    model = small_segmenter(backbone=BackboneConfig(name=name, options=options))
    images = torch.rand(1, 3, 70, 100)
    with torch.inference_mode():
        before = model(images)

    toolbox = attach(model.backbone, ToolboxConfig())
    toolbox.open(toolbox.slots)

    with torch.inference_mode():
        assert torch.equal(model(images), before)


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_trained_modules_change_every_family_and_folding_changes_no_more(name, options):
    model = small_segmenter(backbone=BackboneConfig(name=name, options=options))
    freeze(model)
    images = torch.rand(1, 3, 70, 100)
    with torch.inference_mode():
        before = model(images)
    sizes = ToolboxConfig(rank=4, bottleneck=4, frequency_bottleneck=4, rho=0.9)
    toolbox = attach(model.backbone, sizes)
    toolbox.open(toolbox.slots)
    modules = [p for slot in toolbox.slots for p in toolbox.parameters(slot).values()]

    for parameter in modules:
        torch.nn.init.normal_(parameter, std=0.05)
    model(images).square().mean().backward()

    assert all(parameter.grad.any() for parameter in modules)
    with torch.inference_mode():
        trained = model(images)
        fold(toolbox)
        folded = model(images)
    assert (trained - before).abs().max() > 0.01
    assert torch.allclose(folded, trained, atol=1e-5)


def test_a_backward_gsd_range_is_refused():
    with pytest.raises(InputError) as refusal:
        small_config(gsd_min_m=1.0, gsd_max_m=0.5)

    assert str(refusal.value) == (
        "a GSD range of 1.0 to 0.5 m; expected two positive numbers in ascending order."
    )
