import json
import os
import re
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from networks import write_model
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from rasters import ROTATED, SOUTH_UP, RasterSpec, write_raster

from earthgate_cli.main import main
from earthgate_geo.data.synthetic import CLASSES

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_tiles"
DATA = Path(os.environ.get("EARTHGATE_TEST_DATA", ROOT.parent / "shared" / "data"))
REAL = sorted(path.relative_to(DATA).as_posix() for path in DATA.glob("geotiffs/*/*.tif"))


def _assert_same_place_and_validity(found_path, scene_path):
    with rasterio.open(found_path) as found, rasterio.open(scene_path) as scene:
        assert found.shape == scene.shape
        assert found.transform == scene.transform
        assert found.crs == scene.crs
        valid = scene.dataset_mask() != 0
        pixels = scene.read()
        if pixels.dtype.kind == "f":
            valid &= ~np.isnan(pixels).any(0)
        classes = found.read(1)
    assert np.array_equal(classes != 255, valid)
    assert set(np.unique(classes)) <= {0, 1, 2, 3, 4, 255}


@pytest.mark.slow
def test_the_packaged_model_adapts_to_a_sample_scene_and_maps_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = SAMPLES / "town_irrg.tif"

    code = main(
        [
            *("adapt", "--src", str(scene), "--dst", "town.tif", "--vector", "town.gpkg"),
            *("--report", "town.html", "--steps", "1", "-q"),
        ]
    )

    assert code == 0
    _assert_same_place_and_validity("town.tif", scene)
    polygons = geopandas.read_file("town.gpkg", layer="town")
    assert set(polygons["class_name"]) <= set(CLASSES.names)
    assert polygons.is_valid.all()
    with rasterio.open(scene) as source:
        wanted = source.width * source.height * 0.4**2
    assert polygons.area.sum() == pytest.approx(wanted)
    assert not re.search("https?:", Path("town.html").read_text())
    assert Path("town_irrg.adapter.safetensors").stat().st_size < 4_000_000


def _cut(source, target, side_px):
    """Cut the upper left square out of a raster."""
    with rasterio.open(source) as file:
        values = file.read(window=Window(0, 0, side_px, side_px))
        write_raster(
            target,
            RasterSpec(crs=file.crs, transform=file.transform, nodata=file.nodata),
            values=values,
        )


def _warped(source, target, crs, resolution):
    """Bring a raster to another CRS and pixel size."""
    with rasterio.open(source) as file, WarpedVRT(file, crs=crs) as whole:
        shrink = resolution / whole.res[0]
        size = {"width": int(whole.width / shrink), "height": int(whole.height / shrink)}
        where = whole.transform @ Affine.scale(shrink)
        with WarpedVRT(file, crs=crs, transform=where, **size) as warped:
            values = warped.read()
        write_raster(
            target, RasterSpec(crs=crs, transform=where, nodata=file.nodata), values=values
        )


@pytest.mark.slow
def test_the_packaged_model_adapts_to_a_scene_with_heights_of_another_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _cut(SAMPLES / "town_rgb.tif", tmp_path / "town.tif", 360)
    _warped(SAMPLES / "town_rgb_dsm.tif", tmp_path / "dsm.tif", "EPSG:3857", 1.0)

    code = main(
        [
            *("adapt", "--src", "town.tif", "--dsm", "dsm.tif", "--dst", "map.tif"),
            *("--labels", str(SAMPLES / "town_rgb_labels.gpkg"), "--report", "town.html"),
            *("--steps", "2", "--runtime", "torch", "-q"),
        ]
    )

    assert code == 0
    _assert_same_place_and_validity("map.tif", "town.tif")
    assert "Heights cover the whole scene." in Path("town.html").read_text()
    with rasterio.open("map.tif") as found:
        tags = found.tags()
        (low,), (high,) = json.loads(tags["EARTHGATE_HEIGHTS"]).values()
    assert abs(high - low) > 3  # metres: what stands in the town

    again = ("map", "--src", "town.tif", "--dsm", "dsm.tif", "--dst", "again.tif")
    assert main([*again, "--model", "town.adapter.safetensors", "--runtime", "torch", "-q"]) == 0
    assert Path("again.tif").read_bytes() == Path("map.tif").read_bytes()


def test_the_packaged_model_maps_the_sample_town_far_better_than_a_constant_map(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main(["map", "--src", str(SAMPLES / "town_rgb.tif"), "--dst", "town.tif", "-q"])

    main(["evaluate", "--map", "town.tif", "--labels", str(SAMPLES / "town_rgb_truth.tif")])

    accuracy = float(capsys.readouterr().out.rpartition("accuracy")[2].partition("%")[0])
    assert accuracy > 55  # the commonest class covers 31 %


@pytest.mark.parametrize("transform", [ROTATED, SOUTH_UP], ids=["rotated", "south-up"])
def test_a_scene_that_is_not_north_up_is_mapped_in_its_own_grid(tmp_path, transform):
    scene, found = tmp_path / "scene.tif", tmp_path / "map.tif"
    write_raster(scene, RasterSpec(rows=150, cols=170, transform=transform))
    model = write_model(tmp_path / "m.safetensors")

    code = main(["map", "--src", str(scene), "--dst", str(found), "--model", str(model), "-q"])

    assert code == 0
    _assert_same_place_and_validity(found, scene)


@pytest.mark.skipif(not REAL, reason=f"no real rasters at {DATA}; set EARTHGATE_TEST_DATA")
@pytest.mark.parametrize("name", REAL)
def test_a_real_raster_is_mapped_exactly_or_refused_in_one_line(tmp_path, capfd, name):
    model = write_model(tmp_path / "m.safetensors")
    found = tmp_path / "map.tif"

    code = main(
        ["map", "--src", str(DATA / name), "--dst", str(found), "--model", str(model), "-q"]
    )

    said = capfd.readouterr().err
    if code == 0:
        assert said == ""
        _assert_same_place_and_validity(found, DATA / name)
    else:
        assert code == 2
        assert said.startswith("Error: ")
        assert said.count("\n") == 1
        assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
