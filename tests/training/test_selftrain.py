import numpy as np
import pytest
import torch
from networks import small_replay

from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.models.view import View
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.training.selftrain import (
    Alignment,
    PseudoLabels,
    ReplaySource,
    both_ways,
    class_mix,
    forget_heights,
    pseudo_label,
    shares,
    strengthen,
)


def test_each_class_keeps_its_surest_share_and_gaps_say_nothing():
    bright = torch.rand(2, 1, 16, 16)
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[0, :8] = False

    pseudo = pseudo_label(torch.cat([bright, 1 - bright], 1), valid, keep=0.5)

    assert torch.all(pseudo.labels[~valid] == UNKNOWN)
    assert torch.all(pseudo.weights[~valid] == 0)
    for value in (0, 1):
        own = pseudo.labels == value
        share = (pseudo.weights[own] > 0).float().mean()
        assert abs(float(share) - 0.5) < 0.05
        assert pseudo.weights[own & (pseudo.weights > 0)].min() > 0.5


def test_a_teacher_sees_an_image_and_its_mirror_image_alike():
    def one_eyed(images):  # its logits depend on the column
        ramp = torch.arange(images.shape[-1], dtype=torch.float32).expand(images[:, :1].shape)
        return torch.cat([images[:, :1] + ramp, images[:, :1] - ramp], 1)

    images = torch.rand(2, 3, 8, 8)

    probabilities = both_ways(one_eyed, images)

    assert torch.allclose(probabilities, both_ways(one_eyed, images.flip(-1)).flip(-1))
    assert torch.allclose(probabilities.sum(1), torch.ones(2, 8, 8))


def test_alignment_brings_a_class_back_that_the_teacher_has_come_to_leave_out():
    wanted = torch.tensor([0.7, 0.3])
    align = Alignment(wanted)
    shy = torch.rand(1, 1, 64, 64) * 0.45  # never the likeliest
    probabilities = torch.cat([1 - shy, shy], 1)
    valid = torch.ones(1, 64, 64, dtype=torch.bool)

    for _ in range(60):
        align.follow(probabilities, valid)
    aligned = align(probabilities)

    assert shares(probabilities, valid)[1] == 0
    assert shares(aligned, valid)[1] > 0.2
    assert torch.allclose(aligned.sum(1), torch.ones(1, 64, 64), atol=1e-6)


def test_alignment_leaves_a_teacher_of_the_wanted_shares_alone():
    probabilities = torch.rand(1, 3, 32, 32).softmax(1)
    valid = torch.ones(1, 32, 32, dtype=torch.bool)

    aligned = Alignment(shares(probabilities, valid))(probabilities)

    assert torch.allclose(aligned, probabilities, atol=1e-5)


def test_pasted_pixels_bring_their_own_labels_and_weight():
    images, donors = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    truth = torch.tensor([[[2, 2, 3, 3]] * 4])
    pseudo = PseudoLabels(
        labels=torch.zeros(1, 4, 4, dtype=torch.long), weights=torch.full((1, 4, 4), 0.3)
    )

    mixed, labels = class_mix(
        images, pseudo, (donors, truth), weight=0.2, rng=np.random.default_rng(0)
    )

    pasted = mixed[:, 0] == 1
    assert pasted.sum() == 8  # one of the two classes
    assert torch.equal(labels.labels[pasted], truth[pasted])
    assert torch.all(labels.weights[pasted] == torch.tensor(0.2))
    assert torch.all(labels.labels[~pasted] == 0)
    assert torch.all(labels.weights[~pasted] == torch.tensor(0.3))


def test_replay_tiles_fill_any_size_with_image_and_labels_in_step():
    source = ReplaySource(small_replay(size_px=64), size_px=100)

    images, labels = source.draw(3, np.random.default_rng(0))

    assert images.shape == (3, 3, 100, 100)
    assert torch.equal(labels[:, :36, :36], labels[:, 64:, 64:])
    assert torch.equal(images[..., :36, :36], images[..., 64:, 64:])


def test_tiles_held_back_for_the_guard_are_never_drawn():
    replay = small_replay(tiles=8)

    source, (held_images, held_labels) = ReplaySource.split(replay, size_px=64, held_back=16)
    images, _ = source.draw(200, np.random.default_rng(0))

    assert held_images.shape == (2, 3, 64, 64)  # at most a quarter
    assert torch.equal(held_labels, torch.from_numpy(replay.labels[:2].astype(np.int64)))
    for held in held_images:
        assert not (images == held).flatten(1).all(1).any()


def test_variation_keeps_range_and_shape_and_repeats_with_the_seed():
    images = torch.rand(4, 3, 20, 20)

    once = strengthen(images, np.random.default_rng(1))
    again = strengthen(images, np.random.default_rng(1))

    assert once.shape == images.shape
    assert once.min() >= 0
    assert once.max() <= 1
    assert torch.equal(once, again)
    assert not torch.equal(once, images)


def test_variation_of_light_leaves_heights_alone():
    images = torch.rand(8, 4, 20, 20)

    varied = strengthen(images, np.random.default_rng(1))

    assert torch.equal(varied[:, 3], images[:, 3])
    assert torch.equal(varied[:, :3], strengthen(images[:, :3], np.random.default_rng(1)))


def test_a_tenth_of_the_tiles_lose_all_their_heights():
    images = torch.rand(2000, 4, 2, 2)

    kept = forget_heights(images, np.random.default_rng(1), bands=3)

    lost = (kept[:, 3] == NO_HEIGHT).flatten(1)
    assert torch.equal(lost.all(1), lost.any(1))
    assert float(lost.all(1).float().mean()) == pytest.approx(0.1, abs=0.03)
    assert torch.equal(kept[:, :3], images[:, :3])
    assert torch.equal(kept[~lost.all(1)], images[~lost.all(1)])


def test_tiles_without_heights_lose_nothing_and_use_up_no_randomness():
    images, rng = torch.rand(20, 3, 2, 2), np.random.default_rng(1)

    kept = forget_heights(images, rng, bands=3)

    assert kept is images
    assert rng.random() == np.random.default_rng(1).random()


def test_replay_tiles_for_a_network_with_heights_have_missing_ones():
    replay = small_replay(tiles=8)

    source, (held_images, _) = ReplaySource.split(replay, size_px=64, held_back=16, heights=True)
    source.view = View(order=(2, 1, 0))
    plain, _ = ReplaySource.split(replay, size_px=64, held_back=16)
    images, _ = source.draw(5, np.random.default_rng(0))

    assert held_images.shape[1] == 3
    assert (images[:, 3] == NO_HEIGHT).all()
    assert torch.equal(images[:, [2, 1, 0]], plain.draw(5, np.random.default_rng(0))[0])
