import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from earthgate_geo.errors import InputError
from earthgate_geo.metrics import OTHER, UNKNOWN, Confusion

NAMES = ("building", "road", "water")


def counted(truth: list[int], prediction: list[int], **options) -> Confusion:
    confusion = Confusion(NAMES, **options)
    confusion.add(np.array(truth, np.uint8), np.array(prediction, np.uint8))
    return confusion


def test_scores_equal_those_worked_out_by_hand():
    confusion = counted([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2])

    assert confusion.counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert confusion.iou().tolist() == [2 / 4, 1 / 3, 1.0]
    assert confusion.f1().tolist() == [4 / 6, 2 / 4, 1.0]
    assert confusion.mean_iou() == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    assert confusion.mean_f1() == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert confusion.accuracy() == 4 / 6


def test_unknown_pixels_of_truth_or_map_are_left_out():
    confusion = counted([0, UNKNOWN, 1, OTHER], [0, 1, UNKNOWN, UNKNOWN])

    assert confusion.pixels == 1
    assert confusion.accuracy() == 1.0


def test_a_named_class_on_other_is_a_false_positive():
    confusion = counted([0, OTHER, OTHER, OTHER], [0, 0, 1, 2], named=[0])

    assert confusion.iou()[0] == 1 / 2
    assert confusion.accuracy() == 3 / 4


def test_classes_that_the_truth_does_not_name_have_no_score():
    confusion = counted([0, 0, OTHER], [0, 2, 2], named=[0])

    assert confusion.iou()[0] == 1 / 2
    assert np.isnan(confusion.iou()[1:]).all()
    assert confusion.mean_iou() == 1 / 2


def test_the_mean_is_over_classes_present_in_the_truth():
    confusion = counted([0, 0], [0, 2])

    assert confusion.iou()[2] == 0
    assert math.isnan(confusion.iou()[1])
    assert confusion.mean_iou() == 1 / 2


def test_without_a_counted_pixel_every_score_is_undefined():
    document = Confusion(NAMES).to_dict()

    assert document["pixels"] == 0
    assert document["accuracy"] is None
    assert document["mean_iou"] is None
    assert document["mean_f1"] is None
    assert [entry["iou"] for entry in document["classes"]] == [None] * 3


def test_the_document_is_json_with_one_entry_per_class():
    document = json.loads(json.dumps(counted([0, 1, 1], [0, 1, 0]).to_dict()))

    assert document["pixels"] == 3
    assert document["classes"][0] == {
        "name": "building",
        "iou": 0.5,
        "f1": pytest.approx(2 / 3),
        "truth_pixels": 1,
        "map_pixels": 2,
    }
    assert document["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert document["on_other"] == [0, 0, 0]


@given(
    arrays.arrays(np.uint8, 40, elements=st.sampled_from([0, 1, 2, OTHER, UNKNOWN])),
    arrays.arrays(np.uint8, 40, elements=st.sampled_from([0, 1, 2, UNKNOWN])),
    st.integers(0, 40),
)
def test_counting_in_parts_equals_counting_at_once(truth, prediction, cut):
    whole, parts = Confusion(NAMES), Confusion(NAMES)

    whole.add(truth, prediction)
    parts.add(truth[:cut], prediction[:cut])
    parts.add(truth[cut:], prediction[cut:])

    assert parts.to_dict() == whole.to_dict()


@pytest.mark.parametrize("code", [3, 253])
def test_a_value_outside_the_table_is_refused(code):
    with pytest.raises(InputError) as caught:
        counted([0, code], [0, 1])

    assert str(caught.value) == f"class value {code}; expected 0..2."


def test_a_prediction_of_other_is_refused():
    with pytest.raises(InputError) as caught:
        counted([0, 1], [0, OTHER])

    assert str(caught.value) == "class value 254; expected 0..2."


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(InputError) as caught:
        counted([0, 1, 2], [0, 1])

    assert str(caught.value) == "truth of shape (3,) and a map of shape (2,); expected one shape."
