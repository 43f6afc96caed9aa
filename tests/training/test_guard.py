from dataclasses import replace

import numpy as np
import pytest
import torch

from earthgate_geo.metrics import OTHER, UNKNOWN, Confusion
from earthgate_geo.training.guard import Evidence, KnownLabels, against, gather, label_fit

SOURCE = Evidence(
    agreement=0.7, confidence=0.6, replay_miou=0.5, label_probabilities=None, shares=(0.5, 0.5)
)
BETTER = replace(SOURCE, agreement=0.8)


def test_a_model_that_agrees_more_with_itself_and_forgot_nothing_is_kept():
    assert against(SOURCE, BETTER) == []


def test_a_model_that_is_hardly_steadier_is_refused():
    assert against(SOURCE, replace(SOURCE, agreement=0.73)) == [
        "the adapted model agrees hardly more with itself than the source model"
    ]


def test_a_model_that_collapsed_to_one_class_is_refused_however_steady():
    assert against(SOURCE, replace(BETTER, agreement=1.0, shares=(1.0, 0.0))) == [
        "the class shares moved too far",
        "a class lost more than half of its share",
    ]


def test_a_rare_class_may_fade_but_a_common_one_may_not_lose_half():
    rare = replace(SOURCE, shares=(0.99, 0.01))
    common = replace(SOURCE, shares=(0.9, 0.1))

    assert not against(rare, replace(BETTER, shares=(1.0, 0.0)))
    assert not against(common, replace(BETTER, shares=(0.94, 0.06)))
    assert against(common, replace(BETTER, shares=(0.96, 0.04)))


def test_a_model_that_forgot_the_replay_tiles_is_refused():
    assert against(SOURCE, replace(BETTER, replay_miou=0.4))


def test_labels_outweigh_agreement_and_replay():
    worse = replace(SOURCE, label_probabilities=(0.4,))

    assert not against(worse, replace(SOURCE, agreement=0.6, label_probabilities=(0.5,)))
    assert not against(worse, replace(SOURCE, replay_miou=0.1, label_probabilities=(0.5,)))
    assert against(worse, replace(BETTER, label_probabilities=(0.4,)))


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ((0.5, 0.8), True),  # a loss within the error of two tiles
        ((0.5, 0.6), False),
        ((0.6, 0.7), False),  # nothing happened
        ((0.9, 0.6), True),
    ],
)
def test_labels_refuse_what_clearly_lost(after, kept):
    source = replace(SOURCE, label_probabilities=(0.6, 0.7))

    assert bool(against(source, replace(BETTER, label_probabilities=after))) == (not kept)


def test_evidence_of_a_network_that_sees_brightness():
    def network(images):
        bright = images.mean(1, keepdim=True)
        return torch.cat([bright - 0.5, 0.5 - bright], 1) * 100

    image = torch.cat([torch.full((3, 8, 4), 0.05), torch.full((3, 8, 4), 0.95)], 2)
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[:, 0] = False
    truth = torch.cat([torch.ones(8, 4), torch.zeros(8, 4)], 1).long()

    evidence = gather(
        network,
        [(image, valid)],
        classes=("bright", "dark"),
        labels=KnownLabels([truth], [0, 1]),
    )

    assert evidence.label_probabilities == (1.0,)
    assert evidence.shares == (32 / 56, 24 / 56)
    assert evidence.agreement > 0.9
    assert evidence.replay_miou is None


def _buildings_among_five_classes(*, found, false_alarms):
    """Count 100 labelled pixels of buildings, and 100 of whatever else there is."""
    truth, said = np.repeat([0, OTHER], 100), np.full(200, 3)
    said[:found] = said[100 : 100 + false_alarms] = 0
    confusion = Confusion("abcde", named=[0])
    confusion.add(truth, said)
    return confusion


def test_a_false_alarm_weighs_by_how_much_of_the_scene_it_spoils():
    readily = _buildings_among_five_classes(found=95, false_alarms=10)
    sparsely = _buildings_among_five_classes(found=80, false_alarms=2)
    shares = (0.1, 0.2, 0.3, 0.4, 0.0)

    assert label_fit(readily, None) > label_fit(sparsely, None)
    assert label_fit(readily, shares) < label_fit(sparsely, shares)
    assert label_fit(sparsely, shares) == pytest.approx(
        np.mean([0.08 / (0.1 + 0.9 * 0.02), 0.9 * 0.98 / (0.9 + 0.1 * 0.2)])
    )


def test_labels_of_nothing_named_are_a_score_all_the_same():
    confusion = Confusion("ab", named=[0])
    assert label_fit(confusion, None) is None
    confusion.add(np.full(10, OTHER), np.repeat([0, 1], 5))

    assert label_fit(confusion, (0.5, 0.5)) == 0.5


def test_labels_of_other_have_the_probability_of_all_classes_that_none_names():
    def network(images):
        return torch.log(torch.tensor([0.5, 0.3, 0.2])).view(1, 3, 1, 1).expand(1, 3, 2, 2)

    tiles = [(torch.rand(3, 2, 2), torch.ones(2, 2) > 0)] * 3
    masks = [torch.full((2, 2), UNKNOWN) for _ in tiles]
    masks[0][0, 0], masks[1][0] = OTHER, torch.tensor([OTHER, 0])

    def seen(named):
        labels = KnownLabels(masks, named)
        return gather(network, tiles, classes="abc", labels=labels).label_probabilities

    assert seen([0]) == pytest.approx((0.5, 0.5))
    assert seen([0, 1]) == pytest.approx((0.2, 0.35))
    assert seen([0, 1, 2]) == pytest.approx((0.5,))
