import math
from xml.etree import ElementTree as ET

import pytest

from earthgate_geo.bench.radar import Series, radar

SVG = "{http://www.w3.org/2000/svg}"
AXES = ("north", "east", "south", "west")
OURS = Series(name="ours", percent=(50.0, 40.0, None, 60.0), spread=(2.0, None, None, 0.0))
THEIRS = Series(name="theirs & <others>", percent=(70.0, None, 90.0, None))


def drawn(*series, axes=AXES):
    return ET.fromstring(radar("Scores", axes, series))


def points(element):
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def distance(point, middle=(450, 320)):
    return math.dist(point, middle)


def test_a_score_lies_on_its_axis_as_far_out_as_it_is_high():
    dots = drawn(OURS).findall(f"{SVG}circle")

    places = [float(dot.get(name)) for dot in dots for name in ("cx", "cy")]
    scale = 250 / 60  # the outermost ring is the multiple of 20 that holds every score
    expected = [450, 320 - 50 * scale, 450 + 40 * scale, 320, 450 - 60 * scale, 320]
    assert places == pytest.approx(expected, abs=0.1)


def test_an_axis_without_a_score_breaks_the_line():
    lines = drawn(THEIRS, OURS).findall(f"{SVG}polyline")

    sides = [points(line) for line in lines if line.get("fill") == "none"]
    assert len(sides) == 2  # north to east, west to north: theirs has no two neighbours
    assert [distance(point) for side in sides for point in side] == pytest.approx(
        [250 * share / 100 for share in (50, 40, 60, 50)], abs=0.1
    )


def test_a_bar_spans_the_spread_of_ours():
    (bar,) = [b for b in drawn(OURS).findall(f"{SVG}polyline") if b.get("fill") is None]

    assert [distance(point) for point in points(bar)] == pytest.approx(
        [250 * 48 / 60, 250 * 52 / 60], abs=0.1
    )


def test_axes_that_we_ran_stand_out_and_every_name_is_there():
    texts = drawn(OURS, THEIRS).findall(f"{SVG}text")

    weights = {text.text: text.get("font-weight") for text in texts}
    assert {name: weights[name] for name in AXES} == {
        "north": "600",
        "east": "600",
        "south": None,
        "west": "600",
    }
    assert [text.text for text in texts][-2:] == ["ours", "theirs & <others>"]


def test_what_others_report_is_dashed_and_ours_is_not():
    lines = drawn(OURS, THEIRS).findall(f"{SVG}line")[-2:]

    assert [line.get("stroke-dasharray") for line in lines] == [None, "5 3"]


def test_nothing_lies_outside_the_picture_for_any_number_of_axes():
    for count in (3, 4, 25):
        axes = tuple(f"places-zanzibar-place{axis}" for axis in range(count))
        root = drawn(
            Series(name="ours", percent=(100.0,) * count, spread=(0.0,) * count), axes=axes
        )

        left, top, width, height = map(float, root.get("viewBox").split())
        assert (left, top) == (0, 0)
        for text in root.findall(f"{SVG}text"):
            reach = 7.0 * len(text.text) * {"start": 1, "end": -1}.get(text.get("text-anchor"), 0)
            assert 0 <= float(text.get("x")) + reach <= width
            assert 0 < float(text.get("y")) < height
