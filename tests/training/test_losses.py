import math

import pytest
import torch
from networks import small_segmenter
from torch.nn import functional

from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.training.losses import partial_cross_entropy, soft_dice, task_loss

SET_HEAD = HeadConfig(kind="mask2former", width=32, queries=6, pixel_layers=1, decoder_layers=1)


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


@pytest.mark.parametrize("named", [None, torch.tensor([True, True, True])])
def test_other_says_nothing_where_the_labels_name_every_class(named):
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.randint(3, (1, 4, 4))
    labels[:, :2] = OTHER

    loss = partial_cross_entropy(logits, labels, named=named)

    wanted = functional.cross_entropy(logits[:, :, 2:], labels[:, 2:])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("head", [HeadConfig(width=16), SET_HEAD], ids=["fpn", "mask2former"])
def test_no_head_learns_from_other_where_the_labels_name_every_class(head):
    model = small_segmenter(head=head)
    images, labels = torch.rand(1, 3, 48, 48), torch.randint(5, (1, 48, 48))
    losses = []
    for silent in (OTHER, UNKNOWN):
        labels[:, :20] = silent
        torch.manual_seed(0)
        losses.append(task_loss(model, images, labels))

    assert torch.equal(*losses)


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


@pytest.mark.parametrize("kind", ["linear", "fpn"])
def test_a_head_of_logits_learns_by_their_cross_entropy(kind):
    model = small_segmenter(head=HeadConfig(kind=kind, width=16))
    images, labels = torch.rand(2, 3, 50, 33), torch.randint(5, (2, 50, 33))
    labels[0, :20] = OTHER
    known = {"named": torch.arange(5) > 1, "weights": torch.rand(2, 50, 33)}

    loss = task_loss(model, images, labels, **known)

    assert torch.equal(loss, partial_cross_entropy(model(images), labels, **known))


def test_a_head_with_a_loss_of_its_own_learns_by_it_and_knows_nothing_beyond_the_image():
    model = small_segmenter(head=SET_HEAD)
    images, labels = torch.rand(2, 3, 50, 33), torch.randint(5, (2, 50, 33))
    known = {"named": torch.arange(5) > 1, "weights": torch.rand(2, 50, 33)}
    torch.manual_seed(0)
    loss = task_loss(model, images, labels, **known)

    maps, _ = model.features(images)
    whole = torch.full((2, 64, 48), UNKNOWN)
    whole[:, :50, :33] = labels
    weights = torch.zeros(2, 64, 48)
    weights[:, :50, :33] = known["weights"]
    torch.manual_seed(0)
    wanted = model.head.set_loss(maps, whole, named=known["named"], weights=weights)

    assert torch.equal(loss, wanted)


def test_nothing_known_is_a_task_loss_of_zero_that_can_be_followed_back():
    model = small_segmenter(head=SET_HEAD)

    loss = task_loss(model, torch.rand(1, 3, 48, 48), torch.full((1, 48, 48), UNKNOWN))
    loss.backward()

    assert loss == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
