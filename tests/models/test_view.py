import pytest
import torch
from networks import small_segmenter

from earthgate_geo.errors import InputError
from earthgate_geo.models.view import View


def test_the_default_view_changes_no_bit() -> None:
    images = torch.rand(1, 3, 4, 4)

    assert View()(images) is images
    assert View().undone(images) is images


def test_a_view_reorders_bands_and_bends_tones() -> None:
    images = torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)

    shown = View(order=(2, 0, 1), gamma=2.0)(images)

    assert shown.flatten().tolist() == [1.0, 0.0625, 0.25]


@pytest.mark.parametrize("view", [View(order=(2, 0, 1), gamma=0.5), View(gamma=1.41)])
def test_what_was_undone_is_shown_as_it_was(view) -> None:
    images = torch.rand(2, 3, 4, 4)

    torch.testing.assert_close(view(view.undone(images)), images)


def test_a_network_maps_swapped_bands_like_the_others_once_told() -> None:
    model, images = small_segmenter(), torch.rand(1, 3, 64, 64)
    wanted = model(images)

    model.view = View(order=(2, 1, 0))

    assert not torch.equal(model(images), wanted)
    assert torch.equal(model(images.flip(1)), wanted)


@pytest.mark.parametrize("view", [View(), View(order=(1, 2, 0), gamma=0.71)])
def test_a_view_survives_json(view) -> None:
    assert View.from_json(view.to_json()) == view


def test_a_view_of_an_older_file_is_the_default() -> None:
    assert View.from_json({}) == View()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"order": (0, 0, 1)}, "bands in the order (0, 0, 1); expected each band once."),
        ({"gamma": 0.0}, "a gamma of 0; expected a positive number."),
    ],
)
def test_views_that_lose_something_are_refused(fields, sentence) -> None:
    with pytest.raises(InputError) as refusal:
        View(**fields)

    assert str(refusal.value) == sentence
