import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earthgate_geo.errors import StorageError
from earthgate_geo.report import Shown, comparison, render, write_report

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
NAMES = ("building", "water")
NASTY = "<script>alert('&\"城')</script>"


def areas(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"share": share, "hectares": hectares} for share, hectares in pairs]


def shown(**changes: Any) -> Shown:
    flat = np.zeros((4, 5, 3), np.uint8)
    wanted = {"image": flat, "before": flat + 80, "after": flat + 160}
    wanted["confidence"] = np.linspace(0.5, 1, 20, dtype=np.float32).reshape(4, 5)
    return Shown(**wanted | changes)


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
        "areas": {
            "scene": "town",
            "tiles": 16,
            "covered": 0.125,
            "before": areas((0.5, 2469.0), (0.5, 6.0)),
            "after": areas((0.2, 987.6), (0.8, 3.2)),
        },
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
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = Page(text := render(document(), shown()))

    assert page.open == []
    assert len(page.references) == 4
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "url(" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_before_and_after_lie_under_a_slider_beside_the_image_and_the_confidence() -> None:
    text = render(document(), shown())

    captions = re.findall("<figcaption>([^<]+)</figcaption>", text)
    assert captions[:4] == [
        "before: source model",
        "after: adapted",
        "the scene",
        "confidence after",
    ]
    assert text.count('<input type="range"') == 1
    assert '<div class="scale soft">50%' in text  # of two classes the likelier has that at least


def test_behind_a_closed_gate_there_is_one_map_and_no_slider() -> None:
    closed = document(decision="gate-closed")
    closed["areas"] |= {"after": None}

    text = render(closed, shown(after=None))

    assert '<input type="range"' not in text
    captions = re.findall("<figcaption>([^<]+)</figcaption>", text)
    assert captions[:3] == ["the source model, kept", "the scene", "confidence"]
    columns = re.findall('<th class="number">([^<]+)</th>', text)
    assert columns[:2] == ["the source model, kept", "the map"]
    assert "The source model&#x27;s: estimated from 16 tiles of the scene" in text


def test_of_several_scenes_the_page_says_which_it_shows() -> None:
    text = render(document(scene="town, city"), shown())

    assert "<figcaption>town</figcaption>" in text
    assert "Before and after: estimated from 16 tiles of town, 12.5% of it." in text


def test_everything_from_outside_is_escaped() -> None:
    classes = [{"name": NASTY, "color": NASTY, "share": 0.5, "hectares": 1.0}] * 2
    nasty = document(
        scene=NASTY,
        sentence=NASTY,
        areas=document()["areas"] | {"scene": NASTY + NASTY},
        table=[{"measure": NASTY, "before": 0.1, "after": 0.2}],
        remarks=[NASTY],
        next=NASTY,
        classes=classes,
        curves={NASTY: [1.0, 2.0]},
        provenance={NASTY: {NASTY: NASTY}},
        command=NASTY,
    )

    text = render(nasty, shown())

    assert text.count("<script>") == 1  # ours
    assert "alert('" not in text
    assert "&lt;script&gt;alert(&#x27;&amp;&quot;城&#x27;)" in text


def test_the_gate_frames_the_chosen_slots_and_shows_every_score() -> None:
    text = render(document(), shown())

    assert '<td class="open" style="background:rgb(var(--accent) / 70%)">75</td>' in text
    assert text.count('<td class="open"') == 1
    assert '<td style="background:rgb(var(--accent) / 23%)">25</td>' in text
    assert "<tr><th>semantic</th>" in text
    assert (
        "<p>Policy gate: 1 of 3 modules with 1,234 parameters trained beside the head.</p>" in text
    )
    assert "a module's percentage of the Fisher information of its kind" in text


def test_a_control_says_what_its_scores_are() -> None:
    text = render(document(policy="grad-norm-k"), shown())

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
    text = render(document(policy=policy, slots=slots, scores={}), shown())

    assert f"<h2>What trained</h2><p>Policy {policy}: {told} trained beside the head.</p>" in text
    assert 'class="gate"' not in text


def test_classes_have_shares_and_hectares_before_and_after_and_in_the_map() -> None:
    text = render(document(), shown())

    cells = re.findall(
        r'<td class="number">([\d.%]+)<span class="soft">([\d.,]+ ha)</span></td>', text
    )
    assert cells[:3] == [("50.0%", "2,469.00 ha"), ("20.0%", "987.60 ha"), ("25.0%", "1,234.50 ha")]
    assert re.findall('<i(?: class="was")? style="width:([^;]+);', text) == [
        *("25.0%", "62.5%"),  # of the largest, pale the one before
        *("100.0%", "62.5%"),
    ]
    assert "The map: counted pixel by pixel" in text
    inside = render(document(provenance={"mapped": "only inside --aoi"}), shown())
    assert "The map: only inside --aoi, counted pixel by pixel" in inside


def test_areas_of_the_whole_scene_are_no_estimate() -> None:
    whole = document()
    whole["areas"] |= {"tiles": 4, "covered": 1.0}

    assert "Before and after: counted on every tile of the scene that holds data." in render(
        whole, shown()
    )


def test_what_was_not_measured_is_left_out() -> None:
    bare = document(
        classes=[{"name": "building", "color": "#ff0000"}, {"name": "water", "color": "#0000ff"}],
        scores={},
        curves={"loss": [1.0], "broken": [float("nan"), float("nan")]},
        command="",
    )

    text = render(bare, shown())

    titles = re.findall(r"<h2>([^<]+)</h2>", text)
    assert titles == [
        "The same place before and after",
        "What the scene shows",
        "Evidence",
        "What trained",
        "Provenance",
    ]
    assert "on labels kept out" not in text
    assert re.findall('<th class="number">([^<]+)</th>', text)[:2] == ["before", "after"]
    assert "The map:" not in text


def test_the_evidence_is_the_table_under_the_decision_with_its_remarks() -> None:
    text = render(document(), shown())
    refused = render(document(decision="gate-closed"), shown())

    assert (
        '<tr><th>share of water</th><td class="number">75.0%</td><td class="number">85.0%</td></tr>'
        '</table></div><p class="note">Take care.</p>'
    ) in text
    assert '<th class="number">before</th><th class="number">after</th>' in text
    assert '<th class="number">before</th><th class="number">refused</th>' in refused
    assert "<p>It helps.</p><p>Next: look.</p>" in text


def test_a_report_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "r.html"

    with pytest.raises(StorageError) as refusal:
        write_report(path, document(), shown())

    assert str(refusal.value) == (
        f"{path} could not be written (No such file or directory); expected a writable folder "
        "with room for it. Free space or choose another folder with --report."
    )
