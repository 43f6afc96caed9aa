import pytest
import torch

from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.training.calibration import (
    Views,
    calibrate,
    estimate_accuracy,
    expected_calibration_error,
    look,
)
from earthgate_geo.training.guard import KnownLabels

PIXELS = 20_000


def _views(*agreeing, confidence=0.9, right=None):
    """Make views of ten pixels of two classes: so many are alike in each further view and right."""
    logit = float(torch.logit(torch.tensor(confidence)))
    first = torch.tensor([logit, 0.0]).repeat(10, 1)
    others = [torch.where(torch.arange(10)[:, None] < n, first, first.flip(1)) for n in agreeing]
    allowed = torch.zeros(10, 2, dtype=torch.bool)
    if right is not None:
        allowed[:right, 0] = allowed[right:, 1] = True
    return Views(logits=torch.stack([first, *others]), allowed=allowed)


def _overconfident(by, *, labels):
    """Make logits that are ``by`` times too large for their labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(PIXELS, 3, generator=generator)
    drawn = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)
    allowed = torch.zeros(PIXELS, 3, dtype=torch.bool).scatter_(1, drawn, value=True)
    if labels == "first or other":
        allowed[:, 2] = allowed[:, 1] = allowed[:, 1:].any(1)
    return Views(logits=(by * logits).expand(2, -1, -1), allowed=allowed)


@pytest.mark.parametrize("labels", ["all", "first or other"])
@pytest.mark.parametrize("by", [1.2, 2.5])
def test_labels_find_by_how_much_logits_are_too_large(by, labels):
    found = calibrate(_overconfident(by, labels=labels))

    assert found.basis == "labels"
    assert found.temperature == pytest.approx(by, rel=0.05)


def test_calibrated_confidence_misses_by_little_and_the_raw_one_by_much():
    views = _overconfident(2.5, labels="all")

    found = calibrate(views)

    assert found.error < 0.02
    assert expected_calibration_error(views.confidence(), views.correct) > 0.1
    assert found.accuracy == pytest.approx(found.confidence, abs=0.01)


def test_without_labels_mean_confidence_becomes_the_agreement_with_itself():
    found = calibrate(_views(7, confidence=0.95))

    assert found.basis == "agreement"
    assert found.error is None
    assert found.accuracy == pytest.approx(0.7)
    assert found.confidence == pytest.approx(0.7, abs=1e-4)
    assert found.temperature > 1


def test_agreement_is_the_mean_over_all_pairs_of_views():
    assert _views(8).agreement == pytest.approx(0.8)
    assert _views(8, 6).agreement == pytest.approx((0.8 + 0.6 + 0.8) / 3)


def test_replay_tiles_say_how_much_less_often_a_model_is_right_than_it_agrees():
    replay = _views(9, right=6)

    assert estimate_accuracy(_views(9), replay=replay) == pytest.approx(0.6)
    assert 0.2 < estimate_accuracy(_views(7), replay=replay) < 0.6
    assert calibrate(_views(9), replay=replay).basis == "replay"


def test_full_agreement_is_no_infinity():
    assert estimate_accuracy(_views(10), replay=_views(10, right=10)) == pytest.approx(0.999)


def test_agreement_never_makes_a_model_surer_and_never_flattens_it_beyond_5():
    assert calibrate(_views(10)).temperature == 1
    assert calibrate(_views(5)).temperature == pytest.approx(5)


def test_labels_of_what_is_plain_to_see_make_no_model_surer():
    found = calibrate(_overconfident(0.2, labels="all"))

    assert found.temperature == pytest.approx(1)


def test_a_handful_of_labelled_pixels_sets_no_temperature():
    assert calibrate(_views(7, right=10)).basis == "agreement"


def test_calibration_error_is_the_weighted_distance_in_every_bin():
    confidence = torch.tensor([0.9] * 10 + [0.6] * 10)
    correct = torch.tensor([True] * 5 + [False] * 5 + [True] * 10)

    assert expected_calibration_error(confidence, correct) == pytest.approx(0.4)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(0.0, abs=1e-6)
    assert expected_calibration_error(torch.ones(3), torch.ones(3)) == 0.0


def _bright_or_dark(images):
    bright = images.mean(1, keepdim=True)
    return torch.cat([bright - 0.5, 0.5 - bright], 1) * 100


def test_views_are_of_the_same_pixels_and_of_valid_ones_alone():
    image = torch.full((3, 8, 12), 0.05)
    image[:, :2], image[:, :, 9:] = 0.95, 0.95
    valid = torch.ones(8, 12, dtype=torch.bool)
    valid[:, 0] = False

    views = look(_bright_or_dark, [(image, valid)])

    assert views.logits.shape == (2, 8 * 11, 2)
    assert views.agreement == 1.0
    assert views.known.logits.shape[1] == 0


def test_labels_allow_their_class_and_other_allows_what_they_do_not_name():
    def of_four(images):
        return torch.zeros(len(images), 4, *images.shape[2:])

    labels = torch.tensor([[1, OTHER], [UNKNOWN, UNKNOWN]])
    tile = (torch.zeros(3, 2, 2), torch.tensor([[True, True], [True, False]]))

    known = look(of_four, [tile], labels=KnownLabels([labels], [1])).known

    assert {tuple(row) for row in known.allowed.tolist()} == {
        (False, True, False, False),
        (True, False, True, True),
    }


def test_a_large_tile_is_looked_at_in_part():
    tile = (torch.zeros(3, 100, 100), torch.ones(100, 100, dtype=torch.bool))

    assert look(_bright_or_dark, [tile, tile]).logits.shape == (2, 2 * 4096, 2)
