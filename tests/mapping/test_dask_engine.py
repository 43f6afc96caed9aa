import hashlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from dask.system import CPU_COUNT
from hypothesis import given
from hypothesis import strategies as st
from networks import cluster_network, write_model
from rasters import RasterSpec, write_raster

from earthgate_geo import errors
from earthgate_geo.data.scenes import TilePlan
from earthgate_geo.errors import CancelledError, DataError, EngineError, InputError
from earthgate_geo.mapping.dask_engine import DaskEngine, bands_at_once
from earthgate_geo.mapping.layout import Layout
from earthgate_geo.mapping.runtime import RuntimeOptions, open_runtime
from earthgate_geo.mapping.scene import Engine, LocalEngine, MapOutputs, map_scene
from earthgate_geo.mapping.stream import MapTask
from earthgate_geo.model_file import load_model
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.grid import Size, Tiling
from earthgate_geo.raster.read import open_scene

ROOT = Path(__file__).parents[2]
TILE = Size(64, 64)
PLAN = TilePlan(tile=TILE, stride=Size(48, 48), network=TILE)
MEMORY_BYTES = 10**9
WORKER_THREADS = 3
LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


class Saboteur(SilentMonitor):
    """Does something once, when some tiles are mapped and others are not."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self._deeds = [deed]
        self._total = 0

    def stage(self, name: str, total: int) -> None:
        self._total = total

    def update(self, done: int) -> None:
        if self._deeds and done:
            assert done < self._total
            self._deeds.pop()()


class Recorder(SilentMonitor):
    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.heard: dict[str, list[int]] = {}

    def stage(self, name: str, total: int) -> None:
        self.totals[name], self._stage = total, name

    def update(self, done: int) -> None:
        self.heard.setdefault(self._stage, []).append(done)


@dataclass
class Cluster:
    """A scheduler and a worker of its own, in a folder of their own, on the loopback alone."""

    address: str
    scheduler: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture
def task(tmp_path: Path, model: Path) -> MapTask:
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=1200, cols=100))
    scene = open_scene(tmp_path / "scene.tif")
    return MapTask(
        scene=scene,
        bands=(1, 2, 3),
        radiometry=scene.radiometry((1, 2, 3)),
        plan=PLAN,
        classes=load_model(model).segmenter.config.classes,
    )


def computing_with(threads: int) -> Iterator[None]:
    """Let this process compute with so many threads: on some processors torch rounds by that."""
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(kept)


@pytest.fixture(autouse=True)
def as_one_of_two_workers() -> Iterator[None]:
    yield from computing_with(max(1, CPU_COUNT // 2))


@pytest.fixture
def as_the_worker_of_the_cluster(as_one_of_two_workers: None) -> Iterator[None]:
    yield from computing_with(WORKER_THREADS)


@pytest.fixture(scope="module")
def two_workers(model: Path) -> Iterator[DaskEngine]:
    with engine_of(model, workers=2) as engine:
        yield engine


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    with ExitStack() as stack:
        scheduler = start(stack, folder, "scheduler", "--port", port)
        start(stack, folder, "worker", address, "--nthreads", str(WORKER_THREADS), "--no-nanny")
        yield Cluster(address, scheduler)


def start(stack: ExitStack, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments, *LOOPBACK],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def engine_of(
    model: Path, *, scheduler: str | None = None, workers: int | None = None
) -> DaskEngine:
    return DaskEngine(
        cluster_network(model, TILE),
        scheduler=scheduler,
        workers=workers,
        memory_bytes=2 * MEMORY_BYTES,
        monitor=SilentMonitor(),
    )


def local_engine(model: Path) -> LocalEngine:
    options = RuntimeOptions(runtime="torch", precision="fp32", batch=1)
    runtime = open_runtime(load_model(model), TILE, options)
    return LocalEngine(runtime, memory_bytes=MEMORY_BYTES)


def outputs_in(folder: Path) -> MapOutputs:
    folder.mkdir(exist_ok=True)
    return MapOutputs(
        map=folder / "map.tif",
        confidence=folder / "map_conf.tif",
        strips=folder / "strips",
        overwrite=True,
    )


def mapped(
    engine: Engine, task: MapTask, folder: Path, monitor: SilentMonitor | None = None
) -> list[str]:
    """Return digests: of unlike bytes pytest would look for the differences for minutes."""
    outputs = outputs_in(folder)
    map_scene(engine, task, outputs, monitor=monitor or SilentMonitor())
    paths = [path for path in (outputs.map, outputs.confidence) if path]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def worker_processes() -> list[psutil.Process]:
    started = psutil.Process().children(recursive=True)
    return [process for process in started if "spawn_main" in " ".join(process.cmdline())]


@given(
    bands=st.integers(1, 400),
    units=st.integers(1, 4),
    units_at_once=st.integers(1, 4),
    overlap_px=st.integers(0, 40),
    workers=st.integers(1, 16),
)
def test_tasks_cover_what_is_missing_and_many_bands_waste_little(
    bands: int, units: int, units_at_once: int, overlap_px: int, workers: int
) -> None:
    tile, stride = 64, 64 - overlap_px
    raster = Size(tile + (bands - 1) * stride, tile + 6144 * (units - 1))
    layout = Layout(Tiling(raster, Size(tile, tile), Size(stride, stride)))
    missing = layout.cells()

    count = bands_at_once(layout, missing, units_at_once=units_at_once, workers=workers)

    pieces = list(layout.pieces(missing, units_at_once=units_at_once, bands_at_once=count))
    assert {(b, u) for piece in pieces for b in piece.bands for u in piece.units} == missing
    again = -(-tile // stride) - 1
    if layout.bands >= 64 * workers * max(1, again):
        assert again / count <= 1 / 8
        assert len(pieces) >= 2 * workers


@pytest.mark.parametrize(
    ("bands", "workers", "count"), [(1, 4, 1), (4, 4, 1), (10, 2, 5), (40, 4, 5), (1000, 4, 50)]
)
def test_few_bands_are_shared_out_evenly(bands: int, workers: int, count: int) -> None:
    layout = Layout(Tiling(Size(64 + (bands - 1) * 48, 64), TILE, PLAN.stride))

    found = bands_at_once(layout, layout.cells(), units_at_once=1, workers=workers)

    assert found == count


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if issubclass(kind, errors.EarthgateError)]
)
def test_an_error_comes_back_from_another_process_as_it_was(
    kind: type[errors.EarthgateError],
) -> None:
    error = kind(found="3 bands", expected="4", fix="Pass --bands")

    back = pickle.loads(pickle.dumps(error))

    assert type(back) is kind
    assert str(back) == "3 bands; expected 4. Pass --bands."
    assert (back.found, back.expected, back.fix) == ("3 bands", "4", "Pass --bands")


def test_an_address_that_is_none_is_refused(model: Path) -> None:
    with pytest.raises(InputError) as refused, engine_of(model, scheduler="nonsense"):
        pass

    assert str(refused.value) == ("--scheduler nonsense; expected an address like tcp://host:8786.")


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_told(model: Path) -> None:
    with pytest.raises(EngineError) as refused, engine_of(model, scheduler="tcp://127.0.0.1:9"):
        pass

    assert str(refused.value) == (
        "no Dask scheduler answers at tcp://127.0.0.1:9. Start one there with 'dask scheduler', "
        "or let --workers start processes here."
    )


@pytest.mark.slow
def test_two_workers_map_the_same_bytes_as_this_process(
    two_workers: DaskEngine, task: MapTask, model: Path, tmp_path: Path
) -> None:
    monitor = Recorder()

    found = mapped(two_workers, task, tmp_path / "dask", monitor)

    assert found == mapped(local_engine(model), task, tmp_path / "local")
    assert two_workers.about == {"runtime": "torch", "precision": "fp32", "batch": 1}
    assert monitor.heard["map"] == sorted(monitor.heard["map"])
    assert monitor.heard["map"][-1] == monitor.totals["map"]


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(
    two_workers: DaskEngine, task: MapTask, model: Path, tmp_path: Path
) -> None:
    victim = worker_processes()[0]

    found = mapped(two_workers, task, tmp_path / "dask", Saboteur(victim.kill))

    assert not victim.is_running()
    assert found == mapped(local_engine(model), task, tmp_path / "local")


@pytest.mark.slow
def test_errors_of_workers_are_those_of_this_process(
    two_workers: DaskEngine, task: MapTask, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.tif"
    write_raster(path, RasterSpec(rows=1200, cols=100), compress="deflate", tiled=True)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 1000] = bytes(1000)
    path.write_bytes(content)
    task = replace(task, scene=open_scene(path))

    told = []
    for engine in (two_workers, local_engine(model)):
        with pytest.raises(DataError) as failed:
            mapped(engine, task, tmp_path / "map")
        told.append(str(failed.value).split(" cannot be read at ")[0])

    assert told == [str(path)] * 2


@pytest.mark.slow
def test_a_cancelled_run_takes_its_order_back_and_can_be_gone_on_with(
    two_workers: DaskEngine, task: MapTask, model: Path, tmp_path: Path
) -> None:
    def cancel() -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        mapped(two_workers, task, tmp_path / "map", Saboteur(cancel))

    assert list((tmp_path / "map" / "strips").rglob("*.order")) == []
    found = mapped(two_workers, task, tmp_path / "map")
    assert found == mapped(local_engine(model), task, tmp_path / "local")


@pytest.mark.slow
def test_a_lost_scheduler_is_told_and_the_map_can_be_gone_on_with(
    cluster: Cluster,
    task: MapTask,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_the_worker_of_the_cluster: None,
) -> None:
    monkeypatch.chdir(tmp_path)  # paths are relative to this process's folder, not the worker's
    task = replace(task, scene=open_scene("scene.tif"))
    folder = Path("map")

    with (
        pytest.raises(EngineError) as failed,
        engine_of(model, scheduler=cluster.address) as engine,
    ):
        mapped(engine, task, folder, Saboteur(cluster.scheduler.kill))

    assert str(failed.value) == (
        "the Dask scheduler is lost. Start it again, then run the same command again: it goes on "
        "with what is finished."
    )
    finished = list((folder / "strips").rglob("*.cell"))
    assert finished
    monitor = Recorder()
    found = mapped(local_engine(model), task, folder, monitor)
    assert monitor.totals["map"] < len(task.tiling)
    assert found == mapped(local_engine(model), task, Path("local"))
