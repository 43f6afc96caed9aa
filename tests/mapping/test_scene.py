from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from rasters import NORTH_UP, ROTATED, SOUTH_UP, RasterSpec, write_raster
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.area import Area
from earthgate_geo.data.heights import UNSCALED, open_heights
from earthgate_geo.data.scenes import TilePlan
from earthgate_geo.errors import (
    CancelledError,
    DataError,
    EarthgateError,
    InputError,
    ModelFileError,
    OutputError,
    StorageError,
)
from earthgate_geo.mapping.runtime import Network, TorchRuntime
from earthgate_geo.mapping.scene import (
    LocalEngine,
    MapEstimate,
    MapOutputs,
    estimate,
    map_scene,
)
from earthgate_geo.mapping.stream import MapTask
from earthgate_geo.mapping.strips import StripFolder
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.raster.classes import NODATA, ClassTable, LandClass
from earthgate_geo.raster.destination import storage_error
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import Radiometry, open_scene

TABLE = ClassTable(
    (
        LandClass(0, "building", "#d7301f"),
        LandClass(1, "vegetation", "#31a354"),
        LandClass(2, "water", "#2b8cbe"),
    )
)
PLAN = TilePlan(tile=Size(32, 32), stride=Size(24, 24), network=Size(32, 32))


def local(network: Network, *, batch: int = 1, memory_bytes: int = 10**9) -> LocalEngine:
    return LocalEngine(TorchRuntime(network, batch=batch), memory_bytes=memory_bytes)


def brightest(images: Tensor) -> Tensor:
    """A pointwise network: the class is the brightest band."""
    return images * 20


class Stopper(SilentMonitor):
    """Cancels in one stage."""

    def __init__(self, stage: str) -> None:
        self._stop_in = stage
        self._stage = ""

    def stage(self, name: str, total: int) -> None:
        self._stage = name

    def update(self, done: int) -> None:
        if self._stage == self._stop_in:
            raise CancelledError


@pytest.fixture
def task(request: pytest.FixtureRequest, tmp_path: Path) -> MapTask:
    plain = task_of(tmp_path / "scene.tif")
    return with_heights(plain) if getattr(request, "param", "") == "heights" else plain


HILLY_TOO = pytest.mark.parametrize("task", ["plain", "heights"], indirect=True)


def with_heights(task: MapTask) -> MapTask:
    """Add noisy heights with holes, of other pixels, that end before the scene does."""
    values = np.random.default_rng(1).random((1, 40, 30)).astype(np.float32)
    values[0, 10:16, 5:20] = np.nan
    path = Path(task.scene.path).with_name("dsm.tif")
    write_raster(path, RasterSpec(transform=NORTH_UP @ Affine.scale(2)), values=values)
    layer = open_heights(str(path), task.scene.grid)
    return replace(task, heights=layer, height_radiometry=layer.radiometry())


def task_of(
    path: Path, *, rows: int = 75, cols: int = 110, transform: Affine = NORTH_UP
) -> MapTask:
    """A noisy scene with a wedge without data."""
    mask = np.add.outer(np.arange(rows), np.arange(cols)) >= min(rows, cols) // 2
    write_raster(path, RasterSpec(rows=rows, cols=cols, transform=transform), mask=mask)
    scene = open_scene(path)
    bands = scene.choose_bands(("red", "green", "blue"))
    return MapTask(
        scene=scene,
        bands=bands,
        radiometry=scene.radiometry(bands),
        plan=PLAN,
        classes=TABLE,
    )


def outputs_in(folder: Path) -> MapOutputs:
    return MapOutputs(
        map=folder / "map.tif",
        confidence=folder / "map_conf.tif",
        probs=folder / "map_probs.tif",
        tags={"EARTHGATE_MODEL": "abc"},
    )


def pixelwise(task: MapTask) -> tuple[Tensor, Tensor]:
    """Probabilities (class, row, col) and validity (row, col) without any tiles."""
    with rasterio.open(task.scene.path) as source:
        scaled = task.radiometry.scale(source.read(task.bands))
        valid = source.dataset_mask() > 0
    return brightest(torch.from_numpy(scaled)).softmax(0), torch.from_numpy(valid)


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED])
def test_a_pointwise_network_maps_every_pixel_on_the_grid_of_the_scene(
    transform: Affine, tmp_path: Path
) -> None:
    task = task_of(tmp_path / "scene.tif", transform=transform)

    map_scene(local(brightest), task, outputs_in(tmp_path), monitor=SilentMonitor())

    probabilities, valid = pixelwise(task)
    labels = torch.where(valid, probabilities.argmax(0), NODATA)
    with rasterio.open(tmp_path / "map.tif") as layer, rasterio.open(task.scene.path) as source:
        assert (layer.transform, layer.crs, layer.shape) == (
            source.transform,
            source.crs,
            source.shape,
        )
        assert layer.nodata == NODATA
        assert layer.tags()["EARTHGATE_CLASSES"] == TABLE.to_json()
        assert layer.tags()["EARTHGATE_MODEL"] == "abc"
        assert np.array_equal(layer.read(1), labels)


def test_confidence_and_probabilities_are_scaled_to_254(task: MapTask, tmp_path: Path) -> None:
    map_scene(local(brightest), task, outputs_in(tmp_path), monitor=SilentMonitor())

    probabilities, valid = pixelwise(task)
    with rasterio.open(tmp_path / "map_conf.tif") as layer:
        confidence = layer.read(1).astype(float)
        assert layer.scales == (1 / 254,)
        assert (confidence == NODATA).tolist() == (~valid).tolist()
        assert abs(confidence - probabilities.max(0).values.numpy() * 254)[valid].max() < 0.501
        assert "EARTHGATE_CLASSES" not in layer.tags()
    with rasterio.open(tmp_path / "map_probs.tif") as layer:
        stored = layer.read().astype(float)
        assert layer.descriptions == TABLE.names
        assert abs(stored - probabilities.numpy() * 254)[:, valid].max() < 0.501


def test_the_result_says_what_was_done(task: MapTask, tmp_path: Path) -> None:
    result = map_scene(local(brightest), task, outputs_in(tmp_path), monitor=SilentMonitor())

    _, valid = pixelwise(task)
    assert (result.tile_px, result.stride_px) == (32, 24)
    assert result.gsd_m == pytest.approx(0.5, rel=1e-3)
    assert list(result.class_pixels) == list(TABLE.names)
    assert sum(result.class_pixels.values()) == valid.sum()
    parts = [result.seconds[part] for part in ("read", "network", "write")]
    assert 0 < sum(parts) <= result.seconds["total"]
    assert {role: path.name for role, path in result.outputs.items()} == {
        "map": "map.tif",
        "confidence": "map_conf.tif",
        "probs": "map_probs.tif",
    }


def test_tiles_without_data_never_reach_the_network(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    mask = np.zeros((75, 200), np.uint8)
    mask[:, :40] = 1
    mask[:, 190:] = 1
    write_raster(path, RasterSpec(rows=75, cols=200), mask=mask)
    scene = open_scene(path)
    task = MapTask(
        scene=scene,
        bands=(1, 2, 3),
        radiometry=scene.radiometry((1, 2, 3)),
        plan=PLAN,
        classes=TABLE,
    )

    result = map_scene(local(brightest), task, outputs_in(tmp_path), monitor=SilentMonitor())

    assert result.tiles == 9
    with rasterio.open(tmp_path / "map.tif") as layer:
        assert np.array_equal(layer.read(1) != NODATA, mask > 0)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 80), (80, 5), (32, 32), (33, 32)])
def test_scenes_of_any_size_are_covered(rows: int, cols: int, tmp_path: Path) -> None:
    task = task_of(tmp_path / "scene.tif", rows=rows, cols=cols)

    map_scene(local(brightest), task, outputs_in(tmp_path), monitor=SilentMonitor())

    probabilities, valid = pixelwise(task)
    with rasterio.open(tmp_path / "map.tif") as layer:
        labels = torch.where(valid, probabilities.argmax(0), NODATA)
        assert np.array_equal(layer.read(1), labels)


@HILLY_TOO
def test_results_do_not_depend_on_the_batch(task: MapTask, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(task.channels, 3, 7, padding=3).eval()
    files = []
    for batch in (1, 3, 8):
        folder = tmp_path / str(batch)
        folder.mkdir()
        map_scene(local(network, batch=batch), task, outputs_in(folder), monitor=SilentMonitor())
        files.append([path.read_bytes() for path in sorted(folder.glob("*.tif"))])

    assert files[0] == files[1] == files[2]


def test_every_batch_has_the_same_shape(task: MapTask, tmp_path: Path) -> None:
    shapes = set()

    def network(images: Tensor) -> Tensor:
        shapes.add(tuple(images.shape))
        return images

    map_scene(local(network, batch=4), task, outputs_in(tmp_path), monitor=SilentMonitor())

    assert shapes == {(4, 3, 32, 32)}


@pytest.mark.parametrize("network_px", [16, 64])
def test_another_scale_keeps_borders_in_their_place(network_px: int, tmp_path: Path) -> None:
    values = np.zeros((3, 70, 70), np.uint8)
    values[0, :, :36], values[1, :, 36:] = 200, 200
    write_raster(tmp_path / "scene.tif", values=values)
    scene = open_scene(tmp_path / "scene.tif")
    task = MapTask(
        scene=scene,
        bands=(1, 2, 3),
        radiometry=scene.radiometry((1, 2, 3)),
        plan=replace(PLAN, network=Size(network_px, network_px)),
        classes=TABLE,
    )

    result = map_scene(local(brightest), task, outputs_in(tmp_path), monitor=SilentMonitor())

    with rasterio.open(tmp_path / "map.tif") as layer:
        assert np.array_equal(layer.read(1), np.where(values[0] > 0, 0, 1))
    assert result.stride_px == network_px * 24 // 32
    assert result.gsd_m == pytest.approx(0.5 * 32 / network_px, rel=1e-3)


def test_numbers_that_are_not_finite_fail_the_scene_and_name_the_tile(
    task: MapTask, tmp_path: Path
) -> None:
    calls = []

    def network(images: Tensor) -> Tensor:
        calls.append(images)
        logits = images.clone()
        if len(calls) == 2:
            logits[1, 2, 3, 4] = torch.nan
        return logits

    with pytest.raises(EarthgateError) as failed:
        map_scene(local(network, batch=4), task, outputs_in(tmp_path), monitor=SilentMonitor())

    assert str(failed.value) == (
        "the network gives numbers that are not finite, first at row 27, column 4 "
        f"of {task.scene.path}. Nothing was written; try another model, or adapt again."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_a_network_of_other_classes_is_refused(task: MapTask, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as refused:
        map_scene(
            local(lambda images: images[:, :2]), task, outputs_in(tmp_path), monitor=SilentMonitor()
        )

    assert str(refused.value) == "a network with 2 outputs; expected 3, one for each class."
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize("stage", ["map", "finish"])
def test_cancel_leaves_nothing(stage: str, task: MapTask, tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        map_scene(local(brightest), task, outputs_in(tmp_path), monitor=Stopper(stage))

    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_a_failing_tile_fails_the_scene(task: MapTask, tmp_path: Path) -> None:
    def network(images: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        map_scene(local(network), task, outputs_in(tmp_path), monitor=SilentMonitor())

    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_one_existing_layer_keeps_all_from_being_written(task: MapTask, tmp_path: Path) -> None:
    (tmp_path / "map_probs.tif").write_text("mine")

    with pytest.raises(OutputError):
        map_scene(local(brightest), task, outputs_in(tmp_path), monitor=SilentMonitor())

    assert sorted(path.name for path in tmp_path.iterdir()) == ["map_probs.tif", "scene.tif"]
    assert (tmp_path / "map_probs.tif").read_text() == "mine"


def test_progress_counts_tiles_then_layers(task: MapTask, tmp_path: Path) -> None:
    class Recorder(SilentMonitor):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def stage(self, name: str, total: int) -> None:
            self.heard.append((name, total))

        def update(self, done: int) -> None:
            self.heard.append(done)

    monitor = Recorder()

    result = map_scene(local(brightest), task, outputs_in(tmp_path), monitor=monitor)

    tiles, rows = result.tiles, len(task.tiling.row_starts)
    assert monitor.heard == [
        *[("map", tiles), *range(1, tiles + 1)],
        *[("finish", rows + 3), *range(1, rows + 4)],
    ]


def cells_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "strips").rglob("*.cell"))


def kept_in(folder: Path, **choices: object) -> MapOutputs:
    return replace(outputs_in(folder), strips=folder / "strips", **choices)


def bytes_in(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("map*.tif"))]


class Failing:
    """A network that fails once, at one call."""

    def __init__(self, call: int, error: BaseException) -> None:
        self._left, self._error = call, error

    def __call__(self, images: Tensor) -> Tensor:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return blurry(images)


def blurry(images: Tensor) -> Tensor:
    """A network whose answer depends on what is around: other tiles, other bits.

    Of images with heights it sees these in place of the first band.
    """
    return functional.avg_pool2d(images[:, -3:] * 20, 9, stride=1, padding=4)


@pytest.fixture
def whole(task: MapTask, tmp_path: Path) -> list[bytes]:
    """The layers of a run that nothing disturbed."""
    (tmp_path / "whole").mkdir()
    map_scene(local(blurry), task, outputs_in(tmp_path / "whole"), monitor=SilentMonitor())
    return bytes_in(tmp_path / "whole")


@HILLY_TOO
@pytest.mark.parametrize("unit_px", [1, 24, 48])
def test_however_wide_the_panels_the_bytes_are_the_same(
    unit_px: int, task: MapTask, whole: list[bytes], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("earthgate_geo.mapping.layout.UNIT_PX", unit_px)
    monkeypatch.setattr("earthgate_geo.mapping.scene.PANEL_BYTES", 1)

    map_scene(local(blurry), task, outputs_in(tmp_path), monitor=SilentMonitor())

    assert bytes_in(tmp_path) == whole


@HILLY_TOO
@pytest.mark.parametrize("call", range(1, 16, 2))
def test_a_run_that_failed_is_gone_on_with_and_ends_with_the_same_bytes(
    call: int, task: MapTask, whole: list[bytes], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("earthgate_geo.mapping.layout.UNIT_PX", 48)
    monkeypatch.setattr("earthgate_geo.mapping.scene.PANEL_BYTES", 1)

    with pytest.raises(MemoryError):
        map_scene(
            local(Failing(call, MemoryError())), task, kept_in(tmp_path), monitor=SilentMonitor()
        )
    map_scene(local(blurry), task, kept_in(tmp_path), monitor=SilentMonitor())

    assert bytes_in(tmp_path) == whole


def test_what_is_finished_is_not_mapped_again(task: MapTask, tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        map_scene(local(blurry), task, kept_in(tmp_path), monitor=Stopper("finish"))
    assert len(cells_of(tmp_path)) == 3

    result = map_scene(
        local(Failing(1, MemoryError())), task, kept_in(tmp_path), monitor=SilentMonitor()
    )

    assert result.tiles == 0


def test_a_run_that_finished_nothing_leaves_nothing(task: MapTask, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        map_scene(
            local(Failing(1, KeyboardInterrupt())),
            task,
            kept_in(tmp_path),
            monitor=SilentMonitor(),
        )

    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_bad_input_leaves_nothing_to_go_on_with(task: MapTask, tmp_path: Path) -> None:
    bad = DataError(found="rows that cannot be read")
    with pytest.raises(DataError):
        map_scene(local(Failing(8, bad)), task, kept_in(tmp_path), monitor=SilentMonitor())

    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_the_cells_of_another_map_are_refused_and_left_alone(task: MapTask, tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        map_scene(
            local(Failing(8, MemoryError())), task, kept_in(tmp_path), monitor=SilentMonitor()
        )
    other = kept_in(tmp_path, tags={"EARTHGATE_MODEL": "xyz"})

    with pytest.raises(OutputError) as refused:
        map_scene(local(blurry), task, other, monitor=SilentMonitor())

    assert str(refused.value) == (
        "an unfinished map here with model abc; expected xyz. "
        "Pass --no-resume to discard it, or give another --dst."
    )
    assert cells_of(tmp_path) == ["000000_0000.cell"]
    map_scene(local(blurry), task, replace(other, resume=False), monitor=SilentMonitor())


def test_the_cells_of_an_adapted_model_are_not_those_of_its_base(
    task: MapTask, tmp_path: Path
) -> None:
    adapted = kept_in(tmp_path, tags={"EARTHGATE_MODEL": "abc", "EARTHGATE_ADAPTER": "sha256:123"})
    with pytest.raises(MemoryError):
        map_scene(local(Failing(8, MemoryError())), task, adapted, monitor=SilentMonitor())

    with pytest.raises(OutputError) as refused:
        map_scene(local(blurry), task, kept_in(tmp_path), monitor=SilentMonitor())

    assert str(refused.value) == (
        "an unfinished map here with adapter sha256:123; expected none. "
        "Pass --no-resume to discard it, or give another --dst."
    )


def test_the_network_sees_the_heights_of_every_pixel(task: MapTask, tmp_path: Path) -> None:
    heights = np.linspace(0, 1, 75 * 110, dtype=np.float32).reshape(1, 75, 110)
    write_raster(tmp_path / "dsm.tif", values=heights)
    layer = open_heights(str(tmp_path / "dsm.tif"), task.scene.grid)
    task = replace(task, heights=layer, height_radiometry=Radiometry((0.0,), (1.0,)))

    def halves(images: Tensor) -> Tensor:
        lower = images[:, 3:] < 0.5
        return torch.cat([lower, ~lower, torch.zeros_like(lower)], dim=1) * 9.0

    map_scene(local(halves), task, outputs_in(tmp_path), monitor=SilentMonitor())

    with rasterio.open(tmp_path / "map.tif") as found, rasterio.open(task.scene.path) as source:
        expected = np.where(source.dataset_mask() > 0, heights[0] >= 0.5, NODATA)
        assert np.array_equal(found.read(1), expected)


def test_a_scene_without_heights_gets_missing_ones(task: MapTask, tmp_path: Path) -> None:
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(images[:, 3:])
        return images[:, :3]

    lacking = replace(task, height_radiometry=UNSCALED)
    map_scene(local(network), lacking, outputs_in(tmp_path), monitor=SilentMonitor())

    assert torch.cat(seen).shape[1] == 1
    assert (torch.cat(seen) == NO_HEIGHT).all()


def test_the_cells_of_a_map_with_other_heights_are_refused(task: MapTask, tmp_path: Path) -> None:
    hilly = with_heights(task)
    with pytest.raises(MemoryError):
        map_scene(
            local(Failing(8, MemoryError())), hilly, kept_in(tmp_path), monitor=SilentMonitor()
        )
    write_raster(tmp_path / "dsm.tif", RasterSpec(bands=1, dtype="int16"))

    with pytest.raises(OutputError, match="an unfinished map here with heights"):
        map_scene(
            local(blurry),
            replace(hilly, heights=open_heights(str(tmp_path / "dsm.tif"), task.scene.grid)),
            kept_in(tmp_path),
            monitor=SilentMonitor(),
        )


def test_a_map_does_not_replace_its_heights(task: MapTask, tmp_path: Path) -> None:
    hilly = with_heights(task)
    outputs = replace(outputs_in(tmp_path), map=tmp_path / "dsm.tif", overwrite=True)

    with pytest.raises(OutputError):
        map_scene(local(blurry), hilly, outputs, monitor=SilentMonitor())


def test_an_area_cuts_the_map_and_changes_nothing_inside(
    task: MapTask, whole: list[bytes], tmp_path: Path
) -> None:
    area = Area(np.array([shapely.box(10, 20, 60, 70), shapely.box(80, 5, 95, 20)], object))

    result = map_scene(
        local(blurry), replace(task, area=area), outputs_in(tmp_path), monitor=SilentMonitor()
    )

    inside = area.read(Window(0, 0, task.scene.grid.size))
    for cut in tmp_path.glob("map*.tif"):
        with rasterio.open(cut) as layer, rasterio.open(tmp_path / "whole" / cut.name) as full:
            assert np.array_equal(layer.read(), np.where(inside, full.read(), NODATA))
    assert result.tiles < len(task.tiling)


def test_a_damaged_cell_is_told_and_mapped_anew(
    task: MapTask, whole: list[bytes], tmp_path: Path
) -> None:
    with pytest.raises(CancelledError):
        map_scene(local(blurry), task, kept_in(tmp_path), monitor=Stopper("finish"))
    cell = next((tmp_path / "strips").rglob(cells_of(tmp_path)[1]))
    cell.write_bytes(cell.read_bytes()[:-9])

    with pytest.raises(StorageError) as damaged:
        map_scene(local(blurry), task, kept_in(tmp_path), monitor=SilentMonitor())
    map_scene(local(blurry), task, kept_in(tmp_path), monitor=SilentMonitor())

    assert str(damaged.value) == (
        f"{cell} did not come back from the disk as it was written; expected a finished part of "
        "the map. Run the same command again: this part is mapped anew."
    )
    assert bytes_in(tmp_path) == whole


def test_a_disk_that_fills_up_is_told_of_the_map_and_gone_on_with(
    task: MapTask, whole: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(strips: StripFolder, name: str, content: bytes) -> None:
        if name.endswith(".cell") and cells_of(tmp_path):
            raise storage_error(strips.folder, 0)
        keep(strips, name, content)

    keep = StripFolder.keep
    monkeypatch.setattr(StripFolder, "keep", full)
    with pytest.raises(StorageError) as refused:
        map_scene(local(blurry), task, kept_in(tmp_path), monitor=SilentMonitor())
    monkeypatch.undo()
    map_scene(local(blurry), task, kept_in(tmp_path), monitor=SilentMonitor())

    assert refused.value.found == f"{tmp_path / 'map.tif'} could not be written"
    assert bytes_in(tmp_path) == whole


def test_too_little_memory_is_refused_with_what_suffices(task: MapTask, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        map_scene(
            local(brightest, memory_bytes=200_000),
            task,
            outputs_in(tmp_path),
            monitor=SilentMonitor(),
        )

    assert str(refused.value) == (
        "0.0002 GB of memory for 3 classes and tiles of 32 x 32 px; expected 0.1 GB or more. "
        "Allow it with --memory, or map a coarser scene."
    )


def estimated(task: MapTask, rows: int, cols: int) -> MapEstimate:
    with task.scene.reopened() as scene:
        scene.grid = replace(scene.grid, size=Size(rows, cols))
        return estimate(replace(task, scene=scene), outputs_in(Path()), memory_bytes=10**9)


def test_the_estimate_grows_with_the_width_and_not_with_the_height(task: MapTask) -> None:
    assert (
        estimated(task, 1000, 1000).memory_bytes
        == estimated(task, 100_000, 1000).memory_bytes
        < estimated(task, 1000, 2000).memory_bytes
    )


def test_the_estimate_counts_tiles_and_disk(task: MapTask) -> None:
    alone = estimate(task, MapOutputs(map=Path("map.tif")), memory_bytes=10**9)
    every = estimate(task, outputs_in(Path()), memory_bytes=10**9)

    assert alone.tiles == every.tiles == 3 * 5
    assert every.disk_bytes == 5 * alone.disk_bytes
    assert alone.disk_bytes > 2 * 75 * 110
