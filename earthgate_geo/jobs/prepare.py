"""A scene and a model that fit each other: everything is checked before anything is done."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace

import torch

from earthgate_geo.data.area import Area, open_area
from earthgate_geo.data.heights import UNSCALED, HeightLayer, open_heights
from earthgate_geo.data.labels import LabelLayer, LabelOptions, open_labels
from earthgate_geo.data.scenes import SceneDataset, TilePlan, plan_tiles
from earthgate_geo.errors import (
    DataError,
    HeightsElsewhereError,
    InputError,
    LabelsElsewhereError,
)
from earthgate_geo.jobs.engines import Engines
from earthgate_geo.mapping.stream import MapTask
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.fill import likely_fill
from earthgate_geo.raster.read import Radiometry, Scene
from earthgate_geo.request import AdaptRequest, EvaluateRequest, MapRequest
from earthgate_geo.training.tiles import SceneView

_MOST_READERS = 4
"""Processes that read images for one graphics card."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A scene and a model that fit each other: everything is checked, nothing is done."""

    scene: Scene
    model: LoadedModel
    bands: tuple[int, ...]
    radiometry: Radiometry
    plan: TilePlan
    labels: LabelLayer | None
    heights: HeightLayer | None
    height_radiometry: Radiometry | None
    area: Area | None
    device: torch.device

    @property
    def view(self) -> SceneView:
        """The scene with its labels, for adaptation."""
        return SceneView(
            dataset=SceneDataset(
                self.scene, bands=self.bands, labels=self.labels, heights=self.heights
            ),
            plan=self.plan,
            radiometry=self.radiometry,
            height_radiometry=self.height_radiometry,
        )

    @property
    def task(self) -> MapTask:
        """What there is to map, and how."""
        return MapTask(
            scene=self.scene,
            bands=self.bands,
            radiometry=self.radiometry,
            plan=self.plan,
            classes=self.model.segmenter.config.classes,
            heights=self.heights,
            height_radiometry=self.height_radiometry,
            area=self.area,
        )


@contextmanager
def prepared(request: MapRequest, monitor: Monitor, *, engines: Engines) -> Iterator[Job]:
    """Open and check everything that a job needs, the cheap things first."""
    request.check()
    with request.open() as scene, ExitStack() as stack:
        yield _job(request, scene, engines.model(request), monitor, stack)


@contextmanager
def prepared_together(
    request: AdaptRequest, monitor: Monitor, *, engines: Engines
) -> Iterator[list[Job]]:
    """Open and check all scenes of an adaptation; labels and heights are of those they lie in.

    Raises:
        LabelsElsewhereError, HeightsElsewhereError: They lie in none.
    """
    request.check()
    jobs: list[Job] = []
    missed: list[DataError] = []
    with ExitStack() as stack:
        model = engines.model(request)
        for src in (request.src, *request.more):
            one = replace(request, src=src)
            scene = stack.enter_context(one.open())
            jobs.append(_job_without_missed(one, scene, model, monitor, stack, missed))
        for kind in (LabelsElsewhereError, HeightsElsewhereError):
            elsewhere = [error for error in missed if isinstance(error, kind)]
            if len(elsewhere) == len(jobs):
                raise elsewhere[0]
        yield jobs


def _job_without_missed(
    request: AdaptRequest,
    scene: Scene,
    model: LoadedModel,
    monitor: Monitor,
    stack: ExitStack,
    missed: list[DataError],
) -> Job:
    """Leave out labels and heights that lie elsewhere, and append to ``missed`` what was said."""
    try:
        return _job(request, scene, model, monitor, stack)
    except LabelsElsewhereError as error:
        missed.append(error)
        request = replace(request, labels=None)
    except HeightsElsewhereError as error:
        missed.append(error)
        request = request.without_heights()
    return _job_without_missed(request, scene, model, monitor, stack, missed)


def _job(
    request: MapRequest, scene: Scene, model: LoadedModel, monitor: Monitor, stack: ExitStack
) -> Job:
    # A cluster has its own.
    device = torch_device("cpu" if request.scheduler else request.device)
    if isinstance(request, AdaptRequest) and model.adapter:
        raise InputError(
            found=f"{request.model} is an adapter, made for {model.adapter.scene}",
            expected="a model",
            fix=f"Adapt its base {model.name}, or map with the adapter: earthgate map --model",
        )
    config = model.segmenter.config
    bands = scene.choose_bands(config.bands)
    labels = None
    if isinstance(request, AdaptRequest) and request.labels:
        labels = open_labels(request.labels, scene.grid, config.classes, label_options(request))
    heights = _heights(request, scene, model, monitor)
    if heights:
        stack.enter_context(closing(heights))
    plan = plan_tiles(
        scene.grid,
        tile_px=config.tile_px,
        stride_px=config.tile_px * 3 // 4,
        gsd_min_m=config.gsd_min_m,
        gsd_max_m=config.gsd_max_m,
        forced_gsd_m=request.gsd,
    )
    if plan.note:
        monitor.warn(plan.note)
    if fill := likely_fill(scene, bands):
        value, share = fill
        monitor.warn(
            f"{share:.0%} of {scene.name} is {value} in every band, and taken for data like all "
            f"else. If nothing was recorded there, pass --nodata {value}."
        )
    return Job(
        scene=scene,
        model=model,
        bands=bands,
        radiometry=scene.radiometry(bands),
        plan=plan,
        labels=labels,
        heights=heights,
        height_radiometry=_height_radiometry(model, heights),
        area=None if request.aoi is None else open_area(request.aoi, scene.grid),
        device=device,
    )


def heights_of(request: MapRequest, scene: Scene) -> HeightLayer:
    """Open the heights that a request names for a scene.

    Raises:
        DataError, HeightsElsewhereError: As ``open_heights``.
    """
    return open_heights(
        str(request.dsm), scene.grid, dtm=request.dtm, assume_crs=request.assume_crs
    )


def _heights(
    request: MapRequest, scene: Scene, model: LoadedModel, monitor: Monitor
) -> HeightLayer | None:
    takes_heights = model.segmenter.config.heights
    if request.dsm is None:
        if takes_heights:
            monitor.warn(
                f"The model takes heights, and {scene.name} has none: it is mapped by the image "
                "alone."
            )
        return None
    if not takes_heights:
        raise InputError(
            found=f"--dsm for the model {model.name}, which takes no heights",
            expected="one that was trained or adapted with heights",
            fix="Adapt it to the scene: earthgate adapt --dsm with the same files",
        )
    return heights_of(request, scene)


def _height_radiometry(model: LoadedModel, heights: HeightLayer | None) -> Radiometry | None:
    if not model.segmenter.config.heights:
        return None
    return heights.radiometry() if heights else UNSCALED


def label_options(request: AdaptRequest | EvaluateRequest) -> LabelOptions:
    """Return what the user says about the labels."""
    return LabelOptions(
        field=request.label_field, label_class=request.label_class, label_map=request.label_map
    )


def torch_device(name: str) -> torch.device:
    """Return the device that a user means; ``auto`` is the graphics card, if there is one.

    Raises:
        InputError: It cannot be used here.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise InputError(
            found=f"--device {name}, which cannot be used here",
            expected="auto, cpu, cuda or mps",
            fix="See 'earthgate doctor' for the devices of this machine",
        ) from error
    return device


def readers(device: torch.device, *, devices: int = 1) -> int:
    """Return how many processes read images ahead; on a CPU they would only be in the way."""
    cores = (os.cpu_count() or 1) // devices
    return 0 if device.type == "cpu" else min(_MOST_READERS, cores)
