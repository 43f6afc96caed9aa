import json
import statistics
import subprocess
import sys
from itertools import permutations

import pytest

from earthgate_geo.bench.settings import SETTINGS, find_setting, list_settings
from earthgate_geo.data.benchmarks.part import OTHER_NAME, UNKNOWN_NAME
from earthgate_geo.errors import InputError

TRAIN = {"sub": 4900, "tem": 5025, "tms": 3400, "trf": 3700}
TEST = {"sub": 2200, "tem": 2075, "tms": 1650, "trf": 1550}
# Images, or patches where tiles are cut, that CrossEarth's table counts: to train, to test.
COUNTS = {
    "dg-pi2v": (3456, 398),
    "dg-v2pi": (344, 2016),
    "dg-pr2pi": (3456, 2016),
    "dg-pi2pr": (3456, 2016),
    "dg-pr2v": (3456, 398),
    "dg-v2pr": (344, 2016),
    "dg-u2r": (1156, 992),
    "dg-r2u": (1366, 677),  # the table prints 667, a slip
    "dg-d2m": (6226, 49),
    "dg-pr2res": (3456, 449),
    "dg-pi2res": (3456, 449),
    "dg-a2s": (4736, 3726),
    "dg-s2a": (13662, 1036),
    **{f"dg-{a}2{b}": (TRAIN[a], TEST[b]) for a, b in permutations(TRAIN, 2)},
}
# Means over settings that CrossEarth-Gate's notes print beside the single numbers.
MEANS = {
    ("CrossEarth-Gate", "dg-sub2tem", "dg-sub2tms", "dg-sub2trf"): 60.6,
    ("CrossEarth-Gate", "dg-tem2sub", "dg-tem2tms", "dg-tem2trf"): 65.1,
    ("Frozen", "dg-sub2tem", "dg-sub2tms", "dg-sub2trf"): 55.2,
    ("Frozen", "dg-tem2sub", "dg-tem2tms", "dg-tem2trf"): 63.6,
    **{
        (f"CrossEarth-Gate without {left}", "dg-sub2tem", "dg-sub2tms", "dg-sub2trf"): mean
        for left, mean in (
            ("spatial modules", 56.7),
            ("semantic modules", 59.4),
            ("frequency modules", 57.5),
            ("selection", 57.8),
        )
    },
    ("CrossEarth-Gate", "da-p2v", "da-v2p", "da-r2u", "da-u2r"): 59.1,
    ("Full tuning", "da-p2v", "da-v2p", "da-r2u", "da-u2r"): 50.1,
    ("Frozen", "da-p2v", "da-v2p", "da-r2u", "da-u2r"): 56.4,
}


def reported(setting, method, paper):
    found = [
        entry.miou_percent
        for entry in SETTINGS[setting].published
        if entry.method == method and entry.source.startswith(f"{paper},")
    ]
    (miou,) = found
    return miou


def test_the_suites_hold_the_settings_of_the_papers():
    sizes = {
        suite: sum(suite in setting.suites for setting in SETTINGS.values())
        for suite in ("gate", "crossearth", "mfnet", "local")
    }

    assert sizes == {"gate": 18, "crossearth": 25, "mfnet": 3, "local": 6}
    assert {name for name, s in SETTINGS.items() if "crossearth" in s.suites} == set(COUNTS)
    assert len(SETTINGS) == 38


@pytest.mark.parametrize("name", COUNTS)
def test_the_counts_are_those_of_the_table(name):
    setting = SETTINGS[name]

    assert tuple(p.patches or p.images for p in (setting.source, setting.test)) == COUNTS[name]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda s: s.name)
def test_labels_name_the_classes_of_the_setting(setting):
    for part in setting.parts.values():
        named = {*part.labels.values(), part.rest or UNKNOWN_NAME} - {OTHER_NAME, UNKNOWN_NAME}

        assert named == set(setting.classes)
    assert set(setting.unscored) < set(setting.classes)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda s: s.name)
def test_only_adaptation_sees_the_target(setting):
    adapting = setting.protocol == "adapt"

    assert (setting.target is not None) == adapting
    assert (setting.recipe.dacs is not None) == adapting
    if "local" not in setting.suites:
        assert setting.recipe.selection.interval == (50 if adapting else 100)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda s: s.name)
def test_training_never_sees_a_test_image(setting):
    test = (setting.test.dataset, setting.test.split)
    for part in (setting.source, setting.target):
        if part is not None and (part.dataset, part.split) == test:
            assert part.tiles
            assert not set(part.tiles) & set(setting.test.tiles)


def test_published_classes_agree_with_their_mean():
    entries = [entry for setting in SETTINGS.values() for entry in setting.published]
    with_classes = [entry for entry in entries if entry.classes_percent]

    assert len(with_classes) == 14
    for entry in with_classes:
        assert statistics.mean(entry.classes_percent) == pytest.approx(entry.miou_percent, abs=0.1)


@pytest.mark.parametrize(("which", "mean"), MEANS.items(), ids=str)
def test_published_numbers_agree_with_the_printed_means(which, mean):
    method, *settings = which

    found = [reported(name, method, "CrossEarth-Gate, arXiv:2511.20302") for name in settings]

    assert statistics.mean(found) == pytest.approx(mean, abs=0.11)


def test_every_published_number_says_where_it_is_from_and_which_checkpoint_it_is():
    ours = {
        (entry.method, entry.rule): entry
        for entry in SETTINGS["da-v2p"].published
        if entry.method == "Earth-Adapter"
    }

    assert {key: entry.miou_percent for key, entry in ours.items()} == {
        ("Earth-Adapter", "unknown"): 61.6,
        ("Earth-Adapter", "best on test"): 62.2,
        ("Earth-Adapter", "last"): 55.8,
    }
    for setting in SETTINGS.values():
        for entry in setting.published:
            assert entry.source
            assert entry.trust
            if entry.rule == "best on test":
                assert entry.source.startswith(("Earth-Adapter, ", "MFNet, "))


def test_settings_of_unknown_results_publish_none():
    empty = {name for name, setting in SETTINGS.items() if not setting.published}

    assert empty == {
        *(f"dg-{source}2{target}" for source in ("tms", "trf") for target in TRAIN),
        *("dg-a2s", "dg-s2a", "dg-d2m"),
        *(name for name in SETTINGS if name.startswith("places-")),
    } - {"dg-tms2tms", "dg-trf2trf"}


def test_listing_loads_neither_torch_nor_rasterio():
    program = (
        "import sys, earthgate_geo.bench.settings as s; s.list_settings(); "
        "print({'torch', 'torchgeo', 'rasterio'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True
    )

    assert done.stdout.strip() == "set()"


def test_the_list_is_json_with_every_setting():
    document = json.loads(json.dumps(list_settings()))

    assert [entry["name"] for entry in document["settings"]] == list(SETTINGS)
    first = document["settings"][0]
    assert list(first) == [
        *("name", "title", "suites", "protocol", "classes", "published", "notes")
    ]
    assert first["published"][0] == {
        "method": "Frozen",
        "miou_percent": 43.1,
        "classes_percent": None,
        "source": "CrossEarth-Gate, arXiv:2511.20302, CASID",
        "trust": "from a third party's note on the paper; agrees with the averages of a second "
        "note",
        "rule": "unknown",
    }


def test_an_unknown_setting_is_refused_in_one_sentence():
    with pytest.raises(InputError) as refusal:
        find_setting("p2v")

    assert str(refusal.value) == (
        "the setting 'p2v'; expected one of those that `earthgate bench --list` shows."
    )
