import math

import pytest
import torch
from torch.nn import functional

from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.training.losses import partial_cross_entropy, soft_dice


def test_full_labels_give_the_plain_cross_entropy():
    logits = torch.randn(2, 5, 8, 8)
    labels = torch.randint(5, (2, 8, 8))
    labels[0, :4] = UNKNOWN

    loss = partial_cross_entropy(logits, labels)

    wanted = functional.cross_entropy(logits, labels, ignore_index=UNKNOWN)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_other_counts_with_the_summed_probability_of_the_unnamed_classes():
    logits = torch.log(torch.tensor([0.5, 0.2, 0.3])).view(1, 3, 1, 1)
    named = torch.tensor([True, False, False])

    other = partial_cross_entropy(logits, torch.full((1, 1, 1), OTHER), named=named)
    building = partial_cross_entropy(logits, torch.zeros((1, 1, 1), dtype=torch.long), named=named)

    assert other.item() == pytest.approx(-math.log(0.5), rel=1e-5)
    assert building.item() == pytest.approx(-math.log(0.5), rel=1e-5)


def test_weights_choose_which_pixels_count():
    logits = torch.randn(1, 3, 1, 2)
    labels = torch.tensor([[[0, 2]]])

    loss = partial_cross_entropy(logits, labels, weights=torch.tensor([[[0.0, 1.0]]]))

    wanted = functional.cross_entropy(logits[..., 1:], labels[..., 1:])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_nothing_known_is_a_loss_of_zero():
    assert partial_cross_entropy(torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), UNKNOWN)) == 0


def test_dice_is_near_zero_for_a_sure_hit_and_near_one_for_a_sure_miss():
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    sure = torch.zeros(1, 2, 32, 32)
    sure[:, 0] = 20

    assert soft_dice(sure, labels, target=0) < 0.01
    assert soft_dice(-sure, labels, target=0) > 0.99
