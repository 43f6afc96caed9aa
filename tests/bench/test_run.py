import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from networks import small_segmenter

from earthgate_geo.bench.run import network_classes, run_bench
from earthgate_geo.bench.settings import find_setting
from earthgate_geo.data.synthetic import CLASSES
from earthgate_geo.errors import DataError, InputError, OutputError
from earthgate_geo.model_file import DEFAULT_MODEL, save_model
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.recipe import Policy, Recipe
from earthgate_geo.training_request import BenchRequest

SETTING = "places-zanzibar-kampala"
Run = Callable[..., dict]


class Listener(SilentMonitor):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.stages: list[tuple[str, int]] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))


@pytest.fixture
def request_for(root: Path) -> Callable[..., BenchRequest]:
    """Make a request of a few small steps."""

    def make(**changes: object) -> BenchRequest:
        small = {"steps": 2, "batch": 1, "crop_px": 16, "interval": 1, "device": "cpu"}
        model = None if "backbone" in changes else str(root / "small.safetensors")
        fixed = {"setting": SETTING, "data": root, "model": model, **small}
        return BenchRequest(**(fixed | changes))

    return make


@pytest.fixture
def bench(request_for) -> Run:
    """Run a few small steps."""
    return lambda **changes: run_bench(request_for(**changes), SilentMonitor())


def scores(document: dict) -> dict:
    keys = ("classes", "miou_before", "miou_last", "miou_best_on_test", "losses", "history")
    return {key: document[key] for key in keys}


def test_a_run_tells_scores_cost_and_what_it_was(bench) -> None:
    document = bench()

    assert document["setting"]["name"] == SETTING
    assert (document["policy"], document["seed"], document["recipe"]["steps"]) == ("gate", 0, 2)
    assert document["images"] == {"source": 4, "target": 2, "test": 2}
    assert [entry["name"] for entry in document["classes"]] == ["building"]
    assert document["miou_last"] == document["classes"][0]["iou_last"]
    assert all(0 <= document[key] <= 1 for key in ("miou_before", "miou_last"))
    assert document["miou_best_on_test"] >= document["miou_last"]
    assert document["step_of_best"] in (1, 2)
    assert len(document["history"]) == len(document["losses"]) == 2
    assert document["trained_parameters"] > 0 < document["head_parameters"]
    assert all(seconds > 0 for seconds in document["seconds"].values())


def test_the_same_seed_repeats_a_run_and_another_does_not(bench) -> None:
    first, again, other = bench(seed=1), bench(seed=1), bench(seed=2)

    assert scores(again) == scores(first)
    assert other["losses"] != first["losses"]


@pytest.mark.parametrize(
    ("policy", "trains"), [("head-only", False), ("all", True), ("full", True)]
)
def test_any_policy_is_one_option_away(bench, policy, trains) -> None:
    document = bench(policy=policy)

    assert document["policy"] == document["recipe"]["policy"] == policy
    assert (document["trained_parameters"] > 0) == trains
    assert document["history"] == []


def test_labels_of_the_target_that_training_sees_are_never_read(bench, root) -> None:
    honest = bench()

    adaptation = ("a", "c")  # grounds take turns
    for number, ground in enumerate("abcd"):
        if ground in adaptation:
            (root / f"fair_buildings/kampala_ug/labels/{number}.tif").write_text("no raster")

    assert scores(bench()) == scores(honest)


def test_the_result_is_written_as_json_and_as_a_page(bench, tmp_path) -> None:
    document = bench(out=tmp_path, seed=3, policy="random-k")

    stem = f"{SETTING}.random-k.s3"
    assert json.loads((tmp_path / f"{stem}.json").read_text("utf-8")) == document
    page = (tmp_path / f"{stem}.md").read_text("utf-8")
    assert page.startswith("# Buildings on drone tiles, zanzibar to kampala\n")
    assert f"| building | {100 * document['miou_last']:.1f} |" in page
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.json", f"{stem}.md", "data"}


def test_a_result_that_exists_is_kept_unless_told(bench, tmp_path) -> None:
    result = tmp_path / f"{SETTING}.gate.s0.json"
    result.write_text("older", encoding="utf-8")

    with pytest.raises(OutputError) as refusal:
        bench(out=tmp_path)
    assert str(refusal.value) == (
        f"{result} exists. Pass --overwrite to replace it, or give another name."
    )
    assert result.read_text("utf-8") == "older"

    bench(out=tmp_path, overwrite=True)

    assert json.loads(result.read_text("utf-8"))["policy"] == "gate"


def test_a_failed_run_leaves_nothing_behind(bench, root, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.rmtree(root / "fair_buildings")

    with pytest.raises(DataError):
        bench(out=out)

    assert list(out.iterdir()) == []


def test_a_new_head_learns_the_setting_s_classes_and_the_rest(bench) -> None:
    document = bench(head="linear")

    assert document["model"]["head"] == "linear"
    assert document["model"]["head_is_new"]
    assert document["miou_before"] is None
    assert math.isfinite(sum(document["losses"]))


def test_a_model_that_knows_the_classes_keeps_its_own(request_for) -> None:
    setting = find_setting(SETTING)

    kept = network_classes(setting, request_for())
    fresh = network_classes(setting, request_for(backbone="earthgate_tiny"))
    foreign = network_classes(find_setting("da-u2r"), request_for())

    assert kept.names == CLASSES.names
    assert fresh.names == ("building", "other")
    assert foreign.names == find_setting("da-u2r").classes


def test_the_packaged_model_is_warned_of_where_it_has_seen_the_target(request_for, root) -> None:
    listener = Listener()
    packaged = root / "packaged.safetensors"
    save_model(packaged, small_segmenter(), card={"name": DEFAULT_MODEL})

    run_bench(request_for(model=str(packaged)), listener)
    run_bench(request_for(), listener)

    assert listener.warnings == [
        "The packaged model has seen every place: the score says nothing about a new one"
    ]
    assert listener.stages == [("train", 2), ("train", 2)]


def test_what_the_request_leaves_open_is_as_the_setting_says() -> None:
    usual = find_setting(SETTING).recipe
    request = BenchRequest(setting=SETTING, data=Path(), policy="all", seed=7)

    assert request.recipe(usual) == replace(usual, policy=Policy.ALL, seed=7)


def test_what_the_request_says_replaces_what_the_setting_says() -> None:
    request = BenchRequest(
        setting=SETTING, data=Path(), steps=5, batch=3, crop_px=8, learning_rate=0.1, interval=2
    )

    recipe = request.recipe(find_setting(SETTING).recipe)
    alone = request.recipe(Recipe())

    assert (recipe.steps, recipe.batch, recipe.target_batch, recipe.crop_px) == (5, 3, 3, 8)
    assert (recipe.learning_rate, recipe.selection.interval) == (0.1, 2)
    assert (alone.batch, alone.target_batch) == (3, 0)


def test_an_unknown_setting_is_refused(bench) -> None:
    with pytest.raises(InputError) as refusal:
        bench(setting="places-nowhere")

    assert str(refusal.value) == (
        "the setting 'places-nowhere'; expected one of those that `earthgate bench --list` shows."
    )
