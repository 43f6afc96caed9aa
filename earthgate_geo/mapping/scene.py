"""One scene to its map: tiles, network, blending, layers, in one pass."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.sampling import TopDownSampler
from earthgate_geo.data.scenes import NetworkInput, Sample, SceneDataset, TilePlan
from earthgate_geo.errors import EarthgateError, ModelFileError
from earthgate_geo.mapping.blend import STRIP_ROWS, Strip, StripBlender
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.classes import FULL_SCALE, NODATA, ClassTable
from earthgate_geo.raster.cog import BLOCK_PX, CACHE_BYTES, Layer, LayerWriter
from earthgate_geo.raster.destination import Destination
from earthgate_geo.raster.grid import Grid, Tiling, Window
from earthgate_geo.raster.read import Radiometry, Scene

Network = Callable[[Tensor], Tensor]
"""Images (batch, channel, height, width) in 0..1 to logits (batch, class, height, width)."""

_DISK_SHARE = 2.6
"""Most bytes a layer takes per pixel while its COG is built next to its rows."""


@dataclass(frozen=True, kw_only=True)
class MapTask:
    """What is mapped and how: all that decides the labels, next to the network."""

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

    batch: int = 4
    """Tiles per call of the network; the last batch is filled up with grey ones."""

    device: str = "cpu"
    """Torch device on which the network lives."""


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
    """Seconds in all (``total``) and of them in ``read``, ``network``, ``write``."""

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


def map_scene(
    network: Network, task: MapTask, outputs: MapOutputs, *, monitor: Monitor
) -> MapResult:
    """Map a scene onto its own grid; either all layers appear or none.

    Valid pixels of the layers are the valid pixels of the scene. Memory: classes x tile rows x
    scene width in float32, one batch, and what the layers buffer.

    Args:
        network: Any callable from images to logits, in evaluation mode.
        task: What is mapped and how.
        outputs: Files to write.
        monitor: Told the stages ``map`` (tiles) and ``finish`` (layers); may cancel.

    Raises:
        OutputError: A destination exists, is being written, or is the scene.
        DataError: The scene is damaged.
        ModelFileError: The network does not give the classes of the task.
        EarthgateError: The network gives numbers that are not finite.
        StorageError: Writing failed.
        CancelledError: The monitor said so.
    """
    started = perf_counter()
    clock = _Clock()
    plan, size = task.plan, task.scene.grid.size
    tiling = Tiling(size, plan.tile, plan.stride)
    blender = StripBlender(tiling, classes=len(task.classes), device=task.device)
    tiles = 0
    with ExitStack() as stack, torch.inference_mode():
        layers = _Layers(task, outputs, stack)
        for window, probabilities, valid in _predict(network, task, clock, monitor):
            with clock.on("write"):
                for strip in blender.take(window.row):
                    layers.write(strip)
                blender.add(window, probabilities, valid)
            tiles += 1
        with clock.on("write"):
            for strip in blender.take(size.rows):
                layers.write(strip)
            layers.publish(monitor)
    gsd, down = task.scene.grid.gsd(), plan.network.rows / plan.tile.rows
    across = plan.network.cols / plan.tile.cols
    return MapResult(
        tiles=tiles,
        tile_px=plan.network.rows,
        stride_px=round(plan.stride.rows * down),
        gsd_m=gsd.mean_m / math.sqrt(down * across),
        seconds={"total": perf_counter() - started, **clock.seconds},
        class_pixels=layers.class_pixels(task.classes),
        outputs={role: layer.path for role, layer in outputs.layers(task.classes).items()},
    )


def _predict(
    network: Network, task: MapTask, clock: "_Clock", monitor: Monitor
) -> Iterator[tuple[Window, Tensor, Tensor]]:
    """Yield window, probabilities (class, row, col) and validity (row, col) of every tile."""
    to_network = NetworkInput(task.radiometry, task.plan.network)
    dataset = SceneDataset(task.scene, bands=task.bands, transforms=to_network)
    with clock.on("read"):
        queries = list(TopDownSampler(dataset, task.plan.tile, task.plan.stride))
    monitor.stage("map", len(queries))
    for first in range(0, len(queries), task.batch):
        with clock.on("read"):
            samples = [dataset[query] for query in queries[first : first + task.batch]]
        with clock.on("network"):
            batch = _logits(network, task, samples)
        for sample, logits in zip(samples, batch, strict=True):
            # One by one: tiles of a much finer scene are far larger than the network's output.
            with clock.on("network"):
                probabilities = _resized(logits, sample["window"]).softmax(dim=0)
            yield sample["window"], probabilities, sample["valid"].to(task.device)
        monitor.update(first + len(samples))


def _logits(network: Network, task: MapTask, samples: Sequence[Sample]) -> Tensor:
    # Always the same shape: with another one, torch may choose kernels that round differently.
    size = task.plan.network
    images = torch.full((task.batch, len(task.bands), size.rows, size.cols), 0.5)
    for image, sample in zip(images, samples, strict=False):
        image.copy_(sample["image"])
    logits = network(images.to(task.device)).float()
    if logits.shape[:2] != (task.batch, len(task.classes)):
        raise ModelFileError(
            found=f"a network with {logits.shape[1]} outputs",
            expected=f"{len(task.classes)}, one for each class",
        )
    for tile, sample in zip(logits, samples, strict=False):
        if not torch.isfinite(tile).all():
            window = sample["window"]
            raise EarthgateError(
                found="the network gives numbers that are not finite for the tile at row "
                f"{window.row}, column {window.col} of {task.scene.path}",
                fix="Nothing was written; try another model, or adapt again",
            )
    return logits[: len(samples)]


def _resized(logits: Tensor, window: Window) -> Tensor:
    size = (window.size.rows, window.size.cols)
    if tuple(logits.shape[1:]) == size:
        return logits
    return functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


class _Layers:
    """The files of one map: strips in, all files out together."""

    def __init__(self, task: MapTask, outputs: MapOutputs, stack: ExitStack) -> None:
        self._writers: dict[str, LayerWriter] = {}
        for role, layer in outputs.layers(task.classes).items():
            destination = stack.enter_context(
                Destination(layer.path, overwrite=outputs.overwrite, inputs=[task.scene.path])
            )
            self._writers[role] = stack.enter_context(
                LayerWriter(
                    layer,
                    task.scene.grid,
                    scratch=destination.scratch,
                    creation=outputs.creation,
                )
            )

    def write(self, strip: Strip) -> None:
        best, labels = strip.probabilities.max(dim=0)
        rows = {"map": torch.where(strip.valid, labels, NODATA).to(torch.uint8)[None]}
        if "confidence" in self._writers:
            rows["confidence"] = _scaled(best[None], strip.valid)
        if "probs" in self._writers:
            rows["probs"] = _scaled(strip.probabilities, strip.valid)
        for role, values in rows.items():
            self._writers[role].write_rows(strip.row, values.cpu().numpy())

    def class_pixels(self, classes: ClassTable) -> dict[str, int]:
        return {c.name: int(self._writers["map"].counts[c.value]) for c in classes}

    def publish(self, monitor: Monitor) -> None:
        monitor.stage("finish", len(self._writers))
        for done, writer in enumerate(self._writers.values(), 1):
            writer.finish()
            monitor.update(done)
        for writer in reversed(self._writers.values()):
            writer.publish()  # the map comes last: where it stands, all stand


def _scaled(probabilities: Tensor, valid: Tensor) -> Tensor:
    scaled = (probabilities * FULL_SCALE).round().clamp(0, FULL_SCALE)
    return torch.where(valid, scaled, NODATA).to(torch.uint8)


class _Clock:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "network": 0.0, "write": 0.0}

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += perf_counter() - started


def estimate(grid: Grid, plan: TilePlan, outputs: MapOutputs, classes: ClassTable) -> MapEstimate:
    """Estimate what ``map_scene`` will take, without touching anything."""
    bands = sum(layer.bands for layer in outputs.layers(classes).values())
    size, tile = grid.size, plan.tile
    blended = (min(tile.rows, size.rows) + 3 * STRIP_ROWS) * size.cols + 3 * tile.rows * tile.cols
    written = 2 * BLOCK_PX * size.cols * bands + CACHE_BYTES  # the cache serves reading as well
    return MapEstimate(
        tiles=len(Tiling(size, tile, plan.stride)),
        memory_bytes=len(classes) * blended * 4 + written,
        disk_bytes=round(size.rows * size.cols * bands * _DISK_SHARE),
    )
