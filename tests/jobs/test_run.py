import json
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from rasters import RasterSpec, write_raster
from workplace import SIDE_PX, files

import earthgate_geo
from earthgate_geo.errors import CancelledError, InputError, OutputError
from earthgate_geo.model_file import load_model, read_header
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.recipe import Policy
from earthgate_geo.request import AdaptRequest, EvaluateRequest, MapRequest, VectorizeRequest

SILENT = SilentMonitor()
CLOSED = AdaptRequest(
    src="scene.tif",
    model="closed.safetensors",
    steps=1,
    dst=Path("map.tif"),
    runtime="torch",  # converting the network of every test would take most of its time
)
OPEN = replace(CLOSED, model="open.safetensors", labels="truth.tif", steps=30)
EVERY = MapRequest(
    src="scene.tif",
    dst=Path("map.tif"),
    model="closed.safetensors",
    vector=Path("map.gpkg"),
    probs=True,
    runtime="torch",
)

SLOTS = dict.fromkeys(Policy, 4) | {  # of a network of four layers
    **dict.fromkeys([Policy.ALL, Policy.MATCHED_ALL], 12),
    **dict.fromkeys([Policy.MMADAPTER, Policy.MMLORA], 12),
    Policy.SEPARATE: 8,
    **dict.fromkeys([Policy.HEAD_ONLY, Policy.FULL], 0),
    **dict.fromkeys([Policy.GATE, Policy.RANDOM_K, Policy.FIXED_K, Policy.GRAD_NORM_K], 3),
}


class StopAt(SilentMonitor):
    """Interrupts at the first, or at a later, word of a stage."""

    def __init__(self, stage: str, *, begun: bool, error: type[BaseException]) -> None:
        self._wanted, self._begun, self._error = stage, begun, error
        self._stage = ""

    def stage(self, name: str, total: int) -> None:
        self._stage = name
        if name == self._wanted and not self._begun:
            raise self._error

    def update(self, done: int) -> None:
        if self._stage == self._wanted and done:
            raise self._error


def test_a_map_lies_on_the_grid_of_its_scene_and_says_where_it_comes_from(place) -> None:
    request = MapRequest(
        src="scene.tif",
        dst=Path("map.tif"),
        model="open.safetensors",
        runtime="torch",
        precision="fp32",
    )

    document = earthgate_geo.run_map(request, SILENT)

    model = load_model("open.safetensors")
    with rasterio.open("map.tif") as found, rasterio.open("scene.tif") as scene:
        assert (found.shape, found.transform, found.crs) == (
            scene.shape,
            scene.transform,
            scene.crs,
        )
        tags = found.tags()
    assert tags["EARTHGATE_MODEL"] == f"open sha256:{model.digest}"
    assert tags["EARTHGATE_VERSION"] == earthgate_geo.__version__
    assert "EARTHGATE_ADAPTER" not in tags
    assert json.loads(tags["EARTHGATE_OPTIONS"]) == {
        "area": None,
        "bands": [1, 2, 3],
        "batch": 1,
        "network_px": [64, 64],
        "nodata": None,
        "precision": "fp32",
        "runtime": "torch",
        "stride_px": [48, 48],
        "tile_px": [64, 64],
    }
    assert set(json.loads(tags["EARTHGATE_RADIOMETRY"])) == {"low", "high"}
    assert not any(str(place) in text for text in tags.values())
    assert document["outputs"] == {"map": "map.tif"}


def test_the_document_of_a_map_keeps_its_contract(place) -> None:
    request = replace(EVERY, confidence=True)

    document = json.loads(json.dumps(earthgate_geo.run_map(request, SILENT)))

    assert (document["tiles"], document["tile_px"], document["stride_px"]) == (16, 64, 48)
    assert document["gsd"] == pytest.approx(0.5, rel=1e-3)
    assert document["runtime"] == "torch"
    assert {"total", "read", "network", "write"} <= set(document["seconds"])
    assert [entry["value"] for entry in document["classes"]] == [0, 1, 2, 3, 4]
    assert sum(entry["share"] for entry in document["classes"]) == pytest.approx(1)
    hectares = sum(entry["hectares"] for entry in document["classes"])
    assert hectares == pytest.approx((192 * 0.5) ** 2 / 10_000, rel=1e-3)
    assert document["outputs"] == {
        "map": "map.tif",
        "vector": "map.gpkg",
        "confidence": "map_conf.tif",
        "probs": "map_probs.tif",
    }
    assert all(Path(path).is_file() for path in document["outputs"].values())


def test_polygons_have_confidence_though_no_confidence_layer_stays(place) -> None:
    earthgate_geo.run_map(
        MapRequest(
            src="scene.tif", dst=Path("m.tif"), model="open.safetensors", vector=Path("m.gpkg")
        ),
        SILENT,
    )

    assert geopandas.read_file("m.gpkg", layer="m")["confidence"].between(0.2, 1).all()
    assert not Path("m_conf.tif").exists()


def test_behind_a_closed_gate_the_map_is_the_source_models_byte_for_byte(place) -> None:
    document = earthgate_geo.run_adapt(CLOSED, SILENT)
    earthgate_geo.run_map(replace(EVERY, dst=Path("source.tif"), vector=None, probs=False), SILENT)

    header = read_header("scene.adapter.safetensors")
    assert document["decision"] == "gate-closed"
    assert document["sentence"] == (
        "Gate closed, the source model is kept: the adapted model agrees hardly more with itself "
        "than the source model."
    )
    assert header["record"]["slots"] == []
    assert header["base"]["digest"] == load_model("closed.safetensors").digest
    assert Path("map.tif").read_bytes() == Path("source.tif").read_bytes()


def test_labels_open_the_gate_and_the_adapter_file_maps_the_same(place) -> None:
    document = earthgate_geo.run_adapt(OPEN, SILENT)
    model = "scene.adapter.safetensors"
    again = replace(EVERY, dst=Path("2.tif"), model=model, vector=None, probs=False)
    earthgate_geo.run_map(again, SILENT)

    assert document["decision"] == "adapted"
    assert document["sentence"].startswith(
        "Adapted: labels kept out of training have a mean probability of "
    )
    assert document["slots"]
    assert document["trained_parameters"] > 0
    assert (document["steps"], document["seed"]) == (30, 0)
    assert document["seconds"]["total"] > document["seconds"]["adapt"] > 0
    assert Path("map.tif").read_bytes() == Path("2.tif").read_bytes()
    with rasterio.open("map.tif") as found:
        assert found.tags()["EARTHGATE_ADAPTER"] == f"sha256:{document['model']['adapter']}"


@pytest.mark.parametrize("policy", Policy)
def test_every_policy_adapts_and_what_it_saved_maps(place, policy) -> None:
    write_raster(place / "dsm.tif", RasterSpec(bands=1, rows=SIDE_PX, cols=SIDE_PX))
    dsm = "dsm.tif" if policy.needs_heights else None
    document = earthgate_geo.run_adapt(replace(OPEN, policy=policy, steps=2, dsm=dsm), SILENT)

    record = read_header("scene.adapter.safetensors")["record"]
    assert (document["policy"], document["decision"]) == (policy, "adapted")
    same = ("policy", "slots", "trained_parameters", "steps", "seed")
    assert {key: record[key] for key in same} == {key: document[key] for key in same}
    assert len(document["slots"]) == SLOTS[policy]
    assert (document["trained_parameters"] > 0) == (policy is not Policy.HEAD_ONLY)
    with rasterio.open("map.tif") as found:
        assert found.tags()["EARTHGATE_ADAPTER"] == f"sha256:{document['model']['adapter']}"


def test_the_same_steps_and_seed_give_the_same_files(place) -> None:
    earthgate_geo.run_adapt(replace(OPEN, steps=3), SILENT)
    once = [Path(name).read_bytes() for name in ("map.tif", "scene.adapter.safetensors")]
    earthgate_geo.run_adapt(replace(OPEN, steps=3, overwrite=True), SILENT)

    assert once == [Path(name).read_bytes() for name in ("map.tif", "scene.adapter.safetensors")]


def test_without_a_destination_only_the_adapter_file_is_written(place) -> None:
    before = files(place)

    document = earthgate_geo.run_adapt(replace(CLOSED, dst=None), SILENT)

    assert files(place) - before == {"scene.adapter.safetensors"}
    assert document["outputs"] == {"adapter": "scene.adapter.safetensors"}
    assert "tiles" not in document


def test_the_report_shows_the_decision_and_the_command(place) -> None:
    request = replace(OPEN, report=Path("r.html"), command="earthgate adapt --src <scene>")

    document = earthgate_geo.run_adapt(request, SILENT)

    page = Path("r.html").read_text(encoding="utf-8")
    assert document["sentence"] in page
    assert "earthgate adapt --src &lt;scene&gt;" in page
    assert page.count("data:image/png;base64,") == 4  # the scene, both maps, the confidence


@pytest.mark.parametrize("error", [CancelledError, KeyboardInterrupt])
@pytest.mark.parametrize(("stage", "begun"), [("map", False), ("map", True)])
def test_a_stop_before_anything_is_finished_leaves_nothing(place, stage, begun, error) -> None:
    before = files(place)

    with pytest.raises(error):
        earthgate_geo.run_map(EVERY, StopAt(stage, begun=begun, error=error))

    assert files(place) == before


@pytest.mark.parametrize("error", [CancelledError, KeyboardInterrupt])
@pytest.mark.parametrize("stage", ["finish", "vectorize"])
def test_a_stop_of_a_map_keeps_what_is_finished_and_the_next_run_goes_on(
    place, stage, error
) -> None:
    before = files(place)
    with pytest.raises(CancelledError) as stopped:
        earthgate_geo.run_map(EVERY, StopAt(stage, begun=True, error=error))
    kept = files(place) - before

    document = earthgate_geo.run_map(EVERY, SILENT)

    assert str(stopped.value) == (
        "interrupted. Run the same command again to go on where it stopped."
    )
    assert {Path(name).parts[0] for name in kept} == {".map.tif.earthgate"}
    assert {Path(name).suffix for name in kept} == {".earthgate", "", ".json", ".cell"}
    assert document["tiles"] == 0
    assert {name.split(".")[0] for name in files(place) - before} == {"map", "map_probs"}


def test_an_unfinished_map_of_another_model_is_refused_until_it_is_given_up(place) -> None:
    with pytest.raises(CancelledError):
        earthgate_geo.run_map(EVERY, StopAt("finish", begun=True, error=CancelledError))
    other = replace(EVERY, model="open.safetensors")
    digests = [load_model(name).digest for name in ("closed.safetensors", "open.safetensors")]

    with pytest.raises(OutputError) as refused:
        earthgate_geo.run_map(other, SILENT)
    assert str(refused.value) == (
        f"an unfinished map here with model closed sha256:{digests[0]}; expected open "
        f"sha256:{digests[1]}. Pass --no-resume to discard it, or give another --dst."
    )

    assert earthgate_geo.run_map(replace(other, resume=False), SILENT)["tiles"] == 16


@pytest.mark.parametrize("stage", ["adapt", "map", "finish", "vectorize"])
def test_a_stop_in_any_stage_of_an_adaptation_leaves_nothing_behind(place, stage) -> None:
    request = replace(CLOSED, vector=Path("map.gpkg"), report=Path("r.html"))
    before = files(place)

    with pytest.raises(KeyboardInterrupt):
        earthgate_geo.run_adapt(request, StopAt(stage, begun=True, error=KeyboardInterrupt))

    assert files(place) == before


def test_a_stop_leaves_the_older_outputs_as_they_were(place) -> None:
    for name in ("map.tif", "map.qml", "map.gpkg", "scene.adapter.safetensors"):
        Path(name).write_text("old", encoding="utf-8")
    request = replace(CLOSED, vector=Path("map.gpkg"), overwrite=True)

    with pytest.raises(CancelledError):
        earthgate_geo.run_adapt(request, StopAt("vectorize", begun=True, error=CancelledError))

    for name in ("map.tif", "map.qml", "map.gpkg", "scene.adapter.safetensors"):
        assert Path(name).read_text(encoding="utf-8") == "old"


def test_an_adapter_is_not_adapted_again(place) -> None:
    earthgate_geo.run_adapt(replace(CLOSED, dst=None), SILENT)

    with pytest.raises(InputError) as refusal:
        earthgate_geo.run_adapt(
            replace(CLOSED, model="scene.adapter.safetensors", out=Path("b.safetensors")), SILENT
        )
    assert str(refusal.value) == (
        "scene.adapter.safetensors is an adapter, made for scene; expected a model. Adapt its "
        "base closed, or map with the adapter: earthgate map --model."
    )


def test_a_plan_counts_the_tiles_of_the_run_and_writes_nothing(place) -> None:
    request = MapRequest(src="scene.tif", dst=Path("map.tif"), model="open.safetensors")
    before = files(place)

    planned = earthgate_geo.plan(request, SILENT)

    assert files(place) == before
    done = earthgate_geo.run_map(request, SILENT)
    same = ("scene", "grid", "model", "tiles", "tile_px", "stride_px", "gsd", "outputs")
    assert {key: planned[key] for key in same} == {key: done[key] for key in same}
    assert planned["disk_mb"] < planned["disk_free_mb"]
    assert planned["seconds"] > 0


def test_a_plan_of_an_adaptation_counts_the_training(place) -> None:
    assert earthgate_geo.plan(replace(CLOSED, dst=None, steps=160), SILENT)["seconds"] == 180
    capped = replace(CLOSED, dst=None, steps=None, minutes=0.5)
    assert earthgate_geo.plan(capped, SILENT)["seconds"] == 30


def test_evaluation_agrees_with_counting(place) -> None:
    earthgate_geo.run_map(
        MapRequest(src="scene.tif", dst=Path("map.tif"), model="closed.safetensors"), SILENT
    )

    document = earthgate_geo.run_evaluate(EvaluateRequest(map="map.tif", labels="truth.tif"))

    building, *_, water = document["classes"]
    assert document["pixels"] == 192 * 192
    assert document["accuracy"] == pytest.approx(0.5)
    assert (building["iou"], water["iou"]) == (pytest.approx(0.5), 0.0)


def test_every_pixel_of_a_large_map_counts_once(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = '[{"value": 0, "name": "land", "color": "#ffffff"}, {"value": 1, "name": "water"'
    tags = {"EARTHGATE_CLASSES": names + ', "color": "#0000ff"}]'}
    rng = np.random.default_rng(0)
    found, truth = (rng.integers(0, 2, (1, 1100, 1300)).astype(np.uint8) for _ in "ab")
    found[:, :300] = truth[:, :300]
    write_raster(Path("map.tif"), RasterSpec(tags=tags, nodata=255), values=found)
    write_raster(Path("truth.tif"), RasterSpec(nodata=255), values=truth)

    document = earthgate_geo.run_evaluate(EvaluateRequest(map="map.tif", labels="truth.tif"))

    assert document["pixels"] == truth.size
    assert document["accuracy"] == pytest.approx((found == truth).mean())


def test_vectorize_is_the_vector_of_the_map(place) -> None:
    request = MapRequest(
        src="scene.tif", dst=Path("m.tif"), model="open.safetensors", vector=Path("1.gpkg")
    )
    mapped = earthgate_geo.run_map(request, SILENT)

    document = earthgate_geo.run_vectorize(
        VectorizeRequest(map="m.tif", dst=Path("2.gpkg")), SILENT
    )

    assert document["polygons"] == mapped["polygons"]
    assert document["outputs"] == {"vector": "2.gpkg"}


def test_the_public_network_maps_images_to_logits(place) -> None:
    network = earthgate_geo.load_model("open.safetensors")

    with torch.inference_mode():
        logits = network(torch.rand(2, 3, 40, 56))

    assert logits.shape == (2, 5, 40, 56)
    assert np.isfinite(logits.numpy()).all()


def test_undeclared_black_is_mapped_and_pointed_out(place) -> None:
    warnings = []

    class Listener(SilentMonitor):
        def warn(self, message: str) -> None:
            warnings.append(message)

    with rasterio.open("scene.tif", "r+") as scene:
        pixels = np.maximum(scene.read(), 1)
        pixels[:, : SIDE_PX // 2] = 0
        scene.write(pixels)

    earthgate_geo.run_map(replace(EVERY, vector=None, probs=False), Listener())

    (warning,) = warnings
    assert warning == (
        "50% of scene is 0 in every band, and taken for data like all else. If nothing was "
        "recorded there, pass --nodata 0."
    )
