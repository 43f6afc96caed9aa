import numpy as np
import pytest
import torch

from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.training.crops import TilePool

SIDE = 64


def _pool(gsd_m, *, levels=None):
    """Tiles of one grey each, by default their number times ten."""
    levels = np.arange(len(gsd_m)) * 10 if levels is None else np.array(levels)
    labels = np.broadcast_to(levels[:, None, None], (len(gsd_m), SIDE, SIDE)).astype(np.uint8)
    images = np.repeat(labels[:, None], 3, axis=1)
    return TilePool(images, labels, np.array(gsd_m, np.float32), share=1.0)


def _stripes(period_px):
    """One tile of upright stripes that are two classes."""
    labels = (np.arange(SIDE) // (period_px // 2) % 2).astype(np.uint8)
    labels = np.broadcast_to(labels, (1, SIDE, SIDE)).copy()
    images = np.repeat(labels[:, None] * np.uint8(200), 3, axis=1)
    return TilePool(images, labels, np.array([0.1], np.float32), share=1.0)


def _changes(labels):
    """Borders of upright or level stripes along a crop."""
    across = max((labels.diff(dim=axis) != 0).sum(axis).max() for axis in (0, 1))
    return int(across)


def test_a_crop_is_an_image_in_0_to_1_with_a_class_for_every_pixel():
    pool = _pool([0.1, 0.1], levels=[UNKNOWN, OTHER])

    image, labels = pool.crop(48, np.random.default_rng(0), gsd_m=(0.05, 1.0))

    assert (image.dtype, image.shape) == (torch.float32, (3, 48, 48))
    assert (labels.dtype, labels.shape) == (torch.int64, (48, 48))
    assert set(labels.unique().tolist()) <= {OTHER, UNKNOWN}
    assert 0.99 < image.max() <= 1


def test_the_same_draw_gives_the_same_crop():
    pool = _pool([0.1, 0.2, 0.4])

    crops = [pool.crop(48, np.random.default_rng(5), gsd_m=(0.05, 1.0)) for _ in range(2)]

    assert all(torch.equal(first, second) for first, second in zip(*crops, strict=True))


@pytest.mark.parametrize(("seen_m", "borders"), [(0.05, 3), (0.1, 6), (0.2, 12)])
def test_what_is_on_the_ground_looks_as_large_as_the_drawn_ground_size_says(seen_m, borders):
    pool = _stripes(16)

    found = [
        _changes(pool.crop(48, np.random.default_rng(n), gsd_m=(seen_m, seen_m))[1])
        for n in range(6)
    ]

    # Tiles side by side may add a border, or hide one.
    assert np.median(found) == pytest.approx(borders, abs=1.5)


def test_no_tile_is_enlarged_more_than_twice():
    pool = _stripes(16)

    near = pool.crop(48, np.random.default_rng(0), gsd_m=(0.01, 0.01))
    twice = pool.crop(48, np.random.default_rng(0), gsd_m=(0.05, 0.05))

    assert all(torch.equal(first, second) for first, second in zip(near, twice, strict=True))


def test_a_crop_beyond_its_tile_is_filled_with_tiles_that_are_neither_finer_nor_too_coarse():
    fine, middle, coarse = {0, 10, 20}, {30, 40, 50}, {60}
    pool = _pool([0.1] * 3 + [0.2] * 3 + [0.8])

    # Here the tiles are 21, 43 and 171 px large; the last would be enlarged too far beside others.
    seen = [
        set(pool.crop(64, np.random.default_rng(n), gsd_m=(0.3, 0.3))[1].unique().tolist())
        for n in range(70)
    ]

    assert all(present <= fine | middle or present == coarse for present in seen)
    assert 18 < sum(present <= middle for present in seen) < 42
    assert any(present & fine and present & middle for present in seen)


def test_image_and_labels_show_the_same_place():
    pool = _pool(np.linspace(0.05, 0.5, 20))

    for n in range(20):
        image, labels = pool.crop(48, np.random.default_rng(n), gsd_m=(0.05, 1.0))

        assert torch.equal((image[0] * 255).round().long(), labels)
