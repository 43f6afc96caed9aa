import numpy as np
import pytest
import rasterio
from numpy.testing import assert_array_equal

from earthgate_geo.errors import EarthgateError
from earthgate_geo.raster.grid import Window
from earthgate_geo.raster.read import open_scene

RGB = ("red", "green", "blue")
UNNAMED = "nothing says which is red, green, blue"

BANDS = {
    "geotiffs/aerial_rgb/quebec_tile1.tif": (1, 2, 3),
    "geotiffs/aerial_rgb/quebec_tile1_building_label.tif": (1, 1, 1),
    "geotiffs/aerial_rgb/quebec_tile2.tif": (1, 2, 3),
    "geotiffs/aerial_rgb/quebec_tile2_building_label.tif": (1, 1, 1),
    "geotiffs/aerial_rgb/zurich_swissimage_0.5m.tif": (1, 2, 3),
    "geotiffs/drone_ortho/pix4d_alpha_nodata.tif": (1, 2, 3),
    "geotiffs/edge_cases/rasterio_RGBA.uint16.tif": (3, 2, 1),
    "geotiffs/edge_cases/rasterio_goes.tif": (1, 2, 3),
    "geotiffs/edge_cases/rasterio_test_esri_wkt.tif": (1, 1, 1),
    "geotiffs/edge_cases/riotiler_cog_dateline.tif": (1, 1, 1),
    "geotiffs/edge_cases/riotiler_cog_nodata_nan.tif": (1, 1, 1),
    "geotiffs/edge_cases/riotiler_cog_rgb_mask.tif": (1, 2, 3),
    "geotiffs/sentinel2_ftw/mask.tif": (1, 1, 1),
    "scenes/catanduanes_ph_scene.tif": (1, 2, 3),
    "scenes/catanduanes_ph_truth.tif": (1, 1, 1),
    "scenes/kampala_ug_scene.tif": (1, 2, 3),
    "scenes/kampala_ug_truth.tif": (1, 1, 1),
    "scenes/zanzibar_tz_scene.tif": (1, 2, 3),
    "scenes/zanzibar_tz_truth.tif": (1, 1, 1),
}
REFUSALS = {
    "geotiffs/edge_cases/rasterio_rotated.tif": "has no coordinate reference system",
    "geotiffs/edge_cases/riotiler_cog_cmap.tif": "is a palette image",
    "geotiffs/edge_cases/riotiler_cog_scale.tif": "2 bands that are not grey and alpha",
    "geotiffs/edge_cases/riotiler_inverted_lat.tif": "has no valid pixel",
    "geotiffs/landsat_pucallpa_3years/landsat_1985.tif": UNNAMED,
    "geotiffs/landsat_pucallpa_3years/landsat_2000.tif": UNNAMED,
    "geotiffs/landsat_pucallpa_3years/landsat_2020.tif": UNNAMED,
    "geotiffs/misc/opengeos_cog_float64.tif": UNNAMED,
    "geotiffs/naip_rgbn_5m/m_4709963_se_14_1_20090818.tif": UNNAMED,
    "geotiffs/naip_rgbn_5m/m_4709963_se_14_1_20200831.tif": UNNAMED,
    "geotiffs/sentinel2_ftw/inference-img.tif": UNNAMED,
}


def test_every_real_raster_is_either_read_or_refused(shared_data):
    found = [
        path.relative_to(shared_data).as_posix()
        for folder in ("geotiffs", "scenes")
        for path in (shared_data / folder).rglob("*.tif")
    ]

    assert sorted(found) == sorted([*BANDS, *REFUSALS])


@pytest.mark.parametrize("name", BANDS)
def test_a_real_raster_is_read_with_its_bands_and_exact_validity(shared_data, capfd, name):
    path = shared_data / name
    with rasterio.Env(), rasterio.open(path) as source:
        values = source.read()
        valid = source.dataset_mask() != 0
        grid = (source.crs, source.transform)
    if values.dtype.kind == "f":
        valid &= ~np.isnan(values).any(axis=0)

    with open_scene(path) as scene:
        bands = scene.choose_bands(RGB)
        scene.radiometry(bands)
        pixels = scene.read(Window(0, 0, scene.grid.size), bands)

    assert bands == BANDS[name]
    assert (scene.grid.crs, scene.grid.transform) == grid
    assert_array_equal(pixels.values, values[[band - 1 for band in bands]])
    assert_array_equal(pixels.valid, valid)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", REFUSALS)
def test_a_real_raster_that_says_too_little_is_refused_in_one_line(shared_data, capfd, name):
    with pytest.raises(EarthgateError) as refusal, open_scene(shared_data / name) as scene:
        scene.radiometry(scene.choose_bands(RGB))

    assert REFUSALS[name] in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr().err == ""
