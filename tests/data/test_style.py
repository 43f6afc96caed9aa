import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from style_images import smooth_noise

from earthgate_geo.data.style import (
    StatisticsStyle,
    StyleBank,
    StyleInjector,
    build_bank,
)
from earthgate_geo.errors import InputError
from earthgate_geo.recipe import Styles

STYLE = StatisticsStyle()
SCALES = torch.tensor([0.2, 2.0])[:, None, None, None]
every_band_count = pytest.mark.parametrize("bands", [1, 2, 3, 5])


def moments(image):
    flat = image.flatten(1).double().numpy()
    return flat.mean(1), np.cov(flat, bias=True).reshape(len(flat), len(flat))


def bank_of(images):
    return build_bank(STYLE, images)


def injector(bands=3, **choice):
    bank = bank_of(smooth_noise(12, bands=bands, seed=5))
    return StyleInjector(STYLE, bank, Styles(**choice))


def share_of_fast_waves(image):
    power = np.abs(np.fft.fft2(image.mean(0).double().numpy())) ** 2
    cycles = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in image.shape[1:]), indexing="ij"))
    return power[cycles > 0.2].sum() / power[cycles > 0].sum()


@every_band_count
@given(rows=st.integers(1, 40), cols=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_an_image_in_its_own_style_is_the_image(bands, rows, cols, seed):
    images = 0.1 + 0.8 * torch.from_numpy(
        np.random.default_rng(seed).random((2, bands, rows, cols))
    )
    images = images.float()

    same = STYLE.restyle(images, STYLE.embed(images))

    assert float((same - images).abs().max()) < 1e-4


@every_band_count
def test_a_flat_image_has_a_style_and_keeps_it(bands):
    images = torch.full((1, bands, 24, 20), 0.25)

    embedding = STYLE.embed(images)

    assert embedding.isfinite().all()
    torch.testing.assert_close(STYLE.restyle(images, embedding), images, atol=1e-5, rtol=0)


@every_band_count
def test_a_restyled_image_has_the_colours_of_the_other(bands):
    image, other = smooth_noise(2, bands=bands, spread=0.06, seed=2)
    other = 0.45 + (other - 0.5) * 1.1

    restyled = STYLE.restyle(image[None], STYLE.embed(other[None]))[0]

    assert 0 < restyled.min() <= restyled.max() < 1
    (mean, covariance), (wanted_mean, wanted) = moments(restyled), moments(other)
    np.testing.assert_allclose(mean, wanted_mean, atol=1e-4)
    np.testing.assert_allclose(covariance, wanted, atol=3e-4)


def test_a_restyled_image_takes_the_spectrum_of_the_other_halfway_and_whole():
    smooth, fine = (
        smooth_noise(1, length_px=length, spread=0.05, side_px=96)[0] for length in (0.9, 0.6)
    )
    own, wanted = STYLE.embed(smooth[None]), STYLE.embed(fine[None])

    shares = [
        share_of_fast_waves(STYLE.restyle(smooth[None], torch.lerp(own, wanted, weight))[0])
        for weight in (0, 0.5, 1)
    ]

    assert shares[0] == pytest.approx(share_of_fast_waves(smooth), rel=1e-3)
    assert shares[0] * 1.2 < shares[1] < shares[2] / 1.2
    assert shares[2] == pytest.approx(share_of_fast_waves(fine), rel=0.1)


def test_a_style_does_not_depend_on_the_size_of_the_image():
    (image,) = smooth_noise(1, side_px=256, length_px=2)

    whole, part = (STYLE.embed(each[None]) for each in (image, image[:, :128, :160]))

    assert float((whole - part).abs().max()) < 0.5
    assert float((whole - part).abs().mean()) < 0.1


def test_what_an_image_hardly_shows_is_amplified_by_two_and_a_half_at_most():
    faint, strong = 0.5 + (torch.stack(smooth_noise(2, spread=0.1, seed=3)) - 0.5) * SCALES

    restyled = STYLE.restyle(faint[None], STYLE.embed(strong[None]))[0]

    (_, own), (_, covariance) = moments(faint), moments(restyled)
    assert (covariance.diagonal() / own.diagonal()).max() < 2.7**2
    assert np.trace(covariance) / np.trace(own) > 2.3**2


def test_an_edge_at_the_border_is_no_texture():
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)

    spectrum = STYLE.embed(ramp)[0, -16:]

    assert (spectrum[-8:].diff() < 0).all()
    assert spectrum[-1] < spectrum[0] - 7


@every_band_count
def test_a_batch_is_restyled_as_its_images_alone(bands):
    images = torch.stack(smooth_noise(3, bands=bands))
    style, rng, again = injector(bands, strength=1.0), *map(np.random.default_rng, (7, 7))

    together = style(images, rng)

    alone = torch.cat([style(image[None], again) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not torch.equal(together[0] - images[0], together[1] - images[1])


def test_seven_of_ten_blocks_are_styled_and_the_others_stay_bit_for_bit():
    images = torch.stack(smooth_noise(2, side_px=330, spread=0.05))
    choice = Styles(strength=1.0)

    styled = injector(strength=1.0)(images, np.random.default_rng(1))

    changed = (styled != images).any(1).float()
    side = choice.block_px
    blocks = [
        changed[image, row : row + side, col : col + side].mean()
        for image in range(2)
        for row in range(0, 330, side)
        for col in range(0, 330, side)
    ]
    whole = [float(share) for share in blocks if share > 0]
    assert min(whole) > 0.95  # a pixel may meet its own value
    assert 0.55 < len(whole) / len(blocks) < 0.85
    assert choice.styled == 0.7
    assert 0 <= styled.min() <= styled.max() <= 1


def test_without_strength_or_blocks_nothing_is_styled():
    images = torch.stack(smooth_noise(2))

    untouched = injector(styled=0.0, strength=1.0)(images, np.random.default_rng(0))
    own = injector(styled=1.0, strength=0.0)(images, np.random.default_rng(0))

    assert torch.equal(untouched, images)
    torch.testing.assert_close(own, images, atol=1e-4, rtol=0)


def test_styled_images_repeat_with_their_generator_and_cannot_be_trained_through():
    images = torch.stack(smooth_noise(2)).requires_grad_()
    style = injector(strength=0.5)

    first, again, other = (style(images, np.random.default_rng(seed)) for seed in (3, 3, 4))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_half_precision_around_it_does_not_reach_a_style():
    images = torch.stack(smooth_noise(2))
    style = injector(strength=0.5)

    with torch.autocast("cpu", torch.bfloat16):
        inside = style(images, np.random.default_rng(0))

    assert torch.equal(inside, style(images, np.random.default_rng(0)))


def test_simulated_styles_have_the_mean_and_covariance_of_the_bank():
    bank = bank_of(smooth_noise(40, seed=9))
    style, rng = StyleInjector(STYLE, bank, Styles()), np.random.default_rng(0)

    drawn = torch.stack([style._simulated(rng) for _ in range(4000)]).double().numpy()

    scales = bank.covariance.diagonal().sqrt().numpy()
    np.testing.assert_allclose((drawn.mean(0) - bank.mean.numpy()) / scales, 0, atol=0.08)
    relative = (np.cov(drawn.T) - bank.covariance.numpy()) / np.outer(scales, scales)
    np.testing.assert_allclose(relative, 0, atol=0.1)


def test_a_bank_keeps_mean_and_variances_and_shrinks_correlations_the_less_it_has_seen():
    images = smooth_noise(200, side_px=16, seed=2)
    embeddings = torch.cat([STYLE.embed(image[None]) for image in images]).double().numpy()
    kept = []

    for count in (5, 40, 200):
        bank = bank_of(images[:count])

        sample = np.cov(embeddings[:count].T)
        np.testing.assert_allclose(bank.mean, embeddings[:count].mean(0), atol=1e-9)
        np.testing.assert_allclose(bank.covariance.diagonal(), sample.diagonal(), atol=1e-9)
        assert torch.linalg.eigvalsh(bank.covariance).min() > -1e-12
        between = ~np.eye(len(sample), dtype=bool) & (np.abs(sample) > 1e-9)
        (share,) = np.unique((bank.covariance.numpy()[between] / sample[between]).round(6))
        kept.append(float(share))

    assert kept == sorted(kept)
    assert kept[0] < 0.2
    assert kept[-1] > 0.7


def test_too_few_images_and_mixed_bands_make_no_bank():
    sentences = []
    for images in ([], smooth_noise(1), [*smooth_noise(2), *smooth_noise(1, bands=1)]):
        with pytest.raises(InputError) as refused:
            bank_of(images)
        sentences.append(str(refused.value))

    assert sentences == [
        "no image to take styles from; expected two or more.",
        "one image to take styles from; expected two or more.",
        "images of 3 and of 1 bands; expected one number.",
    ]


def test_images_and_styles_of_other_bands_or_kinds_do_not_meet():
    bank = bank_of(smooth_noise(2, bands=1))
    foreign = StyleBank(
        kind="published", bands=3, count=2, mean=bank.mean, covariance=bank.covariance
    )

    with pytest.raises(InputError) as bands:
        StyleInjector(STYLE, bank, Styles())(torch.rand(1, 3, 8, 8), np.random.default_rng(0))
    with pytest.raises(InputError) as kinds:
        StyleInjector(STYLE, foreign, Styles())

    assert str(bands.value) == "images of 3 bands and styles of 1; expected one number."
    assert str(kinds.value) == "a bank of published styles; expected statistics."
