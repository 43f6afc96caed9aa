"""What a scene shows by the source model and by the adapted one, for the report."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.scenes import NetworkInput
from earthgate_geo.jobs.documents import Document, shares
from earthgate_geo.jobs.prepare import Job
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.monitor import Monitor
from earthgate_geo.pictures import Place
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import Scene
from earthgate_geo.report import Shown

_MOST_TILES = 16

Models = Mapping[str, LoadedModel]
"""By ``before`` and, where the scene was adapted to, ``after``."""


def show_place(job: Job, models: Models) -> Shown:
    """Show a place of a scene as it is and as models see it. Memory: the place."""
    view, classes = job.view, job.task.classes
    place = Place(view.dataset, view.plan, view.radiometry, heights=view.height_radiometry)
    maps = {
        when: place.mapped(model.segmenter.to(job.device), classes, job.device)
        for when, model in models.items()
    }
    *_, (_, confidence) = maps.values()
    return Shown(
        image=place.photograph(),
        before=maps["before"][0],
        after=maps["after"][0] if "after" in maps else None,
        confidence=confidence,
    )


def class_areas(job: Job, models: Models, monitor: Monitor, *, step: int) -> Document:
    """Count the classes that models see on tiles of a scene, the same tiles for all of them.

    On at most 16 tiles, side by side and drawn by chance from those with data: a scene of no more
    is counted pixel by pixel. An area to map plays no part, as it plays none in the training.
    Memory: one tile.

    Args:
        job: The scene.
        models: What maps it.
        monitor: May cancel before every tile.
        step: The last of the training, which the monitor is told again.

    Returns:
        ``scene``; ``tiles``; ``covered``, the share of the tiles with data, 0..1, that these are;
        ``before`` and ``after`` with the ``share`` and ``hectares`` of every class, brought to
        the whole scene. ``after`` is None without such a model.
    """
    cells = _cells_with_data(job.scene, job.bands, job.plan.tile)
    count = min(len(cells), _MOST_TILES)
    drawn = np.random.default_rng(0).choice(len(cells), count, replace=False)
    chosen = [cells[index] for index in sorted(drawn)]
    pixels = {when: np.zeros(len(job.task.classes)) for when in models}
    for cell in chosen:
        monitor.update(step)
        for when, counts in _counted(job, models, cell).items():
            pixels[when] += counts
    covered = _area_px(chosen) / _area_px(cells)
    names = job.task.classes.names
    found = {
        when: shares(job, dict(zip(names, (counts / covered).tolist(), strict=True)))
        for when, counts in pixels.items()
    }
    return {
        "scene": job.scene.name,
        "tiles": count,
        "covered": covered,
        "before": found["before"],
        "after": found.get("after"),
    }


def _cells_with_data(scene: Scene, bands: tuple[int, ...], tile: Size) -> list[Window]:
    """Cut a scene into tiles side by side, the last of a row and column cut short."""
    size, valid = scene.grid.size, scene.preview(bands).valid
    down, across = valid.shape[0] / size.rows, valid.shape[1] / size.cols
    cells = [
        Window(row, col, tile).clipped(size)
        for row in range(0, size.rows, tile.rows)
        for col in range(0, size.cols, tile.cols)
    ]

    def has_data(cell: Window) -> bool:
        rows = slice(int(cell.row * down), math.ceil(cell.row_stop * down))
        cols = slice(int(cell.col * across), math.ceil(cell.col_stop * across))
        return bool(valid[rows, cols].any())

    return [cell for cell in cells if has_data(cell)]


def _area_px(cells: list[Window]) -> int:
    return sum(cell.size.rows * cell.size.cols for cell in cells)


@torch.inference_mode()
def _counted(job: Job, models: Models, cell: Window) -> dict[str, NDArray[np.int64]]:
    """Count the valid pixels of a cell by class, for every model."""
    size, plan = job.scene.grid.size, job.plan
    # As in a map, tiles at the end lie inward: what the network sees is scene, not padding.
    window = Window(
        max(0, min(cell.row, size.rows - plan.tile.rows)),
        max(0, min(cell.col, size.cols - plan.tile.cols)),
        plan.tile,
    )
    dataset = job.view.dataset
    sample = dataset[dataset.query(window)]
    prepare = NetworkInput(job.radiometry, plan.network, heights=job.height_radiometry)
    image = prepare(sample)["image"][None].to(job.device)
    wanted = torch.zeros_like(sample["valid"])
    rows = slice(cell.row - window.row, cell.row_stop - window.row)
    cols = slice(cell.col - window.col, cell.col_stop - window.col)
    wanted[rows, cols] = sample["valid"][rows, cols]

    def counts(model: LoadedModel) -> NDArray[np.int64]:
        found: Tensor = model.segmenter.to(job.device)(image).argmax(1, keepdim=True)
        shown = functional.interpolate(found.float(), size=wanted.shape)[0, 0].long().cpu()
        return np.bincount(shown[wanted].numpy(), minlength=len(job.task.classes))

    return {when: counts(model) for when, model in models.items()}
