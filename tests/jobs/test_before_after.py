from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rasters import NORTH_UP, RasterSpec, write_raster

from earthgate_geo.errors import CancelledError
from earthgate_geo.jobs import before_after
from earthgate_geo.jobs.before_after import class_areas
from earthgate_geo.jobs.engines import Engines
from earthgate_geo.jobs.map import run_map
from earthgate_geo.jobs.prepare import prepared
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.request import MapRequest

ASKED = MapRequest(src="scene.tif", model="open.safetensors")
SILENT = SilentMonitor()
PIXEL_HA = abs(NORTH_UP.a * NORTH_UP.e) / 10_000


def areas_of(request: MapRequest, *, models=("before",), monitor=SILENT):
    with Engines() as engines, prepared(request, monitor, engines=engines) as job:
        return class_areas(job, dict.fromkeys(models, job.model), monitor, step=0)


def hectares(found) -> float:
    return sum(entry["hectares"] for entry in found["before"])


def test_a_scene_of_few_tiles_is_counted_pixel_by_pixel(place) -> None:
    found = areas_of(ASKED)

    assert (found["scene"], found["covered"], found["after"]) == ("scene", 1.0, None)
    assert hectares(found) == pytest.approx(192 * 192 * PIXEL_HA, rel=0.01)
    assert sum(entry["share"] for entry in found["before"]) == pytest.approx(1)


def test_the_shares_are_nearly_those_of_the_map(place) -> None:
    mapped = run_map(replace(ASKED, dst=Path("map.tif"), runtime="torch"), SILENT)

    found = areas_of(ASKED)

    for entry, wanted in zip(found["before"], mapped["classes"], strict=True):
        assert entry["name"] == wanted["name"]
        assert entry["share"] == pytest.approx(wanted["share"], abs=0.05)


def test_both_models_are_counted_on_the_same_pixels(place) -> None:
    found = areas_of(ASKED, models=("before", "after"))

    assert found["before"] == found["after"]


def test_a_large_scene_is_estimated_from_tiles_that_hold_data(place, monkeypatch) -> None:
    values = np.full((3, 640, 640), 90, np.uint8)
    values[:, :, :320] = 0
    write_raster(place / "half.tif", RasterSpec(nodata=0), values=values)
    monkeypatch.setattr(before_after, "_MOST_TILES", 5)

    found = areas_of(replace(ASKED, src="half.tif", model="closed.safetensors"))

    assert found["tiles"] == 5
    assert 0 < found["covered"] < 1
    assert found["before"][0]["share"] == 1  # the model calls everything a building
    assert hectares(found) == pytest.approx(640 * 320 * PIXEL_HA, rel=0.01)


def test_the_count_can_be_cancelled(place) -> None:
    class Impatient(SilentMonitor):
        def update(self, done: int) -> None:
            raise CancelledError

    with pytest.raises(CancelledError):
        areas_of(ASKED, monitor=Impatient())
