import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from earthgate_geo.bench.settings import SETTINGS, find_setting
from earthgate_geo.bench.summary import summarise_bench
from earthgate_geo.bench.summary_page import CHAPTERS, chapter_of
from earthgate_geo.errors import DataError, InputError, OutputError

ADVICE = (
    "; expected runs that differ in setting and seed alone. Put the runs of each row in a folder "
    "of their own inside, whose name the row takes."
)


def result(name, *, seed=0, policy="gate", last=0.5, recipe=(), model=(), **changes):
    """Return the parts of a result that a summary reads."""
    usual = find_setting(name).recipe.to_json()
    start = {"name": "small", "digest": "ab", "backbone": "tiny", "head": "fpn", "weights": None}
    return {
        "setting": {"name": name},
        "policy": policy,
        "seed": seed,
        "recipe": usual | {"policy": policy, "seed": seed} | dict(recipe),
        "model": start | dict(model),
        "images": {"test": 8},
        "miou_last": last,
        "miou_best_on_test": last + 0.05,
        "miou_before": None,
        "seconds": {"train": 61.4},
        "notes": list(find_setting(name).notes),
    } | changes


@pytest.fixture
def write(tmp_path):
    """Write results under the names that a run gives them; return their paths."""

    def save(*results, folder="runs"):
        home = tmp_path / folder
        home.mkdir(parents=True, exist_ok=True)
        paths = []
        for entry in results:
            name = f"{entry['setting']['name']}.{entry['policy']}.s{entry['seed']}.json"
            paths.append(home / name)
            paths[-1].write_text(json.dumps(entry), encoding="utf-8")
        return paths

    return save


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


def refused(folder):
    with pytest.raises((InputError, DataError)) as refusal:
        summarise_bench(folder)
    return str(refusal.value)


def test_a_cell_holds_mean_and_sample_deviation_over_the_seeds(write, runs):
    write(*(result("dg-pi2v", seed=s, last=0.6 + 0.02 * s) for s in range(3)))

    (row,) = summarise_bench(runs)["rows"]

    cell = row["settings"]["dg-pi2v"]
    assert cell["seeds"] == [0, 1, 2]
    assert cell["last"] == pytest.approx({"mean": 0.62, "spread": 0.02})
    assert cell["best_on_test"]["mean"] == pytest.approx(0.67)
    assert cell["before"] == {"mean": None, "spread": None}
    assert cell["best_published"] == {"method": "SSE", "miou_percent": 70.3}


def test_policies_backbones_and_heads_are_rows_of_their_own(write, runs):
    write(result("dg-pi2v"), result("dg-v2pi"), result("dg-pi2v", policy="full"))
    write(result("dg-pi2v", seed=1, model={"backbone": "large"}))

    found = {row["name"]: list(row["settings"]) for row in summarise_bench(runs)["rows"]}

    assert found == {
        "full, tiny": ["dg-pi2v"],
        "gate, large": ["dg-pi2v"],
        "gate, tiny": ["dg-pi2v", "dg-v2pi"],
    }


def test_settings_may_differ_in_what_each_has_of_its_own(write, runs):
    asked = {"batch": 1, "steps": 100}
    write(
        result("dg-u2r", recipe=asked),
        result("da-p2v", recipe=asked | {"target_batch": 1}),
        result("fuse-hunan", recipe=asked),
    )

    (row,) = summarise_bench(runs)["rows"]

    assert row["recipe"] == {"steps": [100], "batch": [1], "target_batch": [1]}
    assert list(row["settings"]) == ["da-p2v", "dg-u2r", "fuse-hunan"]


def test_runs_of_different_recipes_are_not_one_row(write, runs):
    first, second = write(result("dg-pi2v", recipe={"steps": 100}), result("dg-v2pi"))

    assert refused(runs) == f"{first} and {second} in one row: steps 100 and 30000{ADVICE}"


def test_a_difference_inside_a_part_of_the_recipe_is_one_too(write, runs):
    chosen = find_setting("da-p2v").recipe.to_json()["selection"] | {"share": 0.5}
    first, second = write(result("da-p2v"), result("da-v2p", recipe={"selection": chosen}))

    assert refused(runs) == (
        f"{first} and {second} in one row: selection share 0.25 and 0.5{ADVICE}"
    )


def test_a_named_row_may_mix_recipes_from_setting_to_setting_and_says_so(write, runs, tmp_path):
    write(result("dg-pi2v", recipe={"steps": 100}), result("dg-v2pi"), folder="runs/short")

    summarise_bench(runs, out=tmp_path)

    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert (
        "**short**: policy gate, backbone tiny, head fpn; recipe as each setting has it, but "
        "steps 100 or 30000. These runs do not share one recipe.\n"
    ) in page


def test_seeds_of_one_cell_share_their_recipe_even_in_a_named_row(write, runs):
    first, second = write(
        result("dg-pi2v", recipe={"steps": 100}), result("dg-pi2v", seed=1), folder="runs/mixed"
    )

    assert refused(runs) == f"{first} and {second} in one row: steps 100 and 30000{ADVICE}"


def test_rows_of_folders_stand_beside_those_of_none(write, runs):
    write(result("dg-pi2v", last=0.5))
    write(result("dg-pi2v", last=0.6, recipe={"steps": 9}), folder="runs/short")

    rows = summarise_bench(runs)["rows"]

    assert [(row["name"], row["named"]) for row in rows] == [("gate", False), ("short", True)]
    assert [row["settings"]["dg-pi2v"]["last"]["mean"] for row in rows] == [0.5, 0.6]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"images": {"test": 9}}, "8 and 9 test images"),
        ({"model": {"digest": "cd"}}, "started from small (sha256 ab) and small (sha256 cd)"),
        (
            {"model": {"digest": None, "weights": ["all"]}},
            "started from small (sha256 ab) and small (published weights)",
        ),
    ],
)
def test_seeds_on_other_images_or_from_another_model_are_not_averaged(write, runs, other, what):
    first, second = write(result("dg-pi2v"), result("dg-pi2v", seed=1, **other))

    assert refused(runs) == f"{first} and {second} in one row: {what}{ADVICE}"


def test_a_named_row_may_start_from_a_model_per_seed(write, runs):
    write(
        *(result("dg-pi2v", seed=s, model={"name": f"m{s}", "digest": f"{s}"}) for s in (0, 1)),
        folder="runs/own",
    )

    (row,) = summarise_bench(runs)["rows"]

    assert row["settings"]["dg-pi2v"]["models"] == ["m0 (sha256 0)", "m1 (sha256 1)"]


def test_a_run_that_is_there_twice_is_refused(write, runs):
    _, first = write(result("dg-pi2v"), result("dg-pi2v", seed=1))
    copy = runs / "z.json"
    copy.write_bytes(first.read_bytes())

    assert refused(runs) == f"{first} and {copy} in one row: seed 1 twice{ADVICE}"


def test_a_result_of_before_a_recipe_grew_is_still_read(write, runs):
    older = result("dg-pi2v")
    del older["recipe"]["power"]

    write(older, result("dg-pi2v", seed=1))

    assert summarise_bench(runs)["rows"][0]["recipe"] == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", json.dumps(result("dg-pi2v") | {"setting": {"name": "dg-mars"}})],
)
def test_a_file_that_is_no_result_is_named(runs, text):
    runs.mkdir()
    (runs / "a.json").write_text(text, encoding="utf-8")

    assert refused(runs) == (
        f"{runs / 'a.json'} is no result of a benchmark; expected a document that "
        "`earthgate bench --out` wrote."
    )


def test_a_folder_without_results_is_refused(runs):
    assert refused(runs) == (
        f"no result in {runs}; expected what `earthgate bench SETTING --out` wrote, there or in "
        "folders inside."
    )


def test_the_table_has_every_setting_ours_and_every_published_figure(write, runs, tmp_path):
    write(*(result("dg-pi2v", seed=s, last=0.6 + 0.02 * s) for s in range(3)))

    summarise_bench(runs, out=tmp_path)

    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(lines) == [s.name for s in chapter_of("generalise")]
    assert lines["dg-pi2v"] == (
        "| `dg-pi2v` Potsdam IRRG to Vaihingen | 62.0 ± 2.0 (3) | SSE 70.3 [4], CDG 68.1 [4], "
        "CrossEarth 67.5 [3], MTP 62.6 [3], Rein 60.3 [3], HRDA 54.7 [3], DAFormer 54.4 [3] |"
    )
    assert lines["dg-a2s"] == "| `dg-a2s` WHU buildings, aerial to satellite II | - | - |"
    assert (
        "\n3. CrossEarth, arXiv:2410.22629, Potsdam and Vaihingen: transcribed by eye from a "
        "picture of the table; a later project prints the same; checkpoint: unknown.\n"
    ) in page


def test_the_page_tells_recipe_budget_and_what_is_not_as_published(write, runs, tmp_path):
    write(result("dg-pi2v", recipe={"steps": 100}))

    summarise_bench(runs, out=tmp_path)

    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "recipe as each setting has it, but steps 100.\n" in page
    assert (
        "| gate, `dg-pi2v` | 0 | 100 of 4 + 0 x 512 px | 61 | 8 of 398 | - | 50.0 | 55.0 | "
        "small (sha256 ab) |\n"
    ) in page
    note, settings = page.rstrip().splitlines()[-1][2:].rsplit(" (", 1)
    assert note in find_setting("dg-pi2v").notes
    assert settings == "dg-pi2v)"


def test_only_what_was_run_has_a_chapter_and_a_picture(write, runs, tmp_path):
    write(result("da-p2v"), result("places-kampala-zanzibar"))

    document = summarise_bench(runs, out=tmp_path)

    assert list(document["outputs"]) == ["page", "adapt", "local"]
    page = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert [title in page for title in CHAPTERS.values()] == [False, True, False, True]
    for chapter in ("adapt", "local"):
        assert f"(summary_{chapter}.svg)" in page
        picture = ET.parse(tmp_path / f"summary_{chapter}.svg").getroot()
        texts = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
        assert {s.name for s in chapter_of(chapter)} | {"gate (ours, last step)"} <= texts


def test_the_chapters_hold_every_setting_once():
    held = [setting.name for chapter in CHAPTERS for setting in chapter_of(chapter)]

    assert sorted(held) == sorted(SETTINGS)


def test_the_picture_shows_the_published_methods_of_most_settings(write, runs, tmp_path):
    write(result("fuse-vaihingen"))

    summarise_bench(runs, out=tmp_path)

    picture = ET.parse(tmp_path / "summary_fuse.svg").getroot()
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-5:] == [
        "gate (ours, last step)",
        "MFNet MMAdapter ViT-L (MFNet, arXiv:2410.11160 v2; best on test)",
        "MFNet MMAdapter ViT-H (MFNet, arXiv:2410.11160 v2; best on test)",
        "MultiSenseSeg (MFNet, arXiv:2410.11160 v2)",
        "FTransUNet (MFNet, arXiv:2410.11160 v2)",
    ]


def test_an_older_page_is_kept_unless_told(write, runs, tmp_path):
    write(result("dg-pi2v"))
    (tmp_path / "summary_generalise.svg").write_text("older", encoding="utf-8")

    with pytest.raises(OutputError):
        summarise_bench(runs, out=tmp_path)
    assert not (tmp_path / "summary.md").exists()

    summarise_bench(runs, out=tmp_path, overwrite=True)

    assert (tmp_path / "summary_generalise.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_summary_needs_no_torch(write, runs):
    write(result("dg-pi2v"))
    program = (
        "import sys, pathlib, earthgate_geo.bench.summary as s; "
        f"s.summarise_bench(pathlib.Path({str(runs)!r})); print({{'torch'}} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True
    )

    assert done.stdout.strip() == "set()"
