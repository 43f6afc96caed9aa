import pytest
import torch
from networks import FAMILIES, small_segmenter
from torch.nn import functional

from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.reconstruction import ReconstructionHead


def _head(channels, **changes):
    torch.manual_seed(0)
    return ReconstructionHead(channels, **changes)


def _maps(channels, *, batch=2):
    sides = (16, 8, 4, 2)
    return [torch.randn(batch, c, s, s + 1) for c, s in zip(channels, sides, strict=True)]


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_the_maps_of_every_family_become_an_image(name, options):
    model = small_segmenter(backbone=BackboneConfig(name=name, options=options))
    head = _head(model.backbone.channels, width=8)

    with torch.inference_mode():
        image = head(model.features(torch.rand(2, 3, 64, 96))[0], size=(40, 60))

    assert image.shape == (2, 3, 40, 60)


def test_at_the_published_sizes_it_has_the_published_parameters():
    head = _head((1024,) * 4)

    entry, around = 1024 * 256 + 256, 4 * (256 * 256 * 9 + 256)
    assert sum(p.numel() for p in head.parameters()) == 3 * entry + around + 256 * 3 + 3


def test_adding_resized_parts_is_a_convolution_of_the_resized_maps_held_together():
    channels = (8, 12, 24, 24)
    head, maps = _head(channels, width=16, bands=4), _maps(channels)

    image = head(maps, size=(20, 30))

    resized = []
    for level in maps:
        x = head.enter[str(level.shape[1])](level)
        x = torch.cat([around(x) for around in head.around], 1)
        x = functional.relu(head.join(x))
        resized.append(functional.interpolate(x, size=(20, 30), mode="bilinear"))
    kernel = torch.cat([add.weight for add in head.add], 1)
    joined = functional.conv2d(torch.cat(resized, 1), kernel, head.add[0].bias)
    torch.testing.assert_close(image, head.paint(functional.relu(joined)))


def test_dilations_are_1_6_12_and_18():
    assert [around.dilation for around in _head((8,)).around] == [
        (1, 1),
        (6, 6),
        (12, 12),
        (18, 18),
    ]


def test_every_weight_learns():
    channels = (8, 12, 24, 24)
    head = _head(channels, width=8)

    head(_maps(channels), size=(16, 16)).square().mean().backward()

    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
