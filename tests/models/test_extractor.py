import pytest
import torch
from networks import FAMILIES, small_segmenter
from torch import nn
from torch.nn import functional

from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.extractor import Extractor

CHANNELS = (8, 12, 24, 24)


def _extractor(*, woken=True):
    torch.manual_seed(0)
    extractor = Extractor(CHANNELS, width=32)
    for injector in extractor.injectors if woken else ():
        nn.init.normal_(injector.out.weight)
    return extractor


def _inputs(*, batch=2):
    generator = torch.Generator().manual_seed(1)
    sizes = zip(CHANNELS, (16, 8, 4, 2), strict=True)
    maps = [torch.randn(batch, c, s, s, generator=generator) for c, s in sizes]
    return torch.randn(batch, 3, 64, 64, generator=generator), maps


def test_a_new_extractor_changes_nothing():
    images, maps = _inputs()

    enriched = _extractor(woken=False)(images, maps)

    assert all(torch.equal(one, other) for one, other in zip(enriched, maps, strict=True))


def test_it_is_five_convolutions_with_relu_to_stride_16():
    extractor = _extractor()

    kinds = [type(part) for stage in extractor.look for part in stage]
    assert kinds == [nn.Conv2d, nn.ReLU] * 5
    assert extractor.look(torch.rand(1, 3, 96, 64)).shape == (1, 32, 6, 4)


def test_all_four_maps_are_enriched_by_what_was_seen():
    images, maps = _inputs()
    extractor = _extractor()

    enriched, others = extractor(images, maps), extractor(images.flip(-1), maps)

    for level, one, other in zip(maps, enriched, others, strict=True):
        assert one.shape == level.shape
        assert not torch.allclose(one, level, atol=0.01)
        assert not torch.allclose(one, other, atol=0.001)


def test_what_was_seen_asks_and_the_map_answers():
    images, maps = _inputs(batch=1)
    extractor = _extractor()

    enriched = extractor(images, maps)[2]

    inject, level = extractor.injectors[2], maps[2]  # a map of the extractor's own grid
    asked = functional.layer_norm(extractor.look(images)[0].flatten(1).T, (32,))
    tokens = functional.layer_norm(level[0].flatten(1).T, (24,))
    attention = (inject.query(asked) @ inject.key(tokens).T / 24**0.5).softmax(1)
    added = inject.out(attention @ inject.value(tokens)).T.reshape(level.shape)
    torch.testing.assert_close(enriched, level + added)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    images, maps = _inputs(batch=3)
    extractor = _extractor()

    whole = extractor(images, maps)
    alone = extractor(images[1:2], [level[1:2] for level in maps])

    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one[1:2], other)


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_the_maps_of_every_family_keep_their_shape(name, options):
    model = small_segmenter(backbone=BackboneConfig(name=name, options=options))
    extractor = Extractor(model.backbone.channels, width=model.backbone.dim)

    with torch.inference_mode():
        images = model.scaled(torch.rand(1, 3, 60, 96))
        maps = model.backbone(images)
        enriched = extractor(images, maps)

    assert [x.shape for x in enriched] == [x.shape for x in maps]
