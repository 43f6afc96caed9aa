from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.errors import DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN

PATH = Path("labels.png")
ISPRS = {
    (255, 255, 255): 0,
    (0, 0, 255): 1,
    (0, 255, 255): 2,
    (0, 255, 0): 3,
    (255, 255, 0): 4,
    (255, 0, 0): 5,
    (0, 0, 0): UNKNOWN,
}
meanings = st.sampled_from([0, 1, 2, 253, OTHER, UNKNOWN])


def read(raw, values, rest=None):
    return LabelCodes(values=values, rest=rest).read(np.array(raw), PATH)


def refusal(raw, values):
    with pytest.raises(DataError) as caught:
        read(raw, values)
    return str(caught.value)


@given(
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int64", "float32"]),
    values=st.dictionaries(st.integers(0, 12), meanings, min_size=1),
    rest=meanings,
    data=st.data(),
)
def test_codes_of_any_type_mean_what_the_table_says(dtype, values, rest, data):
    raw = data.draw(arrays(dtype, (1, 3, 4), elements=st.integers(0, 14)))

    labels = read(raw, values, rest)

    assert_array_equal(labels, np.vectorize(lambda code: values.get(int(code), rest))(raw[0]))
    assert labels.dtype == np.uint8


@given(
    values=st.dictionaries(st.tuples(*[st.integers(0, 3)] * 3), meanings, min_size=1),
    rest=meanings,
    raw=arrays("uint8", (4, 3, 5), elements=st.integers(0, 3)),
)
def test_colours_mean_what_the_table_says_with_alpha_or_without(values, rest, raw):
    labels = read(raw, values, rest)

    expected = [
        [values.get(tuple(map(int, p)), rest) for p in row] for row in raw[:3].transpose(1, 2, 0)
    ]
    assert_array_equal(labels, expected)
    assert_array_equal(read(raw[:3], values, rest), labels)


def test_negative_and_large_codes_are_codes_like_others():
    raw = np.array([[[-1, 70000], [3, -1]]], np.int32)

    assert_array_equal(read(raw, {-1: UNKNOWN, 70000: 1, 3: 0}), [[UNKNOWN, 1], [0, UNKNOWN]])


def test_indices_mean_themselves():
    codes = LabelCodes.of_indices(3)

    assert_array_equal(
        codes.read(np.array([[[0, 1, 2, OTHER, UNKNOWN]]], np.uint8), PATH), [[0, 1, 2, 254, 255]]
    )


def test_a_code_that_means_nothing_is_named_with_its_file():
    assert refusal([[[0, 1], [7, 9]]], {0: 0, 1: 1, 255: UNKNOWN}) == (
        "labels.png holds the label 7; expected one of 0, 1, 255."
    )


def test_a_colour_that_means_nothing_is_named_with_its_file():
    raw = np.zeros((3, 1, 2), np.uint8)
    raw[:, 0, 1] = 254, 0, 1

    assert refusal(raw, {(0, 0, 0): 0, (255, 0, 0): 1}) == (
        "labels.png holds the label (254, 0, 1); expected one of (0, 0, 0), (255, 0, 0)."
    )


def test_a_long_table_is_cut_short_in_the_sentence():
    assert refusal([[[99]]], dict.fromkeys(range(12), 0)).endswith(
        "expected one of 0, 1, 2, 3, 4, 5, 6, 7 and 4 more."
    )


def test_three_equal_bands_are_codes():
    grey = np.repeat(np.array([[[0, 255]]], np.uint8), 3, axis=0)

    assert_array_equal(read(grey, {0: 0, 255: 1}), [[0, 1]])


def test_coloured_labels_are_no_codes():
    raw = np.array([[[1]], [[1]], [[0]]], np.uint8)

    assert refusal(raw, {0: 0, 1: 1}) == (
        "the labels labels.png are coloured; expected one band of class codes. Write the class of "
        "every pixel into a one-band file, e.g. a PNG."
    )


def test_one_band_has_no_colours():
    assert refusal(np.zeros((1, 2, 2), np.uint8), ISPRS) == (
        "the labels labels.png have 1 band; expected red, green and blue. Give its codes instead, "
        "or turn a palette into colours with gdal_translate -expand rgb."
    )


@pytest.mark.parametrize("values", [{}, {0: 0, (0, 0, 0): 1}])
def test_a_table_of_nothing_or_of_both_is_refused(values):
    with pytest.raises(InputError) as caught:
        LabelCodes(values=values)

    listed = ", ".join(map(str, values)) or "none"
    assert str(caught.value) == (
        f"label codes: {listed}; expected at least one, either all numbers or all (red, green, "
        "blue)."
    )
