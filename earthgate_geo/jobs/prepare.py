"""A scene and a model that fit each other: everything is checked before anything is done."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from earthgate_geo import model_file
from earthgate_geo.data.labels import LabelLayer, LabelOptions, open_labels
from earthgate_geo.data.scenes import SceneDataset, TilePlan, plan_tiles
from earthgate_geo.errors import InputError
from earthgate_geo.mapping.scene import MapTask
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.read import Radiometry, Scene
from earthgate_geo.request import AdaptRequest, EvaluateRequest, MapRequest

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
    device: torch.device

    @property
    def dataset(self) -> SceneDataset:
        """The scene with its labels, for adaptation."""
        return SceneDataset(self.scene, bands=self.bands, labels=self.labels)

    @property
    def task(self) -> MapTask:
        """What there is to map, and how."""
        return MapTask(
            scene=self.scene,
            bands=self.bands,
            radiometry=self.radiometry,
            plan=self.plan,
            classes=self.model.segmenter.config.classes,
            device=str(self.device),
        )


@contextmanager
def prepared(request: MapRequest, monitor: Monitor) -> Iterator[Job]:
    """Open and check everything that a job needs, the cheap things first."""
    request.check()
    device = torch_device(request.device)
    with request.open() as scene:
        model = model_file.load_model(request.model, folders=request.model_folders)
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
            options = label_options(request)
            labels = open_labels(request.labels, scene.grid, config.classes, options)
        job = Job(
            scene=scene,
            model=model,
            bands=bands,
            radiometry=scene.radiometry(bands),
            plan=plan_tiles(
                scene.grid,
                tile_px=config.tile_px,
                stride_px=config.tile_px * 3 // 4,
                gsd_min_m=config.gsd_min_m,
                gsd_max_m=config.gsd_max_m,
                forced_gsd_m=request.gsd,
            ),
            labels=labels,
            device=device,
        )
        if job.plan.note:
            monitor.warn(job.plan.note)
        yield job


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
