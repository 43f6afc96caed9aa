import pytest
from test_report import CALIBRATION, EVIDENCE, NAMES, SEEN

from earthgate_geo.report import advice, comparison, decision_sentence, remarks

LABELLED = EVIDENCE | {
    "source": SEEN | {"label_probabilities": [0.4, 0.42]},
    "adapted": EVIDENCE["adapted"] | {"label_probabilities": [0.5, 0.606]},
}
HELD_BACK = LABELLED | {
    "labels_held_back": True,
    "calibration": CALIBRATION | {"basis": "labels", "error": 0.031},
}


def test_the_comparison_has_what_was_measured_and_the_confidence_that_is_shipped() -> None:
    assert [tuple(row.values()) for row in comparison(EVIDENCE, NAMES)] == [
        ("agrees with itself, turned and in other light", 0.83, 0.91),
        ("mean confidence", 0.7, 0.78),
        ("mean IoU on generated tiles", 0.8, 0.8),
        ("share of building", 0.25, 0.15),
        ("share of water", 0.75, 0.85),
    ]
    raw = comparison(EVIDENCE | {"calibration": None}, NAMES)
    assert raw[1] == {"measure": "mean confidence", "before": 0.7, "after": 0.9}


def test_the_comparison_says_whether_the_labels_trained() -> None:
    first = [comparison(evidence, NAMES)[0] for evidence in (LABELLED, HELD_BACK)]

    assert [row["measure"] for row in first] == [
        "probability of labels that trained, too",
        "probability of labels kept out of training",
    ]
    values = [row[when] for row in first for when in ("before", "after")]
    assert values == pytest.approx([0.41, 0.553] * 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            (
                "Confidence: logits are divided by 1.62, for an accuracy of 78.3% by agreement "
                "with itself, corrected on generated tiles."
            ),
        ),
        (
            {"basis": "agreement"},
            (
                "Confidence: logits are divided by 1.62, for an accuracy of 78.3% by agreement "
                "with itself."
            ),
        ),
        (
            {"temperature": 1.0},
            (
                "Confidence stays: agreement with itself, corrected on generated tiles, does not "
                "show it to be too high."
            ),
        ),
        (
            {"basis": "labels", "error": 0.004, "temperature": 1.0},
            (
                "Confidence stays: labels kept out of training do not show it to be too high; "
                "expected calibration error there 0.4%."
            ),
        ),
        (
            {"basis": "labels", "error": 0.031},
            (
                "Confidence: logits are divided by 1.62, the likeliest number on labels kept "
                "out of training; expected calibration error there 3.1%."
            ),
        ),
    ],
)
def test_the_remarks_say_what_confidence_rests_on(changes, sentence) -> None:
    evidence = EVIDENCE | {"calibration": CALIBRATION | changes}

    assert remarks("adapted", evidence) == [sentence]


HELD = [{"index": 0, "name": "building", "offset": -1.5, "clearer": 1.42}]
DARKER = {"view": {"order": None, "gamma": 2.0}, "before": 0.6, "after": 0.2, "used": True}


def test_what_was_changed_before_the_training_is_said() -> None:
    evidence = EVIDENCE | {"view": DARKER, "restraints": HELD}
    held = (
        "uilding is said less readily, for its outline then follows the edges of the image "
        "1.4 times as clearly"
    )

    shown, restrained, _ = remarks("adapted", evidence)
    refused = decision_sentence("adapted", evidence | {"against": ["it is worse"]})

    assert shown.startswith("The network sees the scene with darker tones (gamma 2), which is 3.0")
    assert restrained == f"B{held}."
    assert refused.startswith("Adapted: the network sees the scene with darker tones (gamma 2)")
    assert refused.endswith(f", and b{held}. What was trained is refused: it is worse.")
    assert len(remarks("gate-closed", evidence)) == 1


def test_the_remarks_say_where_confidence_is_not_calibrated() -> None:
    raw = EVIDENCE | {"calibration": None}

    assert remarks("adapted", raw) == [
        "Confidence is not calibrated: a head of this kind cannot be."
    ]
    assert remarks("gate-closed", raw) == ["Confidence is the source model's own, not calibrated."]


def test_the_remarks_warn_where_the_guard_saw_labels_that_trained() -> None:
    assert remarks("adapted", LABELLED)[0] == (
        "The labels are too few to keep any out of training: the guard saw those that "
        "trained, and cannot tell learning from memorising."
    )
    assert len(remarks("adapted", HELD_BACK)) == 1


def test_the_advice_follows_from_the_decision_and_the_labels() -> None:
    still = EVIDENCE | {"adapted": SEEN}

    assert advice("adapted", EVIDENCE, NAMES) == (
        "Next: compare both maps in the report (--report); where the new one is wrong, digitise "
        "polygons and pass them with --labels."
    )
    assert advice("gate-closed", EVIDENCE, NAMES) == (
        "Next: digitise about 10 polygons, most of all of building and water, and pass them with "
        "--labels."
    )
    assert advice("gate-closed", still, NAMES) == (
        "Next: digitise about 10 polygons of the classes it confuses and pass them with --labels."
    )
    assert advice("gate-closed", HELD_BACK, NAMES) == (
        "Next: look at the map, label places where it is wrong, and adapt again."
    )
    assert advice("adapted", LABELLED, NAMES) == (
        "Next: look at the map, label more places where it is wrong, and adapt again; of twenty "
        "places or more, some are kept to judge by."
    )


def test_the_sentences_name_the_decision_and_its_evidence() -> None:
    closed = EVIDENCE | {"against": ["the class shares moved too far", "it rained"]}

    assert decision_sentence("adapted", EVIDENCE) == (
        "Adapted: turned and in other light, tiles of the scene now keep the class of 91.0% of "
        "their pixels; with the source model it was 83.0%."
    )
    assert decision_sentence("adapted", HELD_BACK) == (
        "Adapted: labels kept out of training have a mean probability of 55.3%; by the source "
        "model it was 41.0%."
    )
    assert decision_sentence("adapted", LABELLED) == (
        "Adapted: labels, all of which trained, have a mean probability of 55.3%; by the source "
        "model it was 41.0%."
    )
    assert decision_sentence("gate-closed", closed) == (
        "Gate closed, the source model is kept: the class shares moved too far and it rained."
    )
