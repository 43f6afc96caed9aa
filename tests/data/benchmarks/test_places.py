from itertools import pairwise

import pytest
from benchmark_files import write_places
from hypothesis import given
from hypothesis import strategies as st

from earthgate_geo.bench import parts
from earthgate_geo.data.benchmarks.finder import find_part, open_part
from earthgate_geo.data.benchmarks.places import MOST_TESTED, spaced
from earthgate_geo.data.patches import Patch, PatchDataset
from earthgate_geo.metrics import OTHER

# All tiles, those to adapt to, and those to test on, of the real places.
COUNTS = {"zanzibar": (966, 483, 96), "kampala": (147, 84, 63), "catanduanes": (84, 42, 42)}


def grounds(found):
    return {pair.row["ground"] for pair in found.pairs}


def test_grounds_take_turns_in_sorted_order(tmp_path):
    write_places(tmp_path, ["d", "a", "c", "b", "a"])

    adapt, test = (
        find_part(tmp_path, parts.place("kampala", split)) for split in ("adapt", "test")
    )

    assert [pair.row["ground"] for pair in adapt.pairs] == ["a", "c", "a"]
    assert [pair.row["ground"] for pair in test.pairs] == ["d", "b"]


def test_labels_name_buildings_in_the_classes_of_any_model(tmp_path):
    write_places(tmp_path, ["a"])
    part = parts.place("kampala", "all")

    data = open_part(tmp_path, part, classes=("road", "building"))
    patches = PatchDataset([Patch(pair) for pair in data.pairs], codes=data.codes)

    assert patches[0]["mask"][:3, 0].tolist() == [OTHER, 1, 1]


@given(st.lists(st.integers(), max_size=500))
def test_tested_tiles_are_spread_over_all_of_them(tiles):
    kept = spaced(list(enumerate(tiles)))

    places = [place for place, _ in kept]
    steps = {b - a for a, b in pairwise(places)}
    assert len(kept) == min(len(tiles), MOST_TESTED)
    assert max(steps, default=0) - min(steps, default=0) <= 1


@pytest.mark.parametrize("place", COUNTS)
def test_the_real_places_are_split_without_shared_ground(shared_data, place):
    found = {
        split: find_part(shared_data, parts.place(place, split))
        for split in ("all", "adapt", "test")
    }

    assert tuple(len(part.pairs) for part in found.values()) == COUNTS[place]
    assert not grounds(found["adapt"]) & grounds(found["test"])
    assert grounds(found["adapt"]) | grounds(found["test"]) == grounds(found["all"])
