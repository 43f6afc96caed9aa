import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasters import NORTH_UP, RasterSpec, write_raster
from workplace import files

from earthgate_geo.errors import CancelledError, LabelsElsewhereError, OutputError
from earthgate_geo.jobs.adapt import plan_adapt, run_adapt
from earthgate_geo.jobs.map import run_map
from earthgate_geo.model_file import load_model, read_header, save_model
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.report import Shown, render
from earthgate_geo.request import AdaptRequest, MapRequest

SILENT = SilentMonitor()
BOTH = AdaptRequest(
    src="scene.tif",
    more=("finer.tif",),
    out_dir=Path("maps"),
    model="open.safetensors",
    labels="truth.tif",
    steps=2,
)
ADAPTER = Path("maps", "scene.adapter.safetensors")


@pytest.fixture
def pair(place):
    """Add a scene elsewhere, of finer pixels and other numbers than the first."""
    values = np.random.default_rng(1).integers(0, 1000, (3, 256, 224)).astype(np.uint16)
    there = NORTH_UP @ Affine.translation(5000, 0) @ Affine.scale(0.5)
    write_raster(place / "finer.tif", RasterSpec(transform=there), values=values)
    return place


def _pixels(path):
    with rasterio.open(path) as found:
        return found.read(1)


def test_one_adaptation_maps_all_scenes_of_a_sensor(pair):
    document = json.loads(json.dumps(run_adapt(BOTH, SILENT)))

    assert document["decision"] == "adapted"
    assert document["scene"] == read_header(ADAPTER)["record"]["scene"] == "scene, finer"
    assert document["outputs"] == {"adapter": str(ADAPTER)}
    assert document["manifest"] == str(Path("maps", "manifest.jsonl"))
    assert [(entry["src"], entry["state"]) for entry in document["scenes"]] == [
        ("scene.tif", "done"),
        ("finer.tif", "done"),
    ]
    adapter = load_model(ADAPTER, folders=[pair]).adapter_digest
    for name, shape in (("scene", (192, 192)), ("finer", (256, 224))):
        with rasterio.open(f"maps/{name}_map.tif") as found:
            assert found.shape == shape
            assert found.tags()["EARTHGATE_ADAPTER"] == f"sha256:{adapter}"


def test_the_document_and_the_adapter_file_say_what_confidence_rests_on(pair):
    model = load_model("open.safetensors")
    model.segmenter.head.temper(1 / 40)  # far too sure of itself
    save_model(Path("open.safetensors"), model.segmenter, card=model.card, replay=model.replay)
    document = run_adapt(replace(BOTH, more=(), out_dir=None, out=Path("a.safetensors")), SILENT)

    temperature = document["evidence"]["calibration"]["temperature"]
    assert document["temperature"] == read_header("a.safetensors")["record"]["temperature"]
    assert document["temperature"] == temperature != 1
    assert document["remarks"][0].startswith(f"Confidence: logits are divided by {temperature:.2f}")
    assert document["table"][0]["measure"] == "probability of labels kept out of training"


def test_behind_a_closed_gate_nothing_is_calibrated(pair):
    asked = replace(BOTH, more=(), out_dir=None, labels=None, model="closed.safetensors")

    document = run_adapt(asked, SILENT)

    assert document["decision"] == "gate-closed"
    assert document["temperature"] == 1.0
    source, adapted = (
        load_model(name, folders=[pair]).segmenter.state_dict()
        for name in ("closed.safetensors", "scene.adapter.safetensors")
    )
    assert all(torch.equal(value, adapted[key]) for key, value in source.items())


def test_the_maps_are_those_that_the_adapter_file_makes(pair):
    run_adapt(BOTH, SILENT)
    for name in ("scene", "finer"):
        alone = MapRequest(
            src=f"{name}.tif", dst=Path(f"{name}_alone.tif"), model=str(ADAPTER), model_folder=pair
        )
        run_map(alone, SILENT)

        assert np.array_equal(_pixels(f"{name}_alone.tif"), _pixels(f"maps/{name}_map.tif"))


def test_the_base_model_may_lie_anywhere(pair):
    models = pair / "models"
    models.mkdir()
    Path("open.safetensors").rename(models / "open.safetensors")

    document = run_adapt(replace(BOTH, model=str(models / "open.safetensors")), SILENT)

    assert [entry["state"] for entry in document["scenes"]] == ["done", "done"]


def test_labels_that_lie_in_no_scene_are_refused(pair):
    before = files(pair)

    with pytest.raises(LabelsElsewhereError) as refusal:
        run_adapt(replace(BOTH, src="finer.tif", more=("finer.tif",), name="{n}.tif"), SILENT)

    assert str(refusal.value) == (
        "truth.tif has no label inside the scene; expected labels that overlap it. "
        "Look at both in QGIS; one of the files may name a wrong CRS."
    )
    assert files(pair) == before


def test_a_scene_whose_map_fails_leaves_the_adapter_and_the_other_maps(pair):
    class Spoiler(SilentMonitor):
        def log(self, message: str) -> None:
            if message.startswith("scene 2"):
                Path("finer.tif").write_bytes(b"")

    document = run_adapt(BOTH, Spoiler())

    first, second = document["scenes"]
    assert (first["state"], second["state"]) == ("done", "failed")
    assert second["error"].startswith("finer.tif is empty (0 bytes)")
    assert ADAPTER.is_file()


def test_a_stop_among_the_maps_says_how_to_go_on(pair):
    class Impatient(SilentMonitor):
        def stage(self, name: str, total: int) -> None:
            if name == "map":
                raise CancelledError

    with pytest.raises(CancelledError) as stop:
        run_adapt(BOTH, Impatient())

    assert str(stop.value) == (
        f"interrupted. The adapter file is there: earthgate map --model {ADAPTER} --out-dir maps "
        "with the same scenes goes on."
    )
    assert ADAPTER.is_file()


def test_a_stop_in_the_training_of_many_leaves_nothing_behind(pair):
    class Impatient(SilentMonitor):
        def update(self, done: int) -> None:
            raise CancelledError

    before = files(pair)

    with pytest.raises(CancelledError):
        run_adapt(BOTH, Impatient())

    assert files(pair) == before


def test_a_map_in_the_way_is_refused_before_the_training(pair):
    Path("maps").mkdir()
    Path("maps/finer_map.tif").touch()

    class Strict(SilentMonitor):
        def stage(self, name: str, total: int) -> None:
            raise AssertionError(name)

    with pytest.raises(OutputError) as refusal:
        run_adapt(BOTH, Strict())

    assert str(refusal.value) == (
        f"{Path('maps', 'finer_map.tif')} exists. Pass --overwrite to replace it, or give another "
        "name."
    )


def test_without_a_folder_several_scenes_make_an_adapter_file_alone(pair):
    before = files(pair)

    document = run_adapt(replace(BOTH, out_dir=None), SILENT)

    assert files(pair) - before == {"scene.adapter.safetensors"}
    assert "scenes" not in document
    assert document["scene"] == "scene, finer"


def test_the_report_of_several_scenes_names_all_shows_the_first_and_is_told_as_json(pair):
    document = run_adapt(replace(BOTH, report=Path("r.html"), command="earthgate adapt"), SILENT)

    page = Path("r.html").read_text(encoding="utf-8")
    assert "<h1>scene, finer</h1>" in page
    assert "<figcaption>scene</figcaption>" in page
    flat = np.zeros((1, 1, 3), np.uint8)
    shown = Shown(image=flat, before=flat, after=flat, confidence=np.zeros((1, 1), np.float32))
    told = render(json.loads(json.dumps(document)), shown)
    pictures_and_time = 'src="data:[^"]+"|total: [0-9.e-]+'
    assert re.sub(pictures_and_time, "", page) == re.sub(pictures_and_time, "", told)


def test_a_plan_of_several_scenes_sums_them_up_and_writes_nothing(pair):
    before = files(pair)

    planned = plan_adapt(replace(BOTH, steps=160), SILENT)

    assert files(pair) == before
    assert planned["scene"] == "scene, finer"
    first, second = planned["scenes"]
    assert (first["src"], first["state"], first["tiles"]) == ("scene.tif", "planned", 16)
    assert planned["tiles"] == 16 + second["tiles"]
    assert planned["seconds"] == pytest.approx(180 + first["seconds"] + second["seconds"])
    assert planned["outputs"] == {"adapter": str(ADAPTER)}
