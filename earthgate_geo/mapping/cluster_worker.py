"""What the worker of a cluster does: it opens the network once, and maps piece after piece.

Imports nothing of the cluster's library: what there is to know of the worker is handed over.
"""

import math
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from earthgate_geo import __version__
from earthgate_geo.errors import EarthgateError, EngineError
from earthgate_geo.mapping.layout import Layout, Piece
from earthgate_geo.mapping.runtime import Runtime, RuntimeOptions, open_runtime
from earthgate_geo.mapping.stream import MapTask, map_piece
from earthgate_geo.mapping.strips import StripFolder
from earthgate_geo.model_file import load_model
from earthgate_geo.raster.grid import Size

TILES = "earthgate-tiles"
"""Topic of the events that say how many tiles of a piece are done: order, piece, tiles."""

_T = TypeVar("_T")
_ALONE = threading.Lock()
_TELL_S = 0.5


class Worker(Protocol):
    """The process that maps, as Dask has it."""

    @property
    def name(self) -> object:
        """A number among processes of one machine, otherwise a string."""

    @property
    def state(self) -> Any:
        """``nthreads`` in it are the CPU threads that the process may use."""

    def log_event(self, topic: str, msg: Any) -> None:
        """Tell all clients."""

    def __hash__(self) -> int:
        """Tell it from others."""


@dataclass(frozen=True, kw_only=True)
class ClusterNetwork:
    """The network as every worker opens it."""

    model: str | None
    """Model or adapter by file or name, as ``load_model`` takes it; a file that all workers see."""

    folders: tuple[Path, ...] = ()
    """Further folders in which names are looked up."""

    digests: tuple[str, str | None]
    """Of the client's model file and adapter file: a worker that finds others is refused."""

    size: Size
    """Height and width of its images, in pixels."""

    runtime: str = "auto"
    """As in ``RuntimeOptions``; ``auto`` is what the first worker makes of it, for all."""

    precision: str = "auto"
    """Likewise."""

    batch: int | None = None
    """Likewise."""

    device: str = "auto"
    """Torch device; ``auto`` is the graphics card of each worker, if it has one."""

    cache: Path | None = None
    """Folder of converted networks."""

    threads: int | None = None
    """CPU threads of a worker; those that its cluster gives it, if absent."""

    version: str = __version__
    """Of the client: another one may round otherwise."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is told beside the piece."""

    network: ClusterNetwork
    """What maps."""

    about: Mapping[str, Any]
    """``runtime``, ``precision`` and ``batch``, the same on all workers."""

    file: Path
    """In the folder of the strips: the order stands for as long as it is there."""

    scene: str
    """Digest of the scene."""

    task: bytes
    """Pickled apart, so that a scene that cannot be opened is told in our words."""

    heights: str | None = None
    """Digest of the scene's heights, where there are any."""


def survey(network: ClusterNetwork, worker: Worker) -> dict[str, Any] | EarthgateError:
    """Open the network and say what runs it: ``runtime``, ``precision`` and ``batch``."""
    return _answer(lambda: _about(_opened(network, worker)))


def map_part(
    order: Order, piece: Piece, number: int, worker: Worker
) -> dict[str, float] | EarthgateError:
    """Map a piece; return what ``map_piece`` does, or the error that a user is told."""
    return _answer(lambda: _mapped(order, piece, number, worker))


def _answer(job: Callable[[], _T]) -> _T | EarthgateError:
    """Do a job alone on this worker: a runtime is for one thread."""
    try:
        with _ALONE:
            return job()
    except EarthgateError as error:
        # Without its cause: those of GDAL do not pickle.
        return type(error)(found=error.found, expected=error.expected, fix=error.fix)


def _mapped(order: Order, piece: Piece, number: int, worker: Worker) -> dict[str, float]:
    told = _Teller(order.file, number, worker)
    told.check()
    runtime = _runtime(order, worker)
    with _on_this_worker():
        task: MapTask = pickle.loads(order.task)
    with task.scene as scene:
        if scene.digest() != order.scene:
            raise _refused(f"finds another {scene.path}", "the same file on all machines")
        if task.heights and task.heights.digest() != order.heights:
            other = " or ".join(task.heights.paths)
            raise _refused(f"finds another {other}", "the same file on all machines")
        strips = StripFolder(order.file.parent, Layout(task.tiling), planes=task.planes)
        return map_piece(runtime, task, piece, strips, told=told)


def _runtime(order: Order, worker: Worker) -> Runtime:
    """Return the network as the client wants it, even where this machine would do otherwise."""
    runtime = _opened(order.network, worker)
    if _about(runtime) != order.about:
        runtime = _opened(replace(order.network, **order.about), worker)
    if _about(runtime) != order.about:
        raise _refused(f"runs the network as {_about(runtime)}", str(order.about))
    return runtime


@lru_cache(maxsize=2)
def _opened(network: ClusterNetwork, worker: Worker) -> Runtime:
    if network.version != __version__:
        raise _refused(f"has earthgate {__version__}", f"{network.version}, as the client has")
    with _on_this_worker():
        model = load_model(network.model, folders=network.folders)
    if (model.digest, model.adapter_digest) != network.digests:
        raise _refused(f"finds another model as {network.model or model.name}", "the client's")
    torch.set_num_threads(network.threads or worker.state.nthreads)
    options = RuntimeOptions(
        runtime=network.runtime,
        precision=network.precision,
        batch=network.batch,
        device=_device(network.device, worker.name),
        cache=network.cache,
    )
    return open_runtime(model, network.size, options)


def _device(wanted: str, worker: object) -> torch.device:
    """Share the graphics cards of a machine among its own processes, which have numbers."""
    cards = torch.cuda.device_count()
    if wanted in ("auto", "cuda") and cards:
        return torch.device("cuda", worker % cards if isinstance(worker, int) else 0)
    return torch.device("cpu" if wanted == "auto" else wanted)


def _about(runtime: Runtime) -> dict[str, Any]:
    return {"runtime": runtime.name, "precision": runtime.precision, "batch": runtime.batch}


class _Teller:
    """Counts tiles for the client, and stops a piece that nobody waits for."""

    def __init__(self, file: Path, number: int, worker: Worker) -> None:
        self._file, self._number, self._worker = file, number, worker
        self._tiles, self._said_s = 0, -math.inf

    def __call__(self, tiles: int) -> None:
        self.check()
        self._tiles += tiles
        if time.monotonic() - self._said_s > _TELL_S:
            self._said_s = time.monotonic()
            self._worker.log_event(TILES, (self._file.name, self._number, self._tiles))

    def check(self) -> None:
        """Refuse to go on without the order's file."""
        if not self._file.exists():
            raise _refused(
                f"does not see the folder {self._file.parent}",
                "the same path on all machines",
                fix="Write the map to a disk that they share",
            )


@contextmanager
def _on_this_worker() -> Iterator[None]:
    """Say where a file could not be opened: on the client it could."""
    try:
        yield
    except EarthgateError as error:
        raise _refused(f"stops: {error.found}", error.expected, fix=error.fix) from error


def _refused(found: str, expected: str, *, fix: str = "") -> EngineError:
    return EngineError(
        found=f"the Dask worker on {socket.gethostname()} {found}", expected=expected, fix=fix
    )
