import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from networks import small_segmenter
from rasters import NORTH_UP, RasterSpec, write_raster
from workplace import SIDE_PX, files

from earthgate_geo.errors import EarthgateError, HeightsElsewhereError, InputError, OutputError
from earthgate_geo.jobs.adapt import plan_adapt, run_adapt
from earthgate_geo.jobs.batch import plan_batch, run_batch
from earthgate_geo.jobs.map import plan, run_map
from earthgate_geo.model_file import read_header, save_model
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.recipe import Policy
from earthgate_geo.request import AdaptRequest, BatchRequest, MapRequest

ADAPTER = Path("scene.adapter.safetensors")
ADAPT = AdaptRequest(
    src="scene.tif",
    dst=Path("map.tif"),
    model="open.safetensors",
    labels="truth.tif",
    dsm="dsm.tif",
    policy=Policy.MMADAPTER,
    runtime="torch",
    steps=4,
)
MAP = MapRequest(
    src="scene.tif",
    dst=Path("again.tif"),
    model="hilly.safetensors",
    dsm="dsm.tif",
    runtime="torch",
    precision="fp32",
)
ELSEWHERE = NORTH_UP @ Affine.translation(5000, 0)


class Listener(SilentMonitor):
    """Remembers what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def heights(side_px: int = SIDE_PX // 2) -> np.ndarray:
    """Heights of squares, as the scene's, at twice the GSD: (1, row, col)."""
    squares = np.kron(np.indices((6, 6)).sum(0) % 2, np.ones((side_px // 6, side_px // 6)))
    return (400 + 12 * squares)[None].astype(np.float32)


COARSE = NORTH_UP @ Affine.scale(2)


@pytest.fixture
def hilly(place: Path) -> Path:
    """Add heights, half as fine as the scene, and a model that takes heights."""
    write_raster(place / "dsm.tif", RasterSpec(transform=COARSE), values=heights())
    segmenter = small_segmenter().with_heights()
    with_influence(segmenter)
    save_model(place / "hilly.safetensors", segmenter, card={"name": "hilly"})
    return place


def with_influence(segmenter) -> None:
    """Let heights change the classes, which they do not at first."""
    for name, parameter in segmenter.head.named_parameters():
        if "of_heights" in name:
            parameter.data.fill_(0.3)


def pixels(path: str | Path) -> np.ndarray:
    with rasterio.open(path) as found:
        return found.read(1)


def test_an_adapter_with_heights_maps_as_the_adaptation_did(hilly) -> None:
    document = json.loads(json.dumps(run_adapt(ADAPT, SilentMonitor())))

    assert document["decision"] == "adapted"
    assert document["heights"] == {"covered": 1.0}
    assert document["remarks"][0] == "Heights cover the whole scene."
    assert read_header(ADAPTER)["record"]["heights"] is True
    run_map(replace(MAP, model=str(ADAPTER), precision="auto"), SilentMonitor())
    assert Path("again.tif").read_bytes() == Path("map.tif").read_bytes()
    with rasterio.open("map.tif") as found:
        assert json.loads(found.tags()["EARTHGATE_HEIGHTS"]) == {"high": [412.0], "low": [400.0]}


def test_the_same_adaptation_gives_the_same_files(hilly) -> None:
    run_adapt(ADAPT, SilentMonitor())
    once = [Path(name).read_bytes() for name in ("map.tif", ADAPTER)]

    run_adapt(replace(ADAPT, overwrite=True), SilentMonitor())

    assert [Path(name).read_bytes() for name in ("map.tif", ADAPTER)] == once


def test_behind_a_closed_gate_heights_change_no_pixel(hilly) -> None:
    closed = replace(ADAPT, model="closed.safetensors", labels=None, steps=1)

    document = run_adapt(closed, SilentMonitor())

    assert document["decision"] == "gate-closed"
    run_map(replace(MAP, model="closed.safetensors", dsm=None), SilentMonitor())
    assert np.array_equal(pixels("map.tif"), pixels("again.tif"))


def test_heights_of_a_part_are_told_with_their_share(hilly) -> None:
    write_raster(hilly / "dsm.tif", RasterSpec(transform=COARSE), values=heights()[:, :, :24])

    document = run_map(MAP, SilentMonitor())

    assert document["heights"]["covered"] == pytest.approx(0.25)
    assert document["remarks"] == [
        "Heights cover 25% of the scene; elsewhere the image alone decides."
    ]


def test_without_heights_the_image_alone_decides_and_a_warning_says_so(hilly) -> None:
    listener = Listener()

    document = run_map(replace(MAP, dsm=None), listener)

    assert listener.warnings == [
        "The model takes heights, and scene has none: it is mapped by the image alone."
    ]
    assert document["heights"] == {"covered": 0.0}
    run_map(replace(MAP, dst=Path("with.tif")), SilentMonitor())
    assert not np.array_equal(pixels("with.tif"), pixels("again.tif"))


def test_far_from_the_heights_a_map_is_that_of_the_image_alone(hilly) -> None:
    tall = RasterSpec(rows=SIDE_PX, cols=6 * SIDE_PX)
    write_raster(hilly / "scene.tif", tall)
    run_map(MAP, SilentMonitor())
    run_map(replace(MAP, dsm=None, dst=Path("alone.tif")), SilentMonitor())

    with_heights, alone = pixels("again.tif"), pixels("alone.tif")

    assert np.array_equal(with_heights[:, 2 * SIDE_PX :], alone[:, 2 * SIDE_PX :])
    assert not np.array_equal(with_heights[:, :SIDE_PX], alone[:, :SIDE_PX])


def wild(kind: str) -> np.ndarray:
    values = heights().astype(np.float64)
    rng = np.random.default_rng(0)
    changed = {
        "constant": np.full_like(values, 7.5),
        "one": np.where(np.arange(values.size).reshape(values.shape) == 500, 1.0, np.nan),
        "holes": np.where(rng.random(values.shape) < 0.5, np.nan, values),
        "tiny": values * 1e-30,
        "huge": values * 2e4,
        "infinite": np.where(rng.random(values.shape) < 0.1, np.inf, values),
        "undeclared": np.where(rng.random(values.shape) < 0.1, -9999, values),
        "outlier": np.where(np.arange(values.size).reshape(values.shape) == 500, 9e6, values),
    }
    if kind == "centimetres":
        return (values * 10).astype(np.int16)
    return changed[kind].astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        *("constant", "one", "holes", "tiny", "huge", "infinite", "undeclared", "outlier"),
        "centimetres",
    ],
)
def test_heights_of_any_kind_give_a_whole_map(hilly, kind) -> None:
    write_raster(hilly / "dsm.tif", RasterSpec(transform=COARSE), values=wild(kind))

    document = run_map(MAP, SilentMonitor())

    assert 0 < document["heights"]["covered"] <= 1
    assert pixels("again.tif").max() < 5


@pytest.mark.parametrize("kind", ["constant", "holes", "undeclared"])
def test_a_model_adapts_with_heights_of_any_kind(hilly, kind) -> None:
    write_raster(hilly / "dsm.tif", RasterSpec(transform=COARSE), values=wild(kind))

    document = run_adapt(replace(ADAPT, steps=2, policy=Policy.GATE), SilentMonitor())

    assert np.isfinite(document["evidence"]["adapted"]["agreement"])
    assert pixels("map.tif").max() < 5


def test_heights_are_less_the_ground_s(hilly) -> None:
    ground = np.full((1, 40, 40), 390, np.float32)
    write_raster(hilly / "dtm.tif", RasterSpec(transform=NORTH_UP @ Affine.scale(5)), values=ground)

    run_map(replace(MAP, dtm="dtm.tif"), SilentMonitor())

    with rasterio.open("again.tif") as found:
        tag = json.loads(found.tags()["EARTHGATE_HEIGHTS"])
    assert tag == {"high": [pytest.approx(22)], "low": [pytest.approx(10)]}


def test_a_model_without_heights_does_not_map_with_them(hilly) -> None:
    before = files(hilly)

    with pytest.raises(InputError) as refusal:
        run_map(replace(MAP, model="open.safetensors"), SilentMonitor())

    assert str(refusal.value) == (
        "--dsm for the model open, which takes no heights; expected one that was trained or "
        "adapted with heights. Adapt it to the scene: earthgate adapt --dsm with the same files."
    )
    assert files(hilly) == before


@pytest.mark.parametrize(("run", "asked"), [(run_map, MAP), (run_adapt, ADAPT), (plan, MAP)])
def test_heights_elsewhere_are_refused_and_nothing_is_left(hilly, run, asked) -> None:
    write_raster(hilly / "dsm.tif", RasterSpec(transform=ELSEWHERE), values=heights())
    before = files(hilly)

    with pytest.raises(HeightsElsewhereError, match=r"^dsm\.tif lies outside the scene;"):
        run(asked, SilentMonitor())

    assert files(hilly) == before


def test_a_policy_of_heights_needs_heights(hilly) -> None:
    with pytest.raises(EarthgateError, match="heights"):
        run_adapt(replace(ADAPT, dsm=None), SilentMonitor())


@pytest.fixture
def far(hilly: Path) -> Path:
    """Add a scene that the heights do not meet."""
    write_raster(hilly / "far.tif", RasterSpec(transform=ELSEWHERE, seed=3))
    return hilly


BATCH = BatchRequest(
    srcs=("scene.tif", "far.tif"), out_dir=Path("maps"), each=replace(MAP, src="", dst=None)
)


def test_scenes_of_a_batch_that_the_heights_miss_are_mapped_by_the_image_alone(far) -> None:
    listener = Listener()

    document = run_batch(BATCH, listener)

    assert [entry["state"] for entry in document["scenes"]] == ["done", "done"]
    assert [entry["heights"]["covered"] for entry in document["scenes"]] == [1, 0]
    assert listener.warnings == [
        "The model takes heights, and far has none: it is mapped by the image alone."
    ]
    assert all(entry["earlier"] for entry in run_batch(BATCH, SilentMonitor())["scenes"])


def test_maps_of_other_heights_are_not_taken_for_these(far) -> None:
    run_batch(BATCH, SilentMonitor())
    write_raster(far / "dsm.tif", RasterSpec(transform=COARSE), values=heights()[:, :40])

    with pytest.raises(OutputError, match=r"scene_map\.tif exists"):
        run_batch(BATCH, SilentMonitor())


@pytest.mark.parametrize("run", [run_batch, plan_batch])
def test_heights_that_meet_no_scene_of_a_batch_are_refused(far, run) -> None:
    with pytest.raises(HeightsElsewhereError):
        run(replace(BATCH, srcs=("far.tif",)), SilentMonitor())

    assert not Path("maps").exists()


def test_one_adaptation_takes_the_heights_of_the_scenes_that_have_some(far) -> None:
    both = replace(ADAPT, more=("far.tif",), dst=None, out_dir=Path("maps"), labels=None, steps=2)

    planned = plan_adapt(both, SilentMonitor())
    document = run_adapt(both, SilentMonitor())

    assert [entry["state"] for entry in planned["scenes"]] == ["planned", "planned"]
    assert [entry["state"] for entry in document["scenes"]] == ["done", "done"]
    assert [entry["heights"]["covered"] for entry in document["scenes"]] == [1, 0]


def test_a_plan_of_an_adaptation_with_heights_writes_nothing(hilly) -> None:
    before = files(hilly)

    document = plan_adapt(ADAPT, SilentMonitor())

    assert document["tiles"] > 0
    assert document["heights"] == {"covered": 1.0}
    assert files(hilly) == before


@pytest.mark.slow
def test_processes_of_a_cluster_map_heights_as_this_one_does(hilly) -> None:
    run_map(MAP, SilentMonitor())

    run_map(replace(MAP, dst=Path("dask.tif"), engine="dask", workers=1), SilentMonitor())

    assert Path("dask.tif").read_bytes() == Path("again.tif").read_bytes()
