"""One piece of a map: tiles are read ahead, and written behind, so that the network never waits."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.area import Area
from earthgate_geo.data.heights import HeightLayer
from earthgate_geo.data.scenes import NetworkInput, Sample, SceneDataset, TilePlan
from earthgate_geo.errors import EarthgateError, ModelFileError
from earthgate_geo.mapping.blend import Strip, StripBlender
from earthgate_geo.mapping.layout import Piece
from earthgate_geo.mapping.runtime import Runtime
from earthgate_geo.mapping.strips import StripFolder
from earthgate_geo.raster.classes import FULL_SCALE, NODATA, ClassTable
from earthgate_geo.raster.grid import Tiling, Window
from earthgate_geo.raster.read import CACHE_BYTES, Radiometry, Scene

TILES_AHEAD = 4
"""Tiles that are read while the network works, on top of those of its next call."""

_MOST_CACHE_BYTES = 1_000_000_000

STRIPS_BEHIND = 1
"""Finished cells that may wait to be written."""


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """What is mapped and how: all that decides the labels, next to the network. Pickles."""

    scene: Scene
    """Scene to map."""

    bands: Sequence[int]
    """1-based file bands for the network, from ``Scene.choose_bands``."""

    radiometry: Radiometry
    """Of those bands, from ``Scene.radiometry``."""

    plan: TilePlan
    """Tiles, from ``plan_tiles``."""

    classes: ClassTable
    """Classes of the network, in the order of its logits."""

    heights: HeightLayer | None = None
    """Heights of the scene, where there are any."""

    height_radiometry: Radiometry | None = None
    """Of the heights, ``UNSCALED`` where there are none; None for a network that takes none."""

    area: Area | None = None
    """What is mapped; the rest of the scene is nodata."""

    confidence: bool = False
    """Whether the probability of the mapped class is wanted."""

    probs: bool = False
    """Whether the probability of every class is wanted."""

    @property
    def tiling(self) -> Tiling:
        """Return the tiles of the scene."""
        return Tiling(self.scene.grid.size, self.plan.tile, self.plan.stride)

    @property
    def cache_bytes(self) -> int:
        """Return what GDAL's cache may take: each block should be decoded once."""
        return min(_MOST_CACHE_BYTES, max(CACHE_BYTES, self.scene.strip_bytes(self.plan.tile.rows)))

    @property
    def channels(self) -> int:
        """Return the number of channels that the network sees."""
        return len(self.bands) + (self.height_radiometry is not None)

    @property
    def planes(self) -> int:
        """Return the number of bands of all layers: the map, then confidence, then probs."""
        return 1 + self.confidence + len(self.classes) * self.probs


def map_piece(
    runtime: Runtime,
    task: MapTask,
    piece: Piece,
    strips: StripFolder,
    *,
    told: Callable[[int], None],
) -> dict[str, float]:
    """Map a piece into its cells.

    Memory: classes x tile rows x columns of the piece in float32, ``TILES_AHEAD`` tiles, and the
    rows of two bands.

    Args:
        runtime: The network.
        task: What is mapped and how.
        piece: Bands and units.
        strips: Where finished cells go.
        told: Called with the number of tiles done since the last call; may raise.

    Returns:
        ``tiles`` that went through the network, and the seconds that this thread spent waiting
        for tiles (``read``), on the network (``network``), and on blending and waiting for the
        disk (``write``).

    Raises:
        DataError: The scene is damaged.
        ModelFileError: The network does not give the classes of the task.
        EarthgateError: The network gives numbers that are not finite.
        StorageError: The disk refuses.
    """
    layout, tiles = strips.layout, strips.layout.tiles(piece)
    clock = _Clock()
    blender = StripBlender(
        layout.tiling,
        classes=len(task.classes),
        cols=layout.cols(piece.units),
        first_row=tiles[0].row,
        device=runtime.device,
    )
    with ExitStack() as stack, torch.inference_mode():
        _quiet_threads(runtime, stack)
        writer = _Writer(task, piece, strips, _pool(runtime, stack))
        reader = _pool(runtime, stack)
        samples = stack.enter_context(closing(_read_ahead(task, tiles, clock, reader)))
        # Fresh memory for every tile would cost as much as the work on it.
        memory = torch.empty((len(task.classes), *astuple(task.plan.tile)), device=runtime.device)
        for sample, logits in _predict(
            runtime, task, _batches(samples, runtime.batch, told), clock
        ):
            window: Window = sample["window"]
            with clock.on("network"):
                probabilities = torch.softmax(_resized(logits, window), dim=0, out=memory)
            with clock.on("write"):
                for strip in blender.take(window.row):
                    writer.add(strip)
                blender.add(window, probabilities, sample["valid"].to(runtime.device))
        with clock.on("write"):
            for strip in blender.take(layout.rows(piece.bands[-1]).stop):
                writer.add(strip)
            writer.finish()
    return clock.spent


def _predict(
    runtime: Runtime, task: MapTask, batches: Iterable[list[Sample]], clock: "_Clock"
) -> Iterator[tuple[Sample, Tensor]]:
    """Yield every tile with its logits (class, row, col)."""
    calls: deque[tuple[list[Sample], Callable[[], Tensor]]] = deque()

    def finished() -> Iterator[tuple[Sample, Tensor]]:
        batch, result = calls.popleft()
        with clock.on("network"):
            logits = result()
        if logits.shape[1] != len(task.classes):
            raise ModelFileError(
                found=f"a network with {logits.shape[1]} outputs",
                expected=f"{len(task.classes)}, one for each class",
            )
        clock.spent["tiles"] += len(batch)
        yield from zip(batch, logits, strict=False)

    for batch in batches:
        with clock.on("network"):
            calls.append((batch, runtime.start(_stacked(batch, runtime.batch))))
        if len(calls) == runtime.depth:
            yield from finished()
    while calls:
        yield from finished()


def _batches(
    samples: Iterable[Sample], count: int, told: Callable[[int], None]
) -> Iterator[list[Sample]]:
    """Yield the tiles that have data, by ``count``."""
    batch: list[Sample] = []
    for sample in samples:
        told(1)
        if sample["image"] is not None:
            batch.append(sample)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch


def _stacked(samples: list[Sample], count: int) -> Tensor:
    """Return the images as one batch of ``count``, filled up with grey ones."""
    # Always the same shape: with another one, kernels may be chosen that round differently.
    images: list[Tensor] = [sample["image"] for sample in samples]
    if count == 1:
        return images[0][None]
    grey = torch.full_like(images[0], 0.5)
    return torch.stack(images + [grey] * (count - len(images)))


def _resized(logits: Tensor, window: Window) -> Tensor:
    size = (window.size.rows, window.size.cols)
    if tuple(logits.shape[1:]) == size:
        return logits
    grown: Tensor = functional.interpolate(
        logits[None], size, mode="bilinear", align_corners=False
    )[0]
    return grown


def _read_ahead(
    task: MapTask, tiles: Sequence[Window], clock: "_Clock", pool: Executor
) -> Generator[Sample]:
    """Yield the tiles in order; ``image`` is None where there is no data."""
    read = _Reader(task)
    waiting: deque[Future[Sample]] = deque()
    coming = iter(tiles)
    try:
        for _ in tiles:
            while len(waiting) <= TILES_AHEAD and (window := next(coming, None)):
                waiting.append(pool.submit(read, window))
            with clock.on("read"):
                sample = waiting.popleft().result()
            yield sample
    finally:
        for future in waiting:
            future.cancel()
        pool.submit(read.close).result()


class _Reader:
    """Reads tiles through a handle of its own, which belongs to one thread."""

    def __init__(self, task: MapTask) -> None:
        self._task = task
        self._dataset: SceneDataset | None = None
        self._prepare = NetworkInput(
            task.radiometry, task.plan.network, heights=task.height_radiometry
        )

    def __call__(self, window: Window) -> Sample:
        if self._dataset is None:
            scene = self._task.scene.reopened()
            scene.cache_bytes = self._task.cache_bytes
            heights = self._task.heights and self._task.heights.reopened()
            self._dataset = SceneDataset(scene, bands=self._task.bands, heights=heights)
        sample = self._dataset[self._dataset.query(window)]
        wanted = sample["valid"].numpy()
        if self._task.area is not None:
            wanted = wanted & self._task.area.read(window)
        if not wanted.any():
            return sample | {"image": None}
        # The network sees what is around the area, too.
        return self._prepare(sample) | {"valid": torch.from_numpy(wanted)}

    def close(self) -> None:
        if self._dataset is not None:
            self._dataset.close()


class _Writer:
    """Blended strips in, finished cells out."""

    def __init__(self, task: MapTask, piece: Piece, strips: StripFolder, pool: Executor) -> None:
        self._task, self._piece, self._strips, self._pool = task, piece, strips, pool
        self._bands = iter(piece.bands)
        self._waiting: deque[Future[None]] = deque()
        self._next_band()

    def add(self, strip: Strip) -> None:
        """Take the next rows; those above the piece are left.

        Raises:
            EarthgateError: The network gave numbers that are not finite.
        """
        row, taken = strip.row, 0
        planes = _planes(strip, self._task)
        while taken < planes.shape[1] and self._band is not None:
            rows = self._strips.layout.rows(self._band)
            if row < rows.start:
                skipped = min(rows.start - row, planes.shape[1] - taken)
                row, taken = row + skipped, taken + skipped
                continue
            part = planes[:, taken : taken + rows.stop - row]
            at = row - rows.start
            self._rows[:, at : at + part.shape[1]] = part
            row, taken = row + part.shape[1], taken + part.shape[1]
            if row == rows.stop:
                self._write(self._band)

    def finish(self) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, band: int) -> None:
        while len(self._waiting) > STRIPS_BEHIND:
            self._waiting.popleft().result()
        write = self._strips.write
        self._waiting.append(self._pool.submit(write, band, self._piece.units, self._rows))
        self._next_band()

    def _next_band(self) -> None:
        self._band = next(self._bands, None)
        if self._band is not None:
            rows = self._strips.layout.rows(self._band)
            cols = self._strips.layout.cols(self._piece.units)
            shape = (self._task.planes, rows.stop - rows.start, cols.stop - cols.start)
            self._rows = np.empty(shape, np.uint8)


def _planes(strip: Strip, task: MapTask) -> NDArray[np.uint8]:
    """Return the layers of a strip, of shape (plane, row, col)."""
    probabilities = strip.probabilities
    best, labels = probabilities[0].clone(), torch.zeros_like(strip.valid, dtype=torch.uint8)
    for value in range(1, len(probabilities)):  # max(dim=0) with indices takes five times as long
        labels.masked_fill_(probabilities[value] > best, value)
        torch.maximum(best, probabilities[value], out=best)
    if not torch.isfinite(best.sum()):
        row, col = torch.isfinite(best).logical_not_().nonzero()[0].tolist()
        raise EarthgateError(
            found="the network gives numbers that are not finite, first at row "
            f"{strip.row + row}, column {strip.col + col} of {task.scene.path}",
            fix="Nothing was written; try another model, or adapt again",
        )
    planes = [labels[None]]
    if task.confidence:
        planes.append(_scaled(best[None]))
    if task.probs:
        planes.append(_scaled(probabilities))
    return torch.cat(planes).masked_fill_(~strip.valid, NODATA).cpu().numpy()


def _scaled(probabilities: Tensor) -> Tensor:
    return (probabilities * FULL_SCALE).round_().clamp_(0, FULL_SCALE).to(torch.uint8)


def _pool(runtime: Runtime, stack: ExitStack) -> Executor:
    """Return one thread; or none where the runtime's own would spin against it."""
    return stack.enter_context(ThreadPoolExecutor(1)) if runtime.depth > 1 else _Inline()


class _Inline(Executor):
    """Does at once what it is given."""

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(job(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # handed on, as other executors do
            future.set_exception(error)
        return future


def _quiet_threads(runtime: Runtime, stack: ExitStack) -> None:
    """Keep torch from spinning against a runtime that has threads of its own."""
    if runtime.name == "openvino":
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)


class _Clock:
    """Tiles, and seconds by part of the work."""

    def __init__(self) -> None:
        self.spent = {"tiles": 0.0, "read": 0.0, "network": 0.0, "write": 0.0}

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.spent[part] += perf_counter() - started
