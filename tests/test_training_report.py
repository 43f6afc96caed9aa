from typing import Any

import numpy as np
import pytest
from test_report import Page

from earthgate_geo.metrics import Confusion
from earthgate_geo.training_report import render, training_sentence, write_training_report


def holdout(**changes: Any) -> dict[str, Any]:
    confusion = Confusion(("building", "water"))
    confusion.add(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    scores = confusion.to_dict()
    wanted = {"wanted": 0.2, "share": 0.25, "patches": 4, "left_out": 0, "scored": 4}
    wanted["scores"] = scores
    return wanted | changes


def document(**changes: Any) -> dict[str, Any]:
    wanted = {
        "name": "city",
        "policy": "gate",
        "holdout": holdout(),
        "table": [
            {"name": "building", "color": "#ff0000"},
            {"name": "water", "color": "#0000ff"},
        ],
        "scores": {"0.spatial": 0.75, "1.spatial": 0.25},
        "slots": ["0.spatial"],
        "trained_parameters": 1234,
        "curves": {"loss": [2.0, 1.0, 0.5]},
        "source": {"images": 3, "patches": 16},
        "target": None,
        "gsd": [0.1, 0.4],
        "start": {"name": "earthgate-tiny"},
        "recipe": {"steps": 3},
        "provenance": {"steps": 3},
        "command": "earthgate train --data <city>",
    }
    return wanted | changes


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = Page(text := render(document(), {"a place": np.zeros((4, 5, 3), np.uint8)}))

    assert page.open == []
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "http:" not in text
    assert "https:" not in text
    assert "<h1>city</h1>" in text
    assert "<pre>earthgate train --data &lt;city&gt;</pre>" in text


def test_the_page_says_how_well_every_class_is_found_where_nothing_trained() -> None:
    text = render(document(holdout=holdout(left_out=3, scored=2)), {})

    cells = [part.split("<")[0] for part in text.split('<td class="number">')[1:]]
    assert cells == ["66.7%", "80.0%", "3", "50.0%", "66.7%", "1", "58.3%", "73.3%", "4"]
    assert (
        "4 patches, 25% of all, were held out. Scored on 2 of them. 3 patches that lie on both "
        "sides neither trained nor count."
    ) in text


def test_a_class_that_no_held_out_pixel_shows_has_no_scores() -> None:
    confusion = Confusion(("building", "water"))
    confusion.add(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1]))

    text = render(document(holdout=holdout(scores=confusion.to_dict())), {})

    cells = [part.split("<")[0] for part in text.split('<td class="number">')[1:]]
    assert cells == ["50.0%", "66.7%", "4", "-", "-", "0", "50.0%", "66.7%", "4"]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            holdout(patches=900),
            "On 4 held-out patches, which never trained, the mean IoU is 58.3%.",
        ),
        (holdout(), "On 4 held-out patches, which never trained, the mean IoU is 58.3%."),
        (
            holdout(scores={"mean_iou": None}),
            "On 4 held-out patches, which never trained, the mean IoU is -.",
        ),
        (None, "No place was held out: how well the model does on new ones is not known."),
    ],
)
def test_the_result_is_one_sentence(found: Any, sentence: str) -> None:
    assert training_sentence(found) == sentence


def test_what_is_not_known_has_no_place_on_the_page() -> None:
    text = render(document(holdout=None), {})

    assert "How well it does there" not in text
    assert "Places that never trained" not in text
    assert "<th>target</th>" not in text


def test_a_page_replaces_an_older_one(tmp_path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    write_training_report(path, document(), {})

    assert path.read_text(encoding="utf-8") == render(document(), {})
    assert list(tmp_path.iterdir()) == [path]
