"""Mapping with Dask: pieces are tasks, finished cells are files that every worker sees.

The only importer of dask and distributed, which are optional.
"""
# mypy: disable-error-code="no-untyped-call"
# distributed is typed in parts

import logging
import math
import pickle
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureDropped
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from earthgate_geo import __version__
from earthgate_geo.errors import (
    EarthgateError,
    EngineError,
    InputError,
    LostEngineError,
    MissingDependencyError,
)
from earthgate_geo.mapping.cluster_worker import (
    TILES,
    ClusterNetwork,
    Order,
    map_part,
    survey,
)
from earthgate_geo.mapping.layout import Cell, Layout, Piece
from earthgate_geo.mapping.scene import panel_units
from earthgate_geo.mapping.stream import MapTask
from earthgate_geo.mapping.strips import StripFolder
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.destination import storage_error

try:
    from dask.system import CPU_COUNT
    from distributed import Client, Future, KilledWorker, LocalCluster
except ImportError as error:
    raise MissingDependencyError(
        found="--engine dask needs distributed, which is not installed",
        fix="Install it with: pip install 'earthgate-geo[dask]'",
    ) from error

Spent = Mapping[str, float]
"""Tiles and seconds, as ``map_piece`` returns them."""

_AGAIN = "run the same command again: it goes on with what is finished"
_ENDING = ".order"
_POLL_S = 0.5
_CONNECT_S = 10
_ATTEMPTS = 3

_UNINTERRUPTED = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Ctrl-C reaches all processes of a terminal; ours are ended by the one that started them."""

_MAY_GROW_TO = 8
"""Workers to cut for where a cluster may have fewer as yet."""

_LEAST_BANDS = 8
"""Bands of a task for each row of tiles that the task above computes, too."""


class DaskEngine:
    """Maps on the workers of a Dask cluster, or on processes of its own.

    A context manager: entering connects, or starts the processes, and opens the network on one
    worker. A worker maps one piece at a time, whatever its threads; the pieces of one that dies
    go to others, and what workers still do for a run that has ended stops at their next tile.
    Scene, model and strips are paths that all workers see. Memory: next to nothing here.

    Args:
        network: What maps.
        scheduler: Address of a running scheduler, as ``tcp://host:8786``.
        workers: Processes to start on this machine where there is no scheduler; one for each
            core, if absent.
        memory_bytes: What mapping may take on each worker of a scheduler, or on all processes of
            this machine together.
        monitor: Told what is waited for.

    Raises:
        InputError: The address is none.
        EngineError: Nothing answers there, or the first worker is refused.
        EarthgateError: As ``load_model`` and ``open_runtime``.
    """

    def __init__(
        self,
        network: ClusterNetwork,
        *,
        scheduler: str | None = None,
        workers: int | None = None,
        memory_bytes: int,
        monitor: Monitor,
    ) -> None:
        self._scheduler, self._workers = scheduler, workers or CPU_COUNT
        if scheduler is None:
            network = replace(network, threads=max(1, CPU_COUNT // self._workers))
            memory_bytes //= self._workers
        self._network, self._memory_bytes = _absolute(network), memory_bytes
        self._monitor = monitor
        self._told: dict[str, dict[int, int]] = defaultdict(dict)  # tiles by order and piece
        self._stack = ExitStack()
        self.about: Mapping[str, Any] = {}
        """``runtime``, ``precision`` and ``batch``, the same on all workers."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(_silent())
            self._client = _connected(self._scheduler, self._workers, stack)
            self._client.subscribe_topic(TILES, self._hear)
            if _count(self._client) == 0:
                self._monitor.log(f"waiting for the first worker of {self._scheduler}")
            self.about = _result(_submitted(self._client, survey, self._network))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def fill(self, task: MapTask, strips: StripFolder, monitor: Monitor) -> Spent:
        """Finish all cells that are missing.

        Raises:
            InputError: The memory does not suffice for the narrowest panel.
            EngineError: The scheduler is lost, or workers die, or see other files.
            EarthgateError: As ``map_piece``.
        """
        pieces = self._pieces(task, strips)
        tiles = [len(strips.layout.tiles(piece)) for piece in pieces]
        monitor.stage("map", sum(tiles))
        spent = dict.fromkeys(("tiles", "read", "network", "write"), 0.0)
        with _standing(strips.folder.absolute()) as file:
            order = Order(
                network=self._network,
                about=self.about,
                file=file,
                scene=task.scene.digest(),
                heights=task.heights.digest() if task.heights else None,
                task=pickle.dumps(task),
            )
            told = self._told[file.name]
            for done in _Run(self._client, order, pieces).results():
                if done is not None:
                    number, result = done
                    told[number] = tiles[number]
                    spent = {part: spent[part] + amount for part, amount in result.items()}
                monitor.update(sum(list(told.values())))
        return spent

    def _pieces(self, task: MapTask, strips: StripFolder) -> list[Piece]:
        layout, missing = strips.layout, strips.missing()
        units = panel_units(layout, task, self._memory_bytes)
        workers = self._workers
        if self._scheduler is not None:
            workers = max(_MAY_GROW_TO, _count(self._client))
        bands = bands_at_once(layout, missing, units_at_once=units, workers=workers)
        return list(layout.pieces(missing, units_at_once=units, bands_at_once=bands))

    def _hear(self, event: tuple[float, tuple[str, int, int]]) -> None:
        """Take what a worker says of a piece; one that is begun anew counts from there."""
        order, number, tiles = event[1]
        told = self._told[order]
        told[number] = max(tiles, told.get(number, 0))


def bands_at_once(
    layout: Layout, missing: Collection[Cell], *, units_at_once: int, workers: int
) -> int:
    """Return how many bands a task maps, so that all workers are done soonest.

    A task computes the rows of tiles that reach into its first band once more: few bands waste
    that work, many leave workers without any. At most four tasks for each worker, unless the
    waste were more than an eighth.
    """
    tiling = layout.tiling
    again = math.ceil(tiling.tile.rows / tiling.stride.rows) - 1
    bands = len({band for band, _ in missing})
    panels = math.ceil(layout.units / units_at_once)
    most = max(1, _LEAST_BANDS * again, bands * panels // (4 * workers))

    def rows_of_tiles(count: int) -> int:
        return math.ceil(math.ceil(bands / count) * panels / workers) * (count + again)

    return min(range(1, min(most, bands) + 1), key=rows_of_tiles)


class _Run:
    """The pieces of one order on their way over the cluster."""

    def __init__(self, client: Client, order: Order, pieces: Sequence[Piece]) -> None:
        self._client, self._order, self._pieces = client, order, pieces
        self._waiting = deque(range(len(pieces)))
        self._attempts = Counter[int]()
        self._running: dict[str, tuple[int, Future[Any]]] = {}
        self._finished: SimpleQueue[Future[Any]] = SimpleQueue()

    def results(self) -> Iterator[tuple[int, Spent] | None]:
        """Yield number and result of each piece as it is finished, and None now and then."""
        try:
            while self._waiting or self._running:
                self._submit()
                try:
                    key = str(self._finished.get(timeout=_POLL_S).key)
                except Empty:
                    yield None
                else:
                    yield self._result(*self._running.pop(key))
        finally:
            for _, future in self._running.values():
                future.release()

    def _submit(self) -> None:
        # Few at a time: a worker that dies counts against every task that it had been given.
        while self._waiting and len(self._running) < 2 * max(1, _count(self._client)):
            number = self._waiting.popleft()
            piece = self._pieces[number]
            future = _submitted(self._client, map_part, self._order, piece, number)
            self._running[str(future.key)] = number, future
            future.add_done_callback(self._finished.put)

    def _result(self, number: int, future: Future[Any]) -> tuple[int, Spent] | None:
        try:
            return number, _result(future)
        except EarthgateError:
            raise
        except OSError as error:  # a disk or a network that was away for a moment
            self._attempts[number] += 1
            if self._attempts[number] == _ATTEMPTS:
                raise EngineError(
                    found=f"the same part of the map failed {_ATTEMPTS} times, at last with "
                    f"{type(error).__name__}: {error}",
                    fix=f"See that all workers reach the scene and the map, then {_AGAIN}",
                ) from error
            self._waiting.append(number)
            return None


def _submitted(client: Client, job: Callable[..., object], *args: object) -> Future[Any]:
    """Give a job to the cluster, sealed: a scheduler need not have our package, nor load torch."""
    content = pickle.dumps((job, args))

    def open_and_do() -> object:  # goes as it stands here, not by name
        import pickle  # noqa: PLC0415

        from distributed import get_worker  # noqa: PLC0415

        job, args = pickle.loads(content)
        return job(*args, get_worker())

    future: Future[Any] = client.submit(open_and_do, key=f"earthgate-{uuid.uuid4().hex}")
    return future


def _result(future: Future[Any]) -> Any:
    """Return what a worker made of its task; what Dask has to say becomes a sentence."""
    try:
        answer = future.result()
    except FutureDropped as error:
        raise _lost() from error
    except KilledWorker as error:
        raise EngineError(
            found=f"{error.allowed_failures + 1} Dask workers died at the same part of the map",
            expected="workers with enough memory",
            fix=f"Give each more memory, or pass a smaller --memory, then {_AGAIN}",
        ) from error
    except ImportError as error:
        raise EngineError(
            found=f"a Dask worker cannot load the program: {error}",
            expected=f"earthgate {__version__} on all workers",
        ) from error
    if isinstance(answer, EarthgateError):
        raise answer
    return answer


def _count(client: Client) -> int:
    """Return how many workers there are."""
    if client.status != "running":
        raise _lost()
    try:
        return len(client.nthreads())
    except OSError as error:
        raise _lost() from error


def _lost() -> LostEngineError:
    return LostEngineError(found="the Dask scheduler is lost", fix=f"Start it again, then {_AGAIN}")


def _connected(scheduler: str | None, workers: int, stack: ExitStack) -> Client:
    cluster = None
    if scheduler is None:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,  # it would listen to the whole network
            memory_limit=0,  # ours holds
            silence_logs=logging.CRITICAL,
            preload=[_UNINTERRUPTED],
        )
        stack.enter_context(cluster)
    try:
        address = cluster or scheduler
        client: Client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except ValueError as error:
        raise InputError(
            found=f"--scheduler {scheduler}", expected="an address like tcp://host:8786"
        ) from error
    except OSError as error:
        raise LostEngineError(
            found=f"no Dask scheduler answers at {scheduler}",
            fix="Start one there with 'dask scheduler', or let --workers start processes here",
        ) from error
    stack.enter_context(client)
    return client


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Dask's log from the terminal: what matters comes as an error."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _standing(folder: Path) -> Iterator[Path]:
    """Give an order a file; it stands until the run ends, or the next one begins."""
    file = folder / f"{uuid.uuid4().hex}{_ENDING}"
    try:
        for left in folder.glob(f"*{_ENDING}"):
            left.unlink()
        file.touch()
    except OSError as error:
        raise storage_error(folder, 0) from error
    try:
        yield file
    finally:
        with suppress(OSError):
            file.unlink()


def _absolute(network: ClusterNetwork) -> ClusterNetwork:
    """Say the same to a process in another folder."""
    model = network.model
    return replace(
        network,
        model=str(Path(model).absolute()) if model and Path(model).is_file() else model,
        folders=tuple(folder.absolute() for folder in network.folders),
        cache=network.cache and network.cache.absolute(),
    )
