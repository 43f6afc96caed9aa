import numpy as np
import pytest
import torch

from earthgate_geo.training import radiometry

EFFECTS = [
    radiometry.vary_haze,
    radiometry.vary_blur,
    radiometry.vary_sharpness,
    radiometry.vary_tone,
    radiometry.vary_color,
    radiometry.vary_noise,
    radiometry.vary_bands,
    radiometry.vary_compression,
    radiometry.vary_sensor,
]


def _image(*, side=64):
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(3))


def _each(effect, image, *, count=40):
    return [effect(image, np.random.default_rng(n)) for n in range(count)]


@pytest.mark.parametrize("effect", EFFECTS)
def test_an_effect_changes_an_image_within_0_to_1_by_its_draw_alone(effect):
    image = _image()
    kept = image.clone()

    first, again = _each(effect, image), _each(effect, image)

    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(each.shape == image.shape and each.dtype == torch.float32 for each in first)
    assert all(each.min() >= 0 and each.max() <= 1 for each in first)
    assert len({float(each.sum()) for each in first}) > 3
    assert torch.equal(image, kept)


def test_haze_takes_contrast_and_is_even_or_drifts():
    black = torch.zeros(3, 64, 64)

    hazy = _each(radiometry.vary_haze, _image())
    over_black = _each(radiometry.vary_haze, black)

    assert all(each.std() < _image().std() for each in hazy)
    even = [each for each in over_black if each[0].std() < 1e-6]
    assert 8 < len(even) < 32


@pytest.mark.parametrize("effect", [radiometry.vary_blur, radiometry.vary_sharpness])
def test_what_takes_sharpness_keeps_brightness(effect):
    image = _image()

    for soft in _each(effect, image):
        assert soft.diff(dim=2).abs().mean() < image.diff(dim=2).abs().mean()
        torch.testing.assert_close(soft.mean(), image.mean(), atol=0.01, rtol=0)


def test_bands_are_grey_one_of_three_or_in_another_order():
    image = _image()
    grey, kinds = image.mean(0), set()

    for shown in _each(radiometry.vary_bands, image):
        if torch.equal(shown[0], shown[1]):
            assert torch.equal(shown[1], shown[2])
            kinds.add("grey" if torch.equal(shown[0], grey) else "one")
        else:
            assert sorted(float(b.sum()) for b in shown) == sorted(float(b.sum()) for b in image)
            kinds.add("order")

    assert kinds == {"grey", "one", "order"}


def test_compression_loses_detail_and_stays_near():
    image = torch.linspace(0, 1, 64).expand(3, 64, 64) * 0.8 + _image() * 0.05

    for coded in _each(radiometry.vary_compression, image):
        assert 0 < (coded - image).abs().mean() < 0.03


def test_noise_has_no_bias():
    grey = torch.full((3, 64, 64), 0.5)

    noisy = _each(radiometry.vary_noise, grey)

    assert all(0.008 < each.std() < 0.065 for each in noisy)
    assert all(abs(each.mean() - 0.5) < 0.002 for each in noisy)


def test_some_images_stay_nearly_as_they_are():
    image = _image()

    change = [(each - image).abs().mean() for each in _each(radiometry.vary_sensor, image)]

    assert min(change) < 0.05
    assert max(change) > 0.2
