import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.io import decode_png

from earthgate_geo.errors import StorageError
from earthgate_geo.report import (
    advice,
    comparison,
    decision_sentence,
    remarks,
    render,
    write_report,
)

SEEN = {
    "agreement": 0.83,
    "confidence": 0.7,
    "replay_miou": 0.8,
    "label_probabilities": None,
    "shares": (0.25, 0.75),
}
CALIBRATION = {
    "temperature": 1.618,
    "basis": "replay",
    "accuracy": 0.783,
    "confidence": 0.78,
    "error": None,
}
EVIDENCE = {
    "source": SEEN,
    "adapted": SEEN | {"agreement": 0.91, "confidence": 0.9, "shares": (0.15, 0.85)},
    "against": [],
    "labels_held_back": False,
    "view": None,
    "restraints": [],
    "calibration": CALIBRATION,
}
LABELLED = EVIDENCE | {
    "source": SEEN | {"label_probabilities": [0.4, 0.42]},
    "adapted": EVIDENCE["adapted"] | {"label_probabilities": [0.5, 0.606]},
}
HELD_BACK = LABELLED | {
    "labels_held_back": True,
    "calibration": CALIBRATION | {"basis": "labels", "error": 0.031},
}
NAMES = ("building", "water")
NASTY = "<script>alert('&')</script>"


def document(**changes: Any) -> dict[str, Any]:
    wanted = {
        "scene": "town",
        "policy": "gate",
        "decision": "adapted",
        "sentence": "It helps.",
        "table": comparison(EVIDENCE, NAMES),
        "remarks": ["Take care."],
        "next": "Next: look.",
        "classes": [
            {"name": "building", "color": "#ff0000", "share": 0.25, "hectares": 1234.5},
            {"name": "water", "color": "#0000ff", "share": 0.75, "hectares": 3.0},
        ],
        "scores": {"0.spatial": 0.75, "1.spatial": 0.25, "0.semantic": 0.0},
        "slots": ["0.spatial"],
        "trained_parameters": 1234,
        "curves": {"loss": [2.0, 1.0, 0.5]},
        "provenance": {"steps": 3},
        "command": "earthgate adapt --src town.tif",
    }
    return wanted | changes


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    pictures = {"before": np.zeros((4, 5, 3), np.uint8)}

    page = Page(text := render(document(), pictures))

    assert page.open == []
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "url(" not in text
    assert "http" not in text


def test_pictures_come_back_pixel_for_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)

    (coded,) = re.findall(r"base64,([^\"]+)", render(document(), {"the scene": pixels}))

    with pytest.warns(DeprecationWarning, match="TorchVision"):
        decoded = decode_png(torch.frombuffer(bytearray(b64decode(coded)), dtype=torch.uint8))
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


def test_everything_from_outside_is_escaped() -> None:
    classes = [{"name": NASTY, "color": NASTY, "share": 0.5, "hectares": 1.0}] * 2
    nasty = document(
        scene=NASTY,
        sentence=NASTY,
        table=[{"measure": NASTY, "before": 0.1, "after": 0.2}],
        remarks=[NASTY],
        next=NASTY,
        classes=classes,
        curves={NASTY: [1.0, 2.0]},
        provenance={NASTY: {NASTY: NASTY}},
        command=NASTY,
    )

    text = render(nasty, {NASTY: np.zeros((1, 1, 3), np.uint8)})

    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_the_gate_frames_the_chosen_slots_and_shows_every_score() -> None:
    text = render(document(), {})

    assert '<td class="open" style="background:rgb(var(--accent) / 70%)">75</td>' in text
    assert text.count('<td class="open"') == 1
    assert '<td style="background:rgb(var(--accent) / 23%)">25</td>' in text
    assert "<tr><th>semantic</th>" in text
    assert (
        "<p>Policy gate: 1 of 3 modules with 1,234 parameters trained beside the head.</p>" in text
    )
    assert "a module's percentage of the Fisher information of its kind" in text


def test_a_control_says_what_its_scores_are() -> None:
    text = render(document(policy="grad-norm-k"), {})

    assert "a module's percentage of the squared mean gradient of its kind" in text


@pytest.mark.parametrize(
    ("policy", "slots", "told"),
    [
        ("all", ["0.spatial", "1.spatial"], "2 modules with 1,234 parameters"),
        ("full", [], "1,234 parameters"),
    ],
)
def test_a_policy_that_never_chooses_says_what_trained_and_shows_no_gate(
    policy, slots, told
) -> None:
    text = render(document(policy=policy, slots=slots, scores={}), {})

    assert f"<h2>What trained</h2><p>Policy {policy}: {told} trained beside the head.</p>" in text
    assert 'class="gate"' not in text


def test_classes_have_shares_and_hectares() -> None:
    text = render(document(), {})

    assert '<td class="number">25.0%</td><td class="number">1,234.50 ha</td>' in text


def test_what_was_not_measured_is_left_out() -> None:
    bare = document(
        classes=[{"name": "building", "color": "#ff0000"}, {"name": "water", "color": "#0000ff"}],
        scores={},
        curves={"loss": [1.0], "broken": [float("nan"), float("nan")]},
    )

    text = render(bare, {})

    titles = re.findall(r"<h2>([^<]+)</h2>", text)
    assert titles == ["What trained", "Evidence", "Provenance", "Command"]
    assert "on labels kept out" not in text


def test_the_evidence_is_the_table_under_the_decision_with_its_remarks() -> None:
    text = render(document(), {})
    refused = render(document(decision="gate-closed"), {})

    assert (
        '<tr><th>share of water</th><td class="number">75.0%</td><td class="number">85.0%</td></tr>'
        '</table><p class="note">Take care.</p>'
    ) in text
    assert '<th class="number">before</th><th class="number">after</th>' in text
    assert '<th class="number">before</th><th class="number">refused</th>' in refused
    assert "<p>It helps.</p><p>Next: look.</p>" in text


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
        "The labels lie in too few places to keep any out of training: the guard saw those that "
        "trained, and cannot tell learning from memorising."
    )
    assert len(remarks("adapted", HELD_BACK)) == 1


def test_the_advice_follows_from_the_decision_and_the_labels() -> None:
    still = EVIDENCE | {"adapted": SEEN}

    assert advice("adapted", EVIDENCE, NAMES) == (
        "Next: compare both maps (--report shows them); where the new one is wrong, digitise "
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
        "Next: label at least 5 places apart, so that some can be kept to judge by."
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


def test_a_report_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "r.html"

    with pytest.raises(StorageError) as refusal:
        write_report(path, document(), {})

    assert str(refusal.value) == (
        f"{path} could not be written (No such file or directory); expected a writable folder "
        "with room for it. Free space or choose another folder with --report."
    )
