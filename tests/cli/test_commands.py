import json
import shutil
from pathlib import Path

import geopandas
import pytest
import rasterio
from networks import small_segmenter
from rasters import RasterSpec, write_raster
from workplace import files

from earthgate_cli.main import main
from earthgate_geo.model_file import file_digest, save_model

MAP = ["map", "--src", "scene.tif", "--dst", "map.tif", "--model", "closed.safetensors"]
ADAPT = ["adapt", *MAP[1:], "--steps", "1"]
OPEN = ["adapt", "--src", "scene.tif", "--model", "open.safetensors", "--labels", "truth.tif"]
OPEN += ["--steps", "2"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must succeed and return its stdout."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return captured.out


def test_map_says_what_it_mapped_and_wrote(place, capsys) -> None:
    lines = printed(capsys, *MAP, "--vector", "map.gpkg", "--confidence", "--probs").splitlines()

    assert lines[0].startswith("mapped 16 tiles of 64 px every 48 px at 0.5 m; ")
    assert lines[1] == "  building         100.0%        0.92 ha"
    assert lines[-4:] == [
        "wrote map.tif",
        "wrote map.gpkg",
        "wrote map_conf.tif",
        "wrote map_probs.tif",
    ]


def test_map_prints_its_document_as_json_and_nothing_else(place, capsys) -> None:
    document = json.loads(printed(capsys, *MAP, "--json"))

    assert document["tiles"] == 16
    assert document["outputs"] == {"map": "map.tif"}


def test_quiet_maps_and_says_nothing(place, capsys) -> None:
    assert printed(capsys, *MAP, "-q") == ""
    assert Path("map.tif").is_file()


def test_map_follows_the_progress_protocol(place, capsys) -> None:
    assert main([*MAP, "--vector", "map.gpkg", "--progress", "json"]) == 0

    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    kinds = {event["event"] for event in events}
    stages = list(dict.fromkeys(e["stage"] for e in events if e["event"] == "progress"))
    assert kinds == {"progress", "result"}
    assert stages == ["map", "finish", "vectorize"]
    assert events[-1]["event"] == "result"
    assert events[-1]["tiles"] == 16
    for stage in stages:
        last = [e for e in events if e.get("stage") == stage][-1]
        assert last["done"] == last["total"] > 0


@pytest.fixture
def scenes(place):
    Path("in").mkdir()
    for name in ("a", "b"):
        write_raster(Path(f"in/{name}.tif"))
    Path("in/no.tif").write_text("hello", encoding="utf-8")


BATCH = ["map", "--src", "in/*.tif", "--out-dir", "out", "--model", "closed.safetensors"]


def test_a_batch_ends_with_3_and_names_what_failed(scenes, capsys) -> None:
    assert main([*BATCH, "--name", "{n}_{scene}.tif", "-q"]) == 3
    assert main([*BATCH, "--name", "{n}_{scene}.tif"]) == 3

    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    source = Path("in/no.tif")
    sentence = (
        f"{source} cannot be opened as a raster; expected a file that GDAL reads, such as "
        f"GeoTIFF, VRT or JPEG 2000. See what gdalinfo says about it: gdalinfo {source}."
    )
    assert captured.err == ""
    assert lines[0].startswith("mapped 2 of 3 scenes (2 by an earlier run); ")
    assert lines[1:] == [
        f"failed {source}: {sentence}",
        "map those that failed before again with --retry-failed",
        f"wrote {Path('out/manifest.jsonl')}",
    ]
    assert {path.name for path in Path("out").glob("*.tif")} == {"1_a.tif", "2_b.tif"}


def test_a_batch_prints_a_document_of_scenes(scenes, capsys) -> None:
    Path("list.txt").write_text("in/a.tif\nin/b.tif\n", encoding="utf-8")
    command = [*BATCH[:2], "@list.txt", *BATCH[3:], "--vector-format", "fgb", "--json"]

    document = json.loads(printed(capsys, *command))

    assert [entry["state"] for entry in document["scenes"]] == ["done", "done"]
    assert document["scenes"][1]["outputs"] == {
        "map": str(Path("out/b_map.tif")),
        "vector": str(Path("out/b_map.fgb")),
    }


def test_a_batch_follows_the_progress_protocol(scenes, capsys) -> None:
    assert main([*BATCH, "--progress", "json"]) == 3

    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    begun = [e["message"] for e in events if e["event"] == "log" and e["level"] == "info"]
    assert begun == [
        f"scene {n} of 3: {Path('in') / name}.tif" for n, name in enumerate(["a", "b", "no"], 1)
    ]
    assert {e["stage"] for e in events if e["event"] == "progress"} == {"map", "finish"}
    assert events[-1]["event"] == "result"
    assert [entry["state"] for entry in events[-1]["scenes"]] == ["done", "done", "failed"]


def test_a_dry_run_of_a_batch_touches_nothing(place, scenes, capsys) -> None:
    before = files(place)

    assert main([*BATCH, "--dry-run", "-q"]) == 3
    lines = printed(capsys, *BATCH[:2], "in/[ab].tif", *BATCH[3:], "--dry-run").splitlines()

    assert files(place) == before
    assert lines[:4] == [
        f"{Path('in/a.tif')}: 2 tiles of 64 px every 48 px at 0.5 m",
        f"{Path('in/b.tif')}: 2 tiles of 64 px every 48 px at 0.5 m",
        "scenes   2 of 2 to map",
        "tiles    4",
    ]
    assert [line.split()[0] for line in lines[4:]] == ["memory", "disk", "time"]


def test_creation_options_reach_the_file(place, capsys) -> None:
    printed(capsys, *MAP, "--co", "COMPRESS=LZW", "--co", "blocksize=128")

    with rasterio.open("map.tif") as found:
        assert (found.compression.name, found.block_shapes[0]) == ("lzw", (128, 128))


def test_adapt_names_the_decision_first(place, capsys) -> None:
    lines = printed(capsys, *ADAPT, "--vector", "map.gpkg", "--report", "r.html").splitlines()

    assert lines[0] == (
        "Gate closed, the source model is kept: the adapted model agrees hardly more with itself "
        "than the source model."
    )
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "before refused",
        "agrees with itself, turned and in other light 100.0% 100.0%",
        "mean confidence 100.0% 100.0%",
    ]
    assert len({len(line) for line in lines[1:9]}) == 1  # the numbers stand below each other
    assert lines[9:11] == [
        "Confidence is the source model's own, not calibrated.",
        "Next: digitise about 10 polygons of the classes it confuses and pass them with --labels.",
    ]
    assert lines[-4:] == [
        "wrote map.tif",
        "wrote map.gpkg",
        "wrote scene.adapter.safetensors",
        "wrote r.html",
    ]


def test_adapt_shows_a_terminal_the_table_in_bold_and_a_pipe_plain(place, capsys) -> None:
    from_pipe = printed(capsys, *ADAPT)
    with pytest.MonkeyPatch.context() as terminal:
        terminal.setattr("sys.stdout.isatty", lambda: True, raising=False)
        terminal.setenv("TERM", "xterm")
        on_screen = printed(capsys, *ADAPT, "--overwrite")

    assert "\x1b[1m" in on_screen
    assert "\x1b" not in from_pipe


def test_adapt_writes_its_adapter_beside_the_map(place, capsys) -> None:
    Path("out").mkdir()

    document = json.loads(printed(capsys, *ADAPT, "--dst", "out/map.tif", "--json"))

    assert document["outputs"]["adapter"] == str(Path("out/scene.adapter.safetensors"))
    assert Path("out/scene.adapter.safetensors").is_file()


def test_several_scenes_are_adapted_to_once_and_mapped_as_a_batch(scenes, capsys) -> None:
    several = ["adapt", *BATCH[1:2], "in/[ab].tif", *BATCH[3:], "--steps", "1"]

    planned = printed(capsys, *several, "--dry-run").splitlines()
    lines = printed(capsys, *several).splitlines()

    assert planned[0].startswith("scene    a, b: ")
    assert lines[-3] == f"wrote {Path('out/a.adapter.safetensors')}"
    assert lines[-2].startswith("mapped 2 of 2 scenes; ")
    assert lines[-1] == f"wrote {Path('out/manifest.jsonl')}"
    shutil.copy("closed.safetensors", "out")  # where the adapter file finds its base
    again = printed(
        capsys, *BATCH[:2], "in/[ab].tif", *BATCH[3:5], "--model", "out/a.adapter.safetensors"
    )
    assert again.startswith("mapped 2 of 2 scenes (2 by an earlier run); ")


def test_a_dry_run_tells_the_plan_and_touches_nothing(place, capsys) -> None:
    before = files(place)

    lines = printed(capsys, *ADAPT, "--vector", "map.gpkg", "--dry-run").splitlines()

    assert files(place) == before
    assert [line.split()[0] for line in lines] == [
        *("scene", "model", "tiles", "memory", "disk", "time", "outputs")
    ]
    assert lines[0] == "scene    scene: 192 x 192 px, 0.5 x 0.5 m, EPSG:32633"
    assert lines[2] == "tiles    16 tiles of 64 px every 48 px at 0.5 m"
    assert lines[-1] == "outputs  map.tif, map.gpkg, scene.adapter.safetensors"


def test_vectorize_and_evaluate_take_the_map(place, capsys) -> None:
    printed(capsys, *MAP)

    assert printed(capsys, "vectorize", "--map", "map.tif", "--dst", "v.gpkg") == (
        "1 polygon\nwrote v.gpkg\n"
    )
    lines = printed(capsys, "evaluate", "--map", "map.tif", "--labels", "truth.tif").splitlines()
    assert lines[1] == "building           50.0%   66.7%       18432       36864"
    assert lines[-1] == "accuracy 50.0% of 36864 known pixels"


def test_the_options_of_polygons_reach_them(place, capsys) -> None:
    printed(capsys, *MAP, "--vector", "map.gpkg", "--min-area", "99999")
    document = json.loads(printed(capsys, *MAP, "--vector", "m.fgb", "--overwrite", "--json"))

    assert len(geopandas.read_file("map.gpkg", layer="map")) == 0
    assert document["polygons"] == len(geopandas.read_file("m.fgb")) == 1
    told = printed(
        capsys, "vectorize", "--map", "map.tif", "--dst", "v.parquet", "--min-area", "99999"
    )
    assert told == "0 polygons\nwrote v.parquet\n"


def test_evaluate_takes_the_options_of_labels(place, capsys) -> None:
    printed(capsys, *MAP)

    document = json.loads(
        printed(
            capsys,
            *("evaluate", "--map", "map.tif", "--labels", "truth.tif"),
            *("--label-map", "4=other,0=building", "--json"),
        )
    )

    assert document["on_other"] == [18432, 0, 0, 0, 0]
    assert document["accuracy"] == 0.5


def test_evaluate_follows_the_progress_protocol(place, capsys) -> None:
    printed(capsys, *MAP)
    evaluate = ["evaluate", "--map", "map.tif", "--progress", "json"]

    assert main([*evaluate, "--labels", "truth.tif"]) == 0
    (result,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert main([*evaluate, "--labels", "missing.tif"]) == 2
    (error,) = map(json.loads, capsys.readouterr().err.splitlines())

    assert (result["event"], error["event"]) == ("result", "error")
    assert result["accuracy"] == 0.5
    assert {"mean_iou", "mean_f1"} <= set(result)
    assert "missing.tif" in error["message"]


def test_info_says_what_a_file_is(place, capsys) -> None:
    printed(capsys, *ADAPT)

    wanted = {
        "scene.tif": "scene",
        "map.tif": "map",
        "closed.safetensors": "model",
        "scene.adapter.safetensors": "adapter",
    }
    found = {name: json.loads(printed(capsys, "info", name, "--json")) for name in wanted}

    assert {name: document["what"] for name, document in found.items()} == wanted
    assert found["map.tif"]["model"].startswith("closed sha256:")
    assert found["scene.adapter.safetensors"]["decision"] == "gate-closed"
    assert found["closed.safetensors"]["classes"][0] == "building"
    lines = printed(capsys, "info", "scene.tif").splitlines()
    assert lines[0].split() == ["what", "scene"]


def test_info_shows_the_gate_as_a_table_of_layers_and_kinds(place, capsys) -> None:
    printed(capsys, *OPEN)

    document = json.loads(printed(capsys, "info", "scene.adapter.safetensors", "--json"))
    lines = printed(capsys, "info", "scene.adapter.safetensors").splitlines()

    table = lines[lines.index("") + 1 :]
    assert table[0] == "layer    spatial    semantic   frequency"
    for line, layer in zip(table[1:5], range(4), strict=True):
        names = [f"{layer}.{kind}" for kind in ("spatial", "semantic", "frequency")]
        cells = [f"{document['scores'][name]:.1%}" for name in names]
        marks = ["*" * (name in document["slots"]) for name in names]
        assert line.split() == [str(layer), *map("".join, zip(cells, marks, strict=True))]
    assert len(document["slots"]) == 3
    count = document["trained_parameters"]
    assert table[5:] == [
        f"* trained and kept: 3 of 12 modules; {count:,} parameters trained beside the head",
        "%: share of the scores of its kind at the last choice",
    ]
    assert not any(line.startswith(("slots", "scores")) for line in lines)


def test_info_of_an_adapter_without_a_choice_says_what_trained(place, capsys) -> None:
    printed(capsys, *OPEN, "--policy", "rein")

    lines = printed(capsys, "info", "scene.adapter.safetensors").splitlines()

    assert lines[-1] == "policy rein: 4 modules; 18,817 parameters trained beside the head"


def test_info_of_a_trained_model_shows_its_gate_and_leaves_random_choices_unscored(
    place, capsys
) -> None:
    training = {
        "recipe": {"steps": 100},
        "policy": "random-k",
        "slots": ["1.frequency", "2.semantic"],
        "scores": {},
        "trained_parameters": 1234,
    }
    save_model(Path("m.safetensors"), small_segmenter(), card={"training": training})

    lines = printed(capsys, "info", "m.safetensors").splitlines()

    assert "recipe              steps: 100" in lines
    assert lines[lines.index("") + 1 :] == [
        "layer   semantic   frequency",
        "    0          -           -",
        "    1          -            *",
        "    2           *          -",
        "* trained and kept: 2 modules; 1,234 parameters trained beside the head",
    ]
    document = json.loads(printed(capsys, "info", "m.safetensors", "--json"))
    assert document["card"]["training"] == training


def test_models_lists_the_model_folder_without_adapters(place, capsys) -> None:
    printed(capsys, *ADAPT)
    Path("models").mkdir()
    shutil.copy("closed.safetensors", "models")
    shutil.copy("scene.adapter.safetensors", "models")
    Path("models/broken.safetensors").write_bytes(b"x" * 99)

    document = json.loads(printed(capsys, "models", "--json"))
    lines = printed(capsys, "models").splitlines()

    entry = document["models"][-1]
    assert set(entry) == {
        *("name", "file", "packaged", "classes", "bands", "heights", "gsd"),
        *("licence", "digest", "card_file", "card"),
    }
    assert (entry["name"], entry["licence"], entry["gsd"]) == ("closed", "CC0", [0.1, 0.6])
    assert [each["packaged"] for each in document["models"]] == [True, False]
    assert len(document["unreadable"]) == 1
    assert lines[-1].startswith(f"unreadable: {place / 'models' / 'broken.safetensors'} cannot be")


def test_a_model_that_takes_heights_says_so(place, capsys) -> None:
    Path("models").mkdir()
    save_model(Path("models/hilly.safetensors"), small_segmenter().with_heights(), card={})

    lines = printed(capsys, "models").splitlines()

    assert "  input    red, green, blue with heights, for scenes of 0.1 to 0.6 m a pixel" in lines
    assert sum("with heights" in line for line in lines) == 1
    assert json.loads(printed(capsys, "info", "hilly", "--json"))["heights"] is True
    assert json.loads(printed(capsys, "info", "open.safetensors", "--json"))["heights"] is False


def test_models_says_what_each_may_be_used_for(place, capsys) -> None:
    Path("models").mkdir()
    for name, card in (("bare", {}), ("told", {"name": "told", "data": "a town"})):
        save_model(Path(f"models/{name}.safetensors"), small_segmenter(), card=card)

    lines = printed(capsys, "models").splitlines()

    packaged, bare, told = (lines[start : start + 7] for start in (0, 7, 14))
    assert packaged[0] == "earthgate-tiny, packaged"
    assert packaged[3] == "  licence  Apache-2.0, with attribution"
    assert Path(packaged[4].removeprefix("  card     ")).read_text().startswith("# Model card")
    assert bare[0] == "bare, yours"
    assert bare[1] == "  classes  building, road, bare ground, vegetation, water"
    assert bare[3:5] == [
        "  licence  not stated",
        "  card     none: data, scores and limits are not stated",
    ]
    file = place / "models" / "told.safetensors"
    assert told[4] == f"  card     in the file: earthgate info '{file}'"
    assert told[6] == f"  sha256   {file_digest(file)}"


def test_info_shows_a_gate_of_image_heights_and_fusion(place, capsys) -> None:
    write_raster(Path("dsm.tif"), RasterSpec(bands=1, rows=192, cols=192))
    printed(capsys, *OPEN, "--dsm", "dsm.tif")

    lines = printed(capsys, "info", "scene.adapter.safetensors").splitlines()

    assert lines[lines.index("") + 1] == "layer      image      height      fusion"


def test_a_plan_tells_the_share_of_the_scene_with_heights(place, capsys) -> None:
    write_raster(Path("dsm.tif"), RasterSpec(bands=1, rows=192, cols=96))

    lines = printed(capsys, *OPEN, "--dsm", "dsm.tif", "--dry-run").splitlines()

    assert "heights  50% of the scene" in lines


def test_a_model_of_the_model_folder_has_a_name(place, capsys) -> None:
    Path("models").mkdir()
    shutil.move("closed.safetensors", "models/mine.safetensors")

    document = json.loads(printed(capsys, *MAP, "--model", "mine", "--json"))

    assert document["model"]["name"] == "closed"
    assert json.loads(printed(capsys, "info", "mine", "--json"))["what"] == "model"


def test_an_adapter_maps_with_its_base_from_its_own_folder(place, capsys) -> None:
    printed(capsys, *ADAPT)

    document = json.loads(
        printed(
            capsys,
            *("map", "--src", "scene.tif", "--dst", "again.tif", "--json"),
            *("--model", "scene.adapter.safetensors"),
        )
    )

    assert document["model"]["adapter"]
    assert Path("again.tif").read_bytes() == Path("map.tif").read_bytes()


def test_doctor_ends_with_1_where_something_is_broken(place, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place / "gone"))

    code = main(["doctor"])

    lines = capsys.readouterr().out.splitlines()
    failed = [i for i, line in enumerate(lines) if line.startswith("FAIL")]
    assert (code, len(failed)) == (1, 1)
    assert lines[failed[0]].startswith("FAIL  temporary folder    FileNotFoundError: ")
    fix = "set TMPDIR (TEMP on Windows) to a writable folder with room"
    assert lines[failed[0] + 1] == f"      fix: {fix}"
    assert lines[-1].startswith("1 check failed")


def test_doctor_prints_its_document_as_json(place, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place / "gone"))
    monkeypatch.setenv("GDAL_DRIVER_PATH", str(place))
    Path("models").mkdir()
    Path("models/broken.safetensors").write_bytes(b"x" * 99)

    code = main(["doctor", "--json"])

    document = json.loads(capsys.readouterr().out)
    checks = {check["name"]: (check["state"], check["ok"]) for check in document["checks"]}
    assert {"healthy", "version", "python", "platform", "packages", "checks"} == set(document)
    assert (code, document["healthy"]) == (1, False)
    assert checks["GDAL"] == ("ok", True)
    assert checks["environment"] == checks["model folder"] == ("warn", True)
    assert checks["temporary folder"] == ("broken", False)
