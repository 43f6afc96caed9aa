import pytest
import torch
from networks import small_segmenter

from earthgate_geo.models.statistics import FeatureStatistics
from earthgate_geo.models.view import View
from earthgate_geo.training.alignment import choose_view

WARM = torch.tensor([0.7, 0.5, 0.2]).view(1, 3, 1, 1)


def _images(seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(4, 1, 64, 64, generator=generator)
    return (WARM + 0.4 * (rough - 0.5)).clamp(0, 1)


@pytest.fixture(scope="module")
def model():
    return small_segmenter()


@pytest.fixture(scope="module")
def statistics(model):
    return FeatureStatistics.gather(model, [_images(seed) for seed in range(3)])


def test_a_scene_like_the_training_images_is_shown_as_it_comes(model, statistics) -> None:
    choice = choose_view(model, statistics, _images(9))

    assert choice.view == View()
    assert choice.before == choice.after


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_swapped_bands_are_put_back(model, statistics, order) -> None:
    choice = choose_view(model, statistics, View(order=order).undone(_images(9)))

    assert choice.view == View(order=order)
    assert choice.after < choice.before / 2


def test_a_scene_that_is_too_bright_is_darkened_half_of_the_way(model, statistics) -> None:
    choice = choose_view(model, statistics, _images(9).pow(0.5))

    assert choice.view == View(gamma=2**0.5)
    assert choice.after < choice.before


def test_a_dark_scene_stays_dark(model, statistics) -> None:
    choice = choose_view(model, statistics, _images(9).pow(2))

    assert choice.view == View()


def test_a_grey_scene_has_no_order(model, statistics) -> None:
    grey = _images(9).mean(1, keepdim=True).expand(-1, 3, -1, -1)

    assert choose_view(model, statistics, grey).view.order is None


def test_the_model_is_left_as_it_was(model, statistics) -> None:
    choose_view(model, statistics, _images(9).flip(1))

    assert model.view == View()


def test_a_choice_is_told_in_numbers(model, statistics) -> None:
    choice = choose_view(model, statistics, _images(9).flip(1))

    assert choice.to_json() == {
        "view": {"order": [2, 1, 0], "gamma": 1.0},
        "before": choice.before,
        "after": choice.after,
    }
