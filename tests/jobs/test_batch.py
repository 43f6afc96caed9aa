import json
import os
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasters import NORTH_UP, RasterSpec, write_raster
from workplace import files

import earthgate_geo
from earthgate_geo.errors import CancelledError, InputError, OutputError
from earthgate_geo.jobs.manifest import Manifest
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.destination import Destination
from earthgate_geo.request import BatchRequest, MapRequest

SILENT = SilentMonitor()
OUT = Path("out")
EACH = MapRequest(src="", model="open.safetensors", runtime="torch", precision="fp32")
BATCH = BatchRequest(srcs=("a.tif", "b.tif"), out_dir=OUT, each=EACH)
BROKEN = replace(BATCH, srcs=("a.tif", "text.tif", "b.tif"))


class Diary(SilentMonitor):
    """Remembers which scenes were begun; may raise as a later one is mapped."""

    def __init__(self, *, error: type[BaseException] | None = None, at: str = "") -> None:
        self.begun: list[str] = []
        self.warnings: list[str] = []
        self._error, self._at = error, at

    def log(self, message: str) -> None:
        if message.startswith("scene "):
            self.begun.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def update(self, done: int) -> None:
        if self._error and done and self.begun[-1].endswith(self._at):
            raise self._error


@pytest.fixture
def scenes(place):
    for seed, name in enumerate(["a.tif", "b.tif"]):
        write_raster(Path(name), RasterSpec(seed=seed))
    Path("text.tif").write_text("hello", encoding="utf-8")


def written() -> list[dict[str, object]]:
    return [json.loads(line) for line in BATCH.manifest.read_text("utf-8").splitlines()]


def states(document) -> list[tuple[str, str, bool]]:
    return [(entry["src"], entry["state"], entry["earlier"]) for entry in document["scenes"]]


def test_a_batch_maps_every_scene_as_it_would_be_alone(scenes) -> None:
    document = earthgate_geo.run_batch(replace(BATCH, vector_format="gpkg"), SILENT)
    earthgate_geo.run_map(replace(EACH, src="b.tif", dst=Path("alone.tif")), SILENT)

    assert states(document) == [("a.tif", "done", False), ("b.tif", "done", False)]
    assert (OUT / "b_map.tif").read_bytes() == Path("alone.tif").read_bytes()
    assert {path.name for path in OUT.iterdir() if path.suffix in (".gpkg", ".tif", ".jsonl")} == {
        *("a_map.gpkg", "a_map.tif", "b_map.gpkg", "b_map.tif", "manifest.jsonl")
    }


def test_the_manifest_has_a_line_per_finished_scene(scenes) -> None:
    document = earthgate_geo.run_batch(BROKEN, SILENT)

    first, second, third = written()
    assert [line["src"] for line in (first, second, third)] == ["a.tif", "text.tif", "b.tif"]
    assert (first["state"], first["outputs"]) == ("done", {"map": str(OUT / "a_map.tif")})
    assert first["tiles"] > 0
    assert sum(entry["share"] for entry in first["classes"]) == pytest.approx(1)
    assert {"total", "read", "network", "write"} <= set(first["seconds"])
    assert (second["state"], second["outputs"]) == ("failed", {})
    assert document["scenes"] == [line | {"earlier": False} for line in written()]
    assert document["manifest"] == str(OUT / "manifest.jsonl")


def test_a_scene_that_fails_does_not_stop_the_others_and_says_why(scenes) -> None:
    diary = Diary()

    document = earthgate_geo.run_batch(BROKEN, diary)

    assert [entry["state"] for entry in document["scenes"]] == ["done", "failed", "done"]
    sentence = (
        "text.tif cannot be opened as a raster; expected a file that GDAL reads, such as "
        "GeoTIFF, VRT or JPEG 2000. See what gdalinfo says about it: gdalinfo text.tif."
    )
    assert document["scenes"][1]["error"] == sentence
    assert diary.warnings == [f"text.tif failed: {sentence}"]
    assert diary.begun == ["scene 1 of 3: a.tif", "scene 2 of 3: text.tif", "scene 3 of 3: b.tif"]


def test_scenes_outside_the_area_are_passed_over_and_did_not_fail(scenes) -> None:
    write_raster(Path("far.tif"), RasterSpec(transform=Affine.translation(9000, 0) @ NORTH_UP))
    with rasterio.open("a.tif") as scene:
        bounds = gpd.GeoDataFrame(geometry=[shapely.box(*scene.bounds)], crs=scene.crs)
    bounds.to_file("area.gpkg")
    batch = replace(BATCH, srcs=("a.tif", "far.tif"), each=replace(EACH, aoi="area.gpkg"))

    document = earthgate_geo.run_batch(batch, SILENT)
    again = earthgate_geo.run_batch(batch, SILENT)

    assert states(document) == [("a.tif", "done", False), ("far.tif", "outside", False)]
    assert states(again) == [("a.tif", "done", True), ("far.tif", "outside", True)]


def test_an_error_that_nobody_foresaw_fails_its_scene_alone(scenes) -> None:
    document = earthgate_geo.run_batch(BATCH, Diary(error=RuntimeError, at="a.tif"))

    assert [entry["state"] for entry in document["scenes"]] == ["failed", "done"]
    assert document["scenes"][0]["error"] == (
        "unexpected RuntimeError; map it alone with -v to see more"
    )


def test_the_same_request_again_maps_nothing_and_tells_the_same(scenes) -> None:
    first = earthgate_geo.run_batch(BROKEN, SILENT)
    before = {path: path.stat().st_mtime_ns for path in OUT.iterdir()}
    diary = Diary()

    again = earthgate_geo.run_batch(BROKEN, diary)

    assert diary.begun == []
    assert {path: path.stat().st_mtime_ns for path in OUT.iterdir()} == before
    assert again["scenes"] == [entry | {"earlier": True} for entry in first["scenes"]]


def test_what_failed_is_left_until_it_is_asked_for_or_its_file_is_another(scenes) -> None:
    earthgate_geo.run_batch(BROKEN, SILENT)

    retried, mended = Diary(), Diary()
    earthgate_geo.run_batch(replace(BROKEN, retry_failed=True), retried)
    write_raster(Path("text.tif"))
    document = earthgate_geo.run_batch(BROKEN, mended)

    assert retried.begun == mended.begun == ["scene 2 of 3: text.tif"]
    assert [entry["state"] for entry in document["scenes"]] == ["done"] * 3


def test_a_map_that_is_gone_is_mapped_again(scenes) -> None:
    earthgate_geo.run_batch(BATCH, SILENT)
    (OUT / "a_map.tif").unlink()

    assert states(earthgate_geo.run_batch(BATCH, SILENT)) == [
        ("a.tif", "done", False),
        ("b.tif", "done", True),
    ]


@pytest.mark.parametrize(
    "other",
    [
        replace(BATCH, each=replace(EACH, model="closed.safetensors")),
        replace(BATCH, each=replace(EACH, bands={"red": 3, "green": 2, "blue": 1})),
        replace(BATCH, each=replace(EACH, confidence=True)),
    ],
    ids=["model", "option", "output"],
)
def test_maps_made_otherwise_are_not_taken_for_these(place, scenes, other) -> None:
    earthgate_geo.run_batch(BATCH, SILENT)
    before = files(place)

    with pytest.raises(OutputError) as refusal:
        earthgate_geo.run_batch(other, SILENT)

    name = OUT / "a_map.tif"
    assert str(refusal.value) == (
        f"{name} exists. Pass --overwrite to replace it, or give another name."
    )
    assert files(place) == before


def test_a_scene_that_changed_is_not_taken_for_mapped(scenes) -> None:
    earthgate_geo.run_batch(BATCH, SILENT)
    os.utime("b.tif", (0, 0))

    with pytest.raises(OutputError, match=r"b_map.tif exists"):
        earthgate_geo.run_batch(BATCH, SILENT)


def test_a_scene_whose_mask_changed_is_not_taken_for_mapped(scenes) -> None:
    write_raster(Path("b.tif"), mask=np.ones((60, 80), bool), external_mask=True)
    earthgate_geo.run_batch(BATCH, SILENT)
    os.utime("b.tif.msk", (0, 0))

    with pytest.raises(OutputError, match=r"b_map.tif exists"):
        earthgate_geo.run_batch(BATCH, SILENT)


def test_options_that_leave_the_maps_alone_may_change(scenes) -> None:
    earthgate_geo.run_batch(BATCH, SILENT)

    each = replace(EACH, memory=2_000_000_000, resume=False, device="cpu")
    assert earthgate_geo.run_batch(replace(BATCH, each=each), SILENT)["scenes"][0]["earlier"]


def test_overwriting_maps_all_anew_and_the_last_line_counts(scenes) -> None:
    earthgate_geo.run_batch(BATCH, SILENT)
    closed = replace(EACH, model="closed.safetensors", overwrite=True)

    document = earthgate_geo.run_batch(replace(BATCH, each=closed), SILENT)

    assert [entry["earlier"] for entry in document["scenes"]] == [False, False]
    assert len(written()) == 4
    with pytest.raises(OutputError, match=r"a_map.tif exists"):
        earthgate_geo.run_batch(BATCH, SILENT)


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelledError])
def test_a_stop_keeps_what_is_finished_and_the_same_request_goes_on(scenes, error) -> None:
    with pytest.raises(CancelledError) as stop:
        earthgate_geo.run_batch(BATCH, Diary(error=error, at="b.tif"))

    assert str(stop.value) == (
        "interrupted. Run the same command again to go on with the scenes that are left."
    )
    assert [line["src"] for line in written()] == ["a.tif"]
    document = earthgate_geo.run_batch(BATCH, SILENT)
    assert states(document) == [("a.tif", "done", True), ("b.tif", "done", False)]
    assert [path.name for path in OUT.iterdir() if path.name.startswith(".")] == []


def test_a_kill_between_the_maps_and_their_line_is_survived(scenes) -> None:
    earthgate_geo.run_batch(BATCH, SILENT)
    whole = BATCH.manifest.read_bytes()
    hidden = OUT / ".manifest.jsonl.earthgate"
    hidden.mkdir()
    (hidden / "current").write_text(written()[1]["key"], encoding="utf-8")
    BATCH.manifest.write_bytes(whole[:-9])

    assert [entry["state"] for entry in earthgate_geo.plan_batch(BATCH, SILENT)["scenes"]] == [
        "done",
        "planned",
    ]
    document = earthgate_geo.run_batch(BATCH, SILENT)

    assert states(document) == [("a.tif", "done", True), ("b.tif", "done", False)]
    assert len(Manifest(BATCH.manifest).records()) == 2
    assert not hidden.exists()


def test_a_line_goes_below_one_that_a_kill_cut_short(tmp_path) -> None:
    manifest = Manifest(tmp_path / "m.jsonl")
    manifest.append({"map": "a.tif", "n": 1})
    with (tmp_path / "m.jsonl").open("ab") as file:
        file.write(b'{"map": "b.ti')

    manifest.append({"map": "c.tif", "n": 2})
    manifest.append({"map": "a.tif", "n": 3})

    assert {name: record["n"] for name, record in manifest.records().items()} == {
        "a.tif": 3,
        "c.tif": 2,
    }


def test_a_refusal_leaves_no_folder_behind(place, scenes) -> None:
    before = files(place)
    each = replace(EACH, model="nobody")

    with pytest.raises(InputError, match=r"no model 'nobody'"):
        earthgate_geo.run_batch(replace(BATCH, out_dir=Path("new/out"), each=each), SILENT)

    assert files(place) == before


def test_two_batches_in_one_folder_are_refused(scenes) -> None:
    OUT.mkdir()

    with Destination(BATCH.manifest, overwrite=True), pytest.raises(OutputError) as refusal:
        earthgate_geo.run_batch(BATCH, SILENT)

    assert str(refusal.value) == (
        f"another run is writing {BATCH.manifest} (it holds "
        f"{OUT / '.manifest.jsonl.earthgate'}); expected one run at a time. Wait until it ends, "
        "or give another name."
    )


def test_a_folder_that_cannot_be_made_is_refused(scenes) -> None:
    with pytest.raises(OutputError) as refusal:
        earthgate_geo.run_batch(replace(BATCH, out_dir=Path("text.tif/out")), SILENT)

    assert str(refusal.value).startswith(f"the folder {Path('text.tif/out')} cannot be made (")
    assert str(refusal.value).endswith("). Give another folder.")


def test_a_plan_counts_what_is_left_and_writes_nothing(place, scenes) -> None:
    before = files(place)
    planned = earthgate_geo.plan_batch(BROKEN, SILENT)

    assert files(place) == before
    assert [entry["state"] for entry in planned["scenes"]] == ["planned", "failed", "planned"]
    done = earthgate_geo.run_batch(BROKEN, SILENT)
    assert planned["tiles"] == sum(entry.get("tiles", 0) for entry in done["scenes"])
    assert planned["seconds"] > 0
    again = earthgate_geo.plan_batch(BROKEN, SILENT)
    assert (again["tiles"], again["disk_mb"], again["memory_mb"]) == (0, 0, 0)


@pytest.mark.slow
def test_a_cluster_maps_scenes_together_and_makes_the_same_maps(scenes) -> None:
    earthgate_geo.run_batch(BATCH, SILENT)
    each = replace(EACH, engine="dask", workers=2)
    there = replace(BROKEN, out_dir=Path("there"), each=each)

    document = earthgate_geo.run_batch(there, SILENT)

    assert states(document) == [
        ("a.tif", "done", False),
        ("text.tif", "failed", False),
        ("b.tif", "done", False),
    ]
    for name in ("a_map.tif", "b_map.tif"):
        assert (Path("there") / name).read_bytes() == (OUT / name).read_bytes()
    assert not (Path("there") / ".manifest.jsonl.earthgate").exists()
