import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgate_geo.data.augment import (
    mirrored_crop,
    plain_crop,
    random_blocks,
    random_crop,
    resized_apart,
)
from earthgate_geo.data.scenes import resized
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.raster.grid import Size

crops = pytest.mark.parametrize("crop", [random_crop, plain_crop, mirrored_crop])


def item_of(mask, image=None):
    mask = torch.from_numpy(np.array(mask, np.int64))
    shown = (mask.float() / 255).expand(3, -1, -1) if image is None else image
    return {"image": shown.clone(), "mask": mask, "valid": torch.ones_like(mask, dtype=torch.bool)}


def blocks(rows, cols, *, side, values=(0, 1), seed=0):
    """Return a mask of random squares of ``side`` pixels."""
    coarse = np.random.default_rng(seed).choice(values, (-(-rows // side), -(-cols // side)))
    return np.kron(coarse, np.ones((side, side), int))[:rows, :cols]


def drawn(crop, item, crop_px, seeds):
    return [crop(item, crop_px, np.random.default_rng(seed)) for seed in range(seeds)]


@crops
@given(
    rows=st.integers(1, 60),
    cols=st.integers(1, 60),
    crop_px=st.integers(1, 50),
    values=st.sets(st.sampled_from([0, 1, 7, 200, OTHER, UNKNOWN]), min_size=1),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_a_crop_holds_its_patch_s_own_codes_and_brightness_in_0_to_1(
    crop, rows, cols, crop_px, values, seed
):
    item = item_of(blocks(rows, cols, side=5, values=sorted(values), seed=seed))
    item["valid"] = item["mask"] != UNKNOWN

    result = crop(item, crop_px, np.random.default_rng(seed))

    assert result["image"].shape == (3, crop_px, crop_px)
    assert result["mask"].shape == result["valid"].shape == (crop_px, crop_px)
    assert set(result["mask"].unique().tolist()) <= values | {UNKNOWN}
    assert torch.equal(result["valid"], result["mask"] != UNKNOWN)
    assert 0 <= result["image"].min() <= result["image"].max() <= 1
    assert {name: part.dtype for name, part in result.items()} == {
        name: part.dtype for name, part in item.items()
    }


@given(seed=st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_labels_stay_on_their_pixels(seed):
    mask = blocks(90, 110, side=10, seed=seed)
    image = torch.from_numpy(0.3 + 0.4 * mask).float().expand(3, -1, -1)

    crop = random_crop(item_of(mask, image), 48, np.random.default_rng(seed))

    inside = crop["valid"]
    bright, labels = crop["image"].mean(0)[inside], crop["mask"][inside]
    middle = (bright.min() + bright.max()) / 2
    # Half a pixel of blur along the edges of squares of 5 pixels or more is all that may differ.
    assert ((bright > middle) == (labels == 1)).float().mean() > 0.9
    assert torch.equal(labels.unique(), torch.tensor([0, 1]))


def test_an_untouched_crop_is_a_window_of_the_patch():
    pixels = torch.arange(3 * 30 * 40).view(3, 30, 40).float() / 3600
    item = item_of(np.arange(1200).reshape(30, 40) % 250, pixels)

    for crop in drawn(plain_crop, item, 20, 30):
        row, col = divmod(round(float(crop["image"][0, 0, 0]) * 3600), 40)
        assert torch.equal(crop["image"], pixels[:, row : row + 20, col : col + 20])
        assert torch.equal(crop["mask"], item["mask"][row : row + 20, col : col + 20])


def test_untouched_crops_reach_every_place():
    item = item_of(np.arange(9).reshape(3, 3))

    assert {int(crop["mask"]) for crop in drawn(plain_crop, item, 1, 200)} == set(range(9))


@crops
def test_beyond_its_end_a_patch_goes_on_in_its_mean_colour_unknown(crop):
    image = torch.rand((3, 8, 6), generator=torch.Generator().manual_seed(0))

    result = crop(item_of(np.zeros((8, 6)), image), 32, np.random.default_rng(1))

    inside = result["valid"]
    rows, cols = int(inside.any(1).sum()), int(inside.any(0).sum())
    assert inside[:rows, :cols].all()
    assert inside.sum() == rows * cols < 32 * 32
    assert torch.equal(inside, result["mask"] == 0)
    assert (result["mask"][~inside] == UNKNOWN).all()
    mean = result["image"][:, inside].mean(1, keepdim=True)
    torch.testing.assert_close(
        result["image"][:, ~inside], mean.expand(-1, 32 * 32 - rows * cols), atol=1e-6, rtol=0
    )


def test_a_mixed_place_is_taken_where_there_is_one():
    # Three quarters of all places show little but class 0.
    mask = np.zeros((64, 256))
    mask[:, 192:] = np.arange(64) // 8 % 2

    shares = []
    for crop in drawn(random_crop, item_of(mask), 32, 60):
        counts = torch.bincount(crop["mask"][crop["valid"]], minlength=2)
        shares.append(float(counts.max() / counts.sum()))

    assert np.mean(np.array(shares) <= 0.76) > 0.8


def test_every_crop_of_a_fine_mix_is_taken_and_all_its_places_are_reached():
    pixels = torch.arange(64 * 64).view(64, 64).float().expand(3, -1, -1) / 4096
    mask = blocks(64, 64, side=1)

    crops = drawn(random_crop, item_of(mask, pixels), 32, 300)

    counts = [torch.bincount(crop["mask"].flatten(), minlength=2) for crop in crops]
    assert all(count.max() / count.sum() <= 0.75 for count in counts)
    corners = torch.stack([crop["image"].mean(0)[0, 0] for crop in crops])
    assert len(corners.unique()) > 200


def test_unlabelled_pixels_do_not_count_for_a_mix():
    mask = np.full((64, 256), UNKNOWN)
    mask[:, :64] = np.arange(64) // 4 % 2

    crops = drawn(random_crop, item_of(mask), 32, 40)

    labelled = [bool((crop["mask"] != UNKNOWN).any()) for crop in crops]
    assert np.mean(labelled) > 0.9  # a random place would show labels a third of the time


def test_sizes_vary_from_half_to_double_and_half_of_the_crops_are_mirrored():
    item = item_of(np.arange(250) + np.zeros((250, 1)))

    crops = drawn(random_crop, item, 64, 300)

    steps = np.array([int(crop["mask"][0, 63] - crop["mask"][0, 0]) / 63 for crop in crops])
    assert 0.4 < np.mean(steps > 0) < 0.6
    assert 0.48 < np.abs(steps).min() < 0.52
    assert 1.9 < np.abs(steps).max() < 2.05
    assert 0.72 < np.median(np.abs(steps)) < 0.88


def test_colours_vary_and_grey_stays_grey():
    grey = item_of(np.zeros((8, 8)), torch.full((3, 8, 8), 0.5))
    red = item_of(np.zeros((8, 8)), torch.tensor([0.6, 0.4, 0.4])[:, None, None].expand(3, 8, 8))

    greys = torch.stack([crop["image"][:, 0, 0] for crop in drawn(random_crop, grey, 4, 200)])
    reds = torch.stack([crop["image"][:, 0, 0] for crop in drawn(random_crop, red, 4, 200)])

    assert float((greys.max(1).values - greys.min(1).values).max()) < 1e-6
    assert 0.15 < float(greys.min()) < 0.25
    assert 0.85 < float(greys.max()) < 0.94
    saturation = reds.max(1).values - reds.min(1).values
    assert float(saturation.min()) < 0.1
    assert float(saturation.max()) > 0.35
    assert {int(colour.argmax()) for colour in reds} == {0}
    tilt = reds[:, 1] - reds[:, 2]  # hue turns towards yellow and towards purple
    assert float(tilt.min()) < -0.05
    assert float(tilt.max()) > 0.05
    assert 0.02 < float((tilt.abs() < 1e-6).float().mean()) < 0.7


def test_one_time_in_sixteen_no_colour_changes():
    image = torch.tensor([0.6, 0.4, 0.5])[:, None, None].expand(3, 8, 8)

    seen = [
        torch.allclose(crop["image"][:, 0, 0], image[:, 0, 0], atol=1e-6)
        for crop in drawn(random_crop, item_of(np.zeros((8, 8)), image), 4, 400)
    ]

    assert 0.03 < np.mean(seen) < 0.11


@crops
def test_a_crop_repeats_with_its_generator_and_leaves_the_patch_alone(crop):
    item = item_of(blocks(60, 70, side=6))
    before = {name: part.clone() for name, part in item.items()}

    first, again, other = (crop(item, 32, np.random.default_rng(seed)) for seed in (3, 3, 4))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])
    assert all(torch.equal(item[name], before[name]) for name in item)


def test_random_blocks_are_whole_and_begin_in_the_corner():
    mask = random_blocks(50, 70, share=0.5, block_px=16, rng=np.random.default_rng(0))

    assert mask.shape == (50, 70)
    assert 0 < int(mask.sum()) < mask.numel()
    corners = mask[::16, ::16]
    grown = corners.repeat_interleave(16, 0).repeat_interleave(16, 1)[:50, :70]
    assert torch.equal(mask, grown)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_each_block_is_drawn_with_the_wanted_probability(share):
    mask = random_blocks(100, 100, share=share, block_px=1, rng=np.random.default_rng(0))

    assert float(mask.float().mean()) == pytest.approx(share, abs=0.02)


def measured(rows, cols, *, hole=slice(0, 0)):
    """Return a grey item whose heights rise from left to right, with a hole of some columns."""
    heights = torch.linspace(0, 1, cols).expand(1, rows, cols).clone()
    heights[..., hole] = NO_HEIGHT
    image = torch.cat([torch.full((3, rows, cols), 0.5), heights])
    return item_of(np.zeros((rows, cols)), image)


@crops
def test_heights_keep_their_values_and_past_the_patch_there_are_none(crop):
    results = drawn(crop, measured(40, 40, hole=slice(10, 20)), 64, 60)

    assert any(not result["valid"].all() for result in results)
    for result in results:
        heights = result["image"][3]
        assert result["image"].shape == (4, 64, 64)
        assert (heights[~result["valid"]] == NO_HEIGHT).all()
        assert ((heights == NO_HEIGHT) | ((heights >= 0) & (heights <= 1))).all()


def test_colours_vary_on_the_bands_and_a_tenth_of_the_crops_lose_their_heights():
    results = drawn(random_crop, measured(40, 40), 10, 300)

    lost = [bool((result["image"][3] == NO_HEIGHT).all()) for result in results]
    greys = {round(float(result["image"][:3].mean()), 3) for result in results}
    assert 0.05 < np.mean(lost) < 0.16
    assert len(greys) > 100


def test_mirror_images_are_of_whole_crops_along_either_axis():
    item = item_of(np.arange(36).reshape(6, 6))

    seen = {tuple(r["mask"].flatten().tolist()) for r in drawn(mirrored_crop, item, 6, 40)}

    mask = item["mask"]
    ways = [mask, mask.flip(0), mask.flip(1), mask.flip(0, 1)]
    assert seen == {tuple(way.flatten().tolist()) for way in ways}


def test_resizing_averages_the_heights_that_there_are():
    image = measured(4, 4)["image"]
    image[3] = torch.tensor([[0.2, NO_HEIGHT, NO_HEIGHT, NO_HEIGHT]] * 4)

    small = resized_apart(image, lambda channels: resized(channels, Size(2, 2)))

    torch.testing.assert_close(small[3], torch.tensor([[0.2, NO_HEIGHT]] * 2))
