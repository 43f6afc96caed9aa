"""One scene to its map: cells, then layers, all of them or none."""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch

from earthgate_geo.data.heights import HEIGHT_BYTES
from earthgate_geo.errors import DataError, InputError, StorageError
from earthgate_geo.mapping.layout import Layout
from earthgate_geo.mapping.runtime import Runtime
from earthgate_geo.mapping.stream import STRIPS_BEHIND, TILES_AHEAD, MapTask, map_piece
from earthgate_geo.mapping.strips import StripFolder, open_strips
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.classes import FULL_SCALE, ClassTable
from earthgate_geo.raster.cog import BLOCK_PX, Layer, LayerWriter
from earthgate_geo.raster.destination import Destination, storage_error

PANEL_BYTES = 256_000_000
"""Most memory in which tiles are blended: wider panels save nothing that can be measured."""

_FINISHING = 2.6
"""Most bytes a layer takes per pixel while its COG is built next to its rows, beside its cells."""


class Engine(Protocol):
    """Who maps: this process, or a cluster."""

    @property
    def about(self) -> Mapping[str, Any]:
        """``runtime``, ``precision`` and ``batch``: what decides the bits of the network."""

    def fill(self, task: MapTask, strips: StripFolder, monitor: Monitor) -> Mapping[str, float]:
        """Finish all cells that are missing; return the sums of what ``map_piece`` returns."""


class LocalEngine:
    """Maps in this process.

    Args:
        runtime: The network.
        memory_bytes: What mapping may take beside the program, the network and GDAL's cache.
    """

    def __init__(self, runtime: Runtime, *, memory_bytes: int) -> None:
        self._runtime, self._memory_bytes = runtime, memory_bytes

    @property
    def about(self) -> Mapping[str, Any]:
        """``runtime``, ``precision`` and ``batch``."""
        runtime = self._runtime
        return {"runtime": runtime.name, "precision": runtime.precision, "batch": runtime.batch}

    def tile_seconds(self, image: tuple[int, int, int]) -> float:
        """Measure what the network takes for a tile, on grey ones of (band, row, col)."""
        runtime = self._runtime
        grey = torch.full((runtime.batch, *image), 0.5)
        runtime.start(grey)()  # the first one prepares
        started = perf_counter()
        for result in [runtime.start(grey) for _ in range(runtime.depth)]:
            result().sum().item()
        return (perf_counter() - started) / (runtime.depth * runtime.batch)

    def fill(self, task: MapTask, strips: StripFolder, monitor: Monitor) -> Mapping[str, float]:
        """Finish all cells that are missing, panel by panel.

        Raises:
            InputError: The memory does not suffice for the narrowest panel.
            EarthgateError: As ``map_piece``.
        """
        layout = strips.layout
        units = panel_units(layout, task, self._memory_bytes)
        pieces = list(layout.pieces(strips.missing(), units_at_once=units))
        monitor.stage("map", sum(len(layout.tiles(piece)) for piece in pieces))
        done, spent = 0, dict.fromkeys(("tiles", "read", "network", "write"), 0.0)

        def told(tiles: int) -> None:
            nonlocal done
            done += tiles
            monitor.update(done)

        for piece in pieces:
            for part, amount in map_piece(self._runtime, task, piece, strips, told=told).items():
                spent[part] += amount
        return spent


@dataclass(frozen=True, kw_only=True)
class MapOutputs:
    """The layers to write, all on the grid of the scene."""

    map: Path
    """Class raster, uint8, 255 where the scene has no data."""

    confidence: Path | None = None
    """Probability of the mapped class, uint8 0..254 for 0..1."""

    probs: Path | None = None
    """Probability of every class, a band each, uint8 0..254 for 0..1."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """Provenance, the same in every layer."""

    creation: Mapping[str, str] = field(default_factory=dict)
    """Creation options of GDAL's COG driver."""

    overwrite: bool = False
    """Whether existing files may be replaced."""

    strips: Path | None = None
    """Folder of finished cells, which outlives a run that fails; without one they are lost."""

    resume: bool = True
    """Whether to go on with the cells in ``strips``; otherwise they are removed."""

    def layers(self, classes: ClassTable) -> dict[str, Layer]:
        """Return the layers by role: map, confidence, probs."""
        layers = {"map": Layer(path=self.map, classes=classes, tags=self.tags)}
        if self.confidence:
            layers["confidence"] = Layer(
                path=self.confidence,
                scale=1 / FULL_SCALE,
                descriptions=("confidence",),
                tags=self.tags,
            )
        if self.probs:
            layers["probs"] = Layer(
                path=self.probs,
                bands=len(classes),
                scale=1 / FULL_SCALE,
                descriptions=classes.names,
                tags=self.tags,
            )
        return layers


@dataclass(frozen=True, kw_only=True)
class MapResult:
    """What was done."""

    tiles: int
    """Tiles that went through the network; those without a valid pixel do not."""

    tile_px: int
    """Height of a tile as the network sees it, in pixels."""

    stride_px: int
    """Distance between tiles, in the same pixels."""

    gsd_m: float
    """Ground size of a pixel as the network sees it, in metres."""

    seconds: Mapping[str, float]
    """Seconds in all (``total``), and of them on the way of the data: waiting for tiles (``read``),
    for the network (``network``), blending and writing (``write``)."""

    class_pixels: Mapping[str, int]
    """Pixels by class name."""

    outputs: Mapping[str, Path]
    """Files written, by role."""


@dataclass(frozen=True, kw_only=True)
class MapEstimate:
    """What a map will take, about, known before anything is read."""

    tiles: int
    """Tiles, those without a valid pixel included."""

    memory_bytes: int
    """Memory beside the network's own."""

    disk_bytes: int
    """Disk space while writing; the finished files are compressed and take a part of it."""


def map_scene(engine: Engine, task: MapTask, outputs: MapOutputs, *, monitor: Monitor) -> MapResult:
    """Map a scene onto its own grid; either all layers appear or none.

    Valid pixels of the layers are the valid pixels of the scene. The files are the same byte for
    byte whatever the engine, its memory, and how often the run was killed and gone on with.

    Args:
        engine: Who maps.
        task: What is mapped and how.
        outputs: Files to write.
        monitor: Told the stages ``map`` (tiles) and ``finish`` (bands of rows and layers); may
            cancel.

    Raises:
        OutputError: A destination exists, is being written, or is the scene; or the finished
            cells are of another map.
        DataError: The scene is damaged.
        ModelFileError: The network does not give the classes of the task.
        EarthgateError: The network gives numbers that are not finite.
        StorageError: Writing failed.
        CancelledError: The monitor or the user said so.
    """
    started = perf_counter()
    plan, task = task.plan, _wanted(task, outputs)
    layers = outputs.layers(task.classes)
    inputs = [task.scene.path, *(task.heights.paths if task.heights else ())]
    with ExitStack() as stack:
        places = {
            role: stack.enter_context(
                Destination(layer.path, overwrite=outputs.overwrite, inputs=inputs)
            ).scratch
            for role, layer in layers.items()
        }
        strips = _opened(engine, task, outputs, outputs.strips or places["map"] / "strips")
        stack.enter_context(_kept(strips))
        spent = _filled(engine, task, outputs, strips, monitor)
        finishing = perf_counter()
        writers = {
            role: stack.enter_context(
                LayerWriter(layer, task.scene.grid, scratch=places[role], creation=outputs.creation)
            )
            for role, layer in layers.items()
        }
        _assemble(strips, list(writers.values()), monitor)
        counts = writers["map"].counts
        spent["write"] += perf_counter() - finishing
    down, across = plan.network.rows / plan.tile.rows, plan.network.cols / plan.tile.cols
    return MapResult(
        tiles=round(spent.pop("tiles")),
        tile_px=plan.network.rows,
        stride_px=round(plan.stride.rows * down),
        gsd_m=task.scene.grid.gsd().mean_m / math.sqrt(down * across),
        seconds={"total": perf_counter() - started, **spent},
        class_pixels={c.name: int(counts[c.value]) for c in task.classes},
        outputs={role: layer.path for role, layer in layers.items()},
    )


def _wanted(task: MapTask, outputs: MapOutputs) -> MapTask:
    return replace(task, confidence=bool(outputs.confidence), probs=bool(outputs.probs))


def _opened(engine: Engine, task: MapTask, outputs: MapOutputs, root: Path) -> StripFolder:
    """Open the cells of a map."""
    plan = task.plan
    facts = {
        "scene": task.scene.digest(),
        "model": outputs.tags.get("EARTHGATE_MODEL"),
        "adapter": outputs.tags.get("EARTHGATE_ADAPTER"),
        "earthgate": outputs.tags.get("EARTHGATE_VERSION"),
        "layers": list(outputs.layers(task.classes)),
        "area": task.area and task.area.digest,
        "bands": list(task.bands),
        # Not the batch: what fits into a graphics card may be another one next time.
        **{key: engine.about[key] for key in ("runtime", "precision")},
        "tiles": [*astuple(plan.tile), *astuple(plan.stride), *astuple(plan.network)],
        "radiometry": [task.radiometry.low, task.radiometry.high],
        "heights": task.heights.digest() if task.heights else None,
        "height_radiometry": task.height_radiometry and astuple(task.height_radiometry),
    }
    return open_strips(
        root,
        Layout(task.tiling),
        planes=task.planes,
        facts={name: str(value) for name, value in facts.items() if value is not None},
        resume=outputs.resume,
    )


def _filled(
    engine: Engine, task: MapTask, outputs: MapOutputs, strips: StripFolder, monitor: Monitor
) -> dict[str, float]:
    """Finish all cells.

    Raises:
        StorageError: The disk might not have room for all that is left to do, or has none.
    """
    cells, todo = strips.layout.cells(), strips.missing()
    if shutil.disk_usage(strips.folder).free < _needed_bytes(strips):
        raise storage_error(outputs.map, _needed_bytes(strips))
    if len(todo) < len(cells):
        monitor.log(
            f"going on: {len(cells) - len(todo)} of {len(cells)} parts of the map are finished"
        )
    if not todo:
        return _nothing(monitor)
    try:
        return dict(engine.fill(task, strips, monitor))
    except StorageError as error:  # of a cell, wherever it was written
        raise storage_error(outputs.map, _needed_bytes(strips)) from error


def _needed_bytes(strips: StripFolder) -> int:
    """Return what the disk must take until the map stands, at most."""
    finishing = round(strips.raw_bytes(strips.layout.cells()) * _FINISHING)
    return strips.raw_bytes(strips.missing()) + finishing


@contextmanager
def _kept(strips: StripFolder) -> Iterator[None]:
    """Remove the cells of a run that fails where there is none, or the scene is bad."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, DataError) or strips.missing() == strips.layout.cells():
            strips.clear()
        raise


def _nothing(monitor: Monitor) -> dict[str, float]:
    monitor.stage("map", 0)
    return dict.fromkeys(("tiles", "read", "network", "write"), 0.0)


def _assemble(strips: StripFolder, writers: list[LayerWriter], monitor: Monitor) -> None:
    """Make the layers out of the cells and give them their names."""
    bands = strips.layout.bands
    monitor.stage("finish", bands + len(writers))
    for band in range(bands):
        planes = strips.read(band)
        first, row = 0, strips.layout.rows(band).start
        for writer in writers:
            writer.write_rows(row, planes[first : first + writer.layer.bands])
            first += writer.layer.bands
        monitor.update(band + 1)
    for done, writer in enumerate(writers, bands + 1):
        writer.finish()
        monitor.update(done)
    for writer in reversed(writers):
        writer.publish()  # the map comes last: where it stands, all stand


def panel_units(layout: Layout, task: MapTask, memory_bytes: int) -> int:
    """Return how many units of columns are mapped at once.

    Raises:
        InputError: The memory does not suffice for one.
    """
    tile, raster = task.plan.tile, layout.tiling.raster
    rows = min(tile.rows, raster.rows)
    # Sums and validity of the open rows; finished bands: one grows, others wait for the disk.
    column_bytes = rows * (4 * len(task.classes) + 1) + rows * task.planes * (2 + STRIPS_BEHIND)
    cols = layout.cols(range(1))
    unit_bytes: int = column_bytes * (cols.stop - cols.start)
    least_bytes = unit_bytes + _tiles_bytes(task)
    if least_bytes > memory_bytes:
        raise InputError(
            found=f"{memory_bytes / 1e9:.2g} GB of memory for {len(task.classes)} classes and "
            f"tiles of {tile.rows} x {tile.cols} px",
            expected=f"{least_bytes / 1e9 + 0.05:.1f} GB or more",
            fix="Allow it with --memory, or map a coarser scene",
        )
    budget = min(PANEL_BYTES, memory_bytes - _tiles_bytes(task))
    return max(1, min(layout.units, budget // unit_bytes))


def _tiles_bytes(task: MapTask) -> int:
    """Bound what tiles take on their way through the network."""
    tile, network, channels = task.plan.tile, task.plan.network, task.channels
    tile_px = tile.rows * tile.cols
    being_read = tile_px * (8 * channels + 4) + (HEIGHT_BYTES if task.heights else 0)
    waiting = (TILES_AHEAD + 4) * (network.rows * network.cols * 4 * channels + tile_px)
    blended = tile_px * 4 * len(task.classes) * 3
    return being_read + waiting + blended


def estimate(task: MapTask, outputs: MapOutputs, *, memory_bytes: int) -> MapEstimate:
    """Estimate what ``map_scene`` will take in this process, without touching anything.

    Raises:
        InputError: The memory does not suffice.
    """
    task = _wanted(task, outputs)
    layout, size = Layout(task.tiling), task.scene.grid.size
    units = panel_units(layout, task, memory_bytes)
    rows = min(task.plan.tile.rows, size.rows)
    panel_cols = min(size.cols, math.ceil(size.cols * units / layout.units))
    blended = panel_cols * rows * (4 * len(task.classes) + 1 + task.planes * (2 + STRIPS_BEHIND))
    written = (2 * BLOCK_PX + max(BLOCK_PX, task.plan.stride.rows)) * size.cols * task.planes
    return MapEstimate(
        tiles=len(task.tiling),
        memory_bytes=max(blended + _tiles_bytes(task), written) + task.cache_bytes,
        disk_bytes=round(size.rows * size.cols * task.planes * (1 + _FINISHING)),
    )
