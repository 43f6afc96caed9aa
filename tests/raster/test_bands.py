import pytest

from earthgate_geo.errors import BandError
from earthgate_geo.raster.bands import band_meanings, choose_bands

RGB = ("red", "green", "blue")
UNKNOWN = "undefined"


def meanings(*interpretations, descriptions=None):
    return band_meanings(interpretations, descriptions or (None,) * len(interpretations))


def chosen(found, wanted=RGB, given=None):
    return choose_bands("scene.tif", found, wanted=wanted, given=given)


@pytest.mark.parametrize(
    ("found", "bands"),
    [
        (meanings("gray"), (1, 1, 1)),
        (meanings(UNKNOWN), (1, 1, 1)),
        (meanings("gray", "alpha"), (1, 1, 1)),
        (meanings("alpha", "gray"), (2, 2, 2)),
        (meanings("red", "green", "blue"), (1, 2, 3)),
        (meanings("blue", "green", "red", "alpha"), (3, 2, 1)),
        (meanings("gray", UNKNOWN, UNKNOWN), (1, 2, 3)),
        (meanings("nir", "red", "green"), (1, 2, 3)),
        (meanings("Y", "Cb", "Cr"), (1, 2, 3)),
        (meanings("red", "green", "blue", UNKNOWN, UNKNOWN), (1, 2, 3)),
        (meanings("red", "green", "blue", "nir", "alpha"), (1, 2, 3)),
        (meanings(*4 * ["gray"], descriptions=("Blue", "GREEN ", "r", "NIR")), (3, 2, 1)),
        (meanings(*2 * RGB), (1, 2, 3)),
    ],
)
def test_what_the_file_says_decides(found, bands):
    assert chosen(found) == bands


def test_a_description_wins_over_the_default_interpretation():
    found = meanings("red", "green", "blue", descriptions=("near infrared", "red", "green"))

    assert found == ("nir", "red", "green")
    assert chosen(found, ("red", "nir")) == (2, 1)


def test_gray_means_something_only_alone():
    assert meanings("gray", "alpha") == ("gray", "alpha")
    assert meanings("gray", UNKNOWN, UNKNOWN) == (None, None, None)


@pytest.mark.parametrize("given", [{"red": 4, "green": 2, "blue": 2}, {"blue": 2, "red": 4}])
def test_given_bands_win_and_fill_what_the_file_leaves_open(given):
    found = meanings("red", "green", UNKNOWN, "nir")

    assert chosen(found, given=given) == (4, 2, 2)


@pytest.mark.parametrize(
    ("found", "wanted", "has", "missing", "example"),
    [
        (
            meanings("gray", UNKNOWN),
            RGB,
            "2 bands that are not grey and alpha",
            "red, green, blue",
            "red=1,green=2,blue=2",
        ),
        (
            meanings("gray", UNKNOWN, UNKNOWN, UNKNOWN),
            RGB,
            "4 bands",
            "red, green, blue",
            "red=1,green=2,blue=3",
        ),
        (
            meanings("red", "green", "blue"),
            (*RGB, "nir"),
            "3 bands",
            "nir",
            "red=1,green=2,blue=3,nir=3",
        ),
        (
            meanings("alpha"),
            RGB,
            "no band but alpha",
            "red, green, blue",
            "red=1,green=1,blue=1",
        ),
    ],
)
def test_a_file_that_does_not_say_enough_is_refused(found, wanted, has, missing, example):
    with pytest.raises(BandError) as refusal:
        chosen(found, wanted)

    assert str(refusal.value) == (
        f"scene.tif has {has}, and nothing says which is {missing}; expected colour "
        f"interpretation or descriptions that name {', '.join(wanted)}. Say which is which, "
        f"e.g. --bands {example}."
    )


def test_given_bands_must_name_every_input():
    with pytest.raises(BandError) as refusal:
        chosen(meanings("gray", UNKNOWN, UNKNOWN), RGB, {"red": 1, "green": 2})

    assert str(refusal.value) == (
        "scene.tif: --bands names red, green, which leaves out blue; expected a band for each of "
        "red, green, blue. Say which is which, e.g. --bands red=1,green=2,blue=3."
    )
