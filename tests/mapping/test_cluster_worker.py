import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import cluster_network, write_model
from rasters import RasterSpec, write_raster

from earthgate_geo import __version__
from earthgate_geo.data.heights import open_heights
from earthgate_geo.data.scenes import TilePlan
from earthgate_geo.errors import EarthgateError, EngineError
from earthgate_geo.mapping.cluster_worker import ClusterNetwork, Order, map_part, survey
from earthgate_geo.mapping.layout import Layout, Piece
from earthgate_geo.mapping.runtime import RuntimeOptions, open_runtime
from earthgate_geo.mapping.stream import MapTask, map_piece
from earthgate_geo.mapping.strips import StripFolder
from earthgate_geo.model_file import load_model
from earthgate_geo.raster.grid import Size
from earthgate_geo.raster.read import open_scene

TILE = Size(64, 64)
ABOUT = {"runtime": "torch", "precision": "fp32", "batch": 1}
PIECE = Piece(range(1, 3), range(1))
HERE = f"the Dask worker on {socket.gethostname()}"


@dataclass(eq=False)
class Worker:
    """A worker without a cluster, and something that happens as it says how far it is."""

    name: object = "worker"
    state: Any = field(default_factory=lambda: SimpleNamespace(nthreads=torch.get_num_threads()))
    events: list[Any] = field(default_factory=list)
    deed: Callable[[], object] = int

    def log_event(self, topic: str, msg: Any) -> None:
        self.events.append((topic, msg))
        self.deed()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture
def network(model: Path) -> ClusterNetwork:
    return cluster_network(model, TILE)


@pytest.fixture
def task(tmp_path: Path, model: Path) -> MapTask:
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=250, cols=100))
    scene = open_scene(tmp_path / "scene.tif")
    return MapTask(
        scene=scene,
        bands=(1, 2, 3),
        radiometry=scene.radiometry((1, 2, 3)),
        plan=TilePlan(tile=TILE, stride=Size(48, 48), network=TILE),
        classes=load_model(model).segmenter.config.classes,
        confidence=True,
    )


@pytest.fixture
def order(network: ClusterNetwork, task: MapTask, tmp_path: Path) -> Order:
    file = tmp_path / "strips" / "run.order"
    file.parent.mkdir()
    file.touch()
    return Order(
        network=network,
        about=ABOUT,
        file=file,
        scene=task.scene.digest(),
        task=pickle.dumps(task),
    )


def test_the_first_worker_says_what_auto_comes_to(network: ClusterNetwork) -> None:
    found = survey(replace(network, runtime="auto", precision="fp32"), Worker())

    assert isinstance(found, dict)
    assert found["precision"] == "fp32"
    assert found["runtime"] in ("torch", "openvino")
    assert found["batch"] == 1


def test_a_part_is_what_this_process_maps(
    order: Order, task: MapTask, model: Path, tmp_path: Path
) -> None:
    spent = map_part(order, PIECE, 0, Worker())

    assert isinstance(spent, dict)
    runtime = open_runtime(load_model(model), TILE, RuntimeOptions(**ABOUT))
    strips = StripFolder(tmp_path / "here", Layout(task.tiling), planes=task.planes)
    strips.folder.mkdir()
    map_piece(runtime, task, PIECE, strips, told=int)
    cells = [path.name for path in strips.folder.iterdir()]
    assert len(cells) == 2
    for name in cells:
        assert (strips.folder / name).read_bytes() == (order.file.parent / name).read_bytes()


def test_a_worker_that_would_choose_otherwise_does_as_the_first(order: Order) -> None:
    chosen = replace(order, about=ABOUT | {"batch": 2})

    spent = map_part(chosen, PIECE, 0, Worker())

    assert isinstance(spent, dict)
    assert spent["tiles"] == 6


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            lambda order: replace(order, network=replace(order.network, version="0.0.1")),
            f"{HERE} has earthgate {__version__}; expected 0.0.1, as the client has.",
        ),
        (
            lambda order: replace(order, network=replace(order.network, digests=("0", None))),
            HERE + " finds another model as {model}; expected the client's.",
        ),
        (
            lambda order: replace(order, scene="0"),
            HERE + " finds another {scene}; expected the same file on all machines.",
        ),
        (
            lambda order: replace(order, file=order.file.parent / "gone" / "run.order"),
            HERE + " does not see the folder {strips}/gone; expected the same path on all "
            "machines. Write the map to a disk that they share.",
        ),
    ],
)
def test_a_worker_that_sees_other_files_is_refused(
    changed: Callable[[Order], Order], sentence: str, order: Order, task: MapTask, model: Path
) -> None:
    refused = map_part(changed(order), PIECE, 0, Worker())

    assert isinstance(refused, EngineError)
    assert str(refused) == sentence.format(
        model=model, scene=task.scene.path, strips=order.file.parent
    )
    assert list(order.file.parent.glob("*.cell")) == []


def test_a_worker_that_finds_other_heights_is_refused(
    order: Order, task: MapTask, tmp_path: Path
) -> None:
    write_raster(tmp_path / "dsm.tif", RasterSpec(bands=1, rows=250, cols=100, dtype="float32"))
    heights = open_heights(str(tmp_path / "dsm.tif"), task.scene.grid)
    hilly = replace(task, heights=heights, height_radiometry=heights.radiometry())
    order = replace(order, task=pickle.dumps(hilly), heights=heights.digest())
    assert isinstance(map_part(order, PIECE, 0, Worker()), dict)
    write_raster(tmp_path / "dsm.tif", RasterSpec(bands=1, rows=250, cols=100, dtype="int16"))

    refused = map_part(order, PIECE, 0, Worker())

    assert str(refused) == (
        f"{HERE} finds another {tmp_path / 'dsm.tif'}; expected the same file on all machines."
    )


def test_a_file_that_cannot_be_opened_is_told_with_the_worker(order: Order, task: MapTask) -> None:
    Path(task.scene.path).unlink()

    refused = map_part(order, PIECE, 0, Worker())

    assert str(refused) == (
        f"{HERE} stops: {task.scene.path} does not exist; expected a raster file."
    )


def test_errors_leave_what_does_not_pickle_behind(order: Order, task: MapTask) -> None:
    path = Path(task.scene.path)
    path.write_bytes(path.read_bytes()[:100])

    refused = map_part(replace(order, scene=""), PIECE, 0, Worker())

    assert isinstance(refused, EarthgateError)
    assert refused.__cause__ is None
    assert str(pickle.loads(pickle.dumps(refused))) == str(refused)


def test_a_part_stops_and_is_told_when_its_order_is_taken_back(
    order: Order,
) -> None:
    worker = Worker(deed=order.file.unlink)

    refused = map_part(order, PIECE, 7, worker)

    assert worker.events == [("earthgate-tiles", ("run.order", 7, 1))]
    assert isinstance(refused, EngineError)
    assert list(order.file.parent.iterdir()) == []
