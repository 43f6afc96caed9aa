from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask

from earthgate_geo.data.synthetic import (
    CLASSES,
    STYLES,
    Sensor,
    View,
    draw_sensor,
    draw_town,
    random_tile,
    render,
)
from earthgate_geo.errors import InputError
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.grid import Size

SAMPLES = Path(__file__).parents[2] / "sample_tiles"
BUILDING, ROAD, WATER = (CLASSES.value(name) for name in ("building", "road", "water"))
PLAIN = Sensor(gsd_m=0.25, noise=0.0)


def made(plan, sensor=PLAIN, **more):
    return render(plan, sensor, np.random.default_rng(0), **more)


def test_the_same_seeds_give_the_same_bytes():
    first, second = (render(draw_town(5, 30.0), PLAIN, np.random.default_rng(9)) for _ in range(2))

    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.height.tobytes() == second.height.tobytes()


def test_another_seed_gives_another_town():
    assert (made(draw_town(5, 30.0)).labels != made(draw_town(6, 30.0)).labels).any()


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_drawn(style):
    plan = draw_town(1, 60.0, style=style)

    tile = made(plan)

    assert plan.style == style
    assert tile.image.shape == (3, 240, 240)
    assert len(np.unique(tile.labels)) > 1


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 70), cols=st.integers(1, 70))
def test_image_classes_and_heights_fit_together_whatever_the_seed(seed, rows, cols):
    rng = np.random.default_rng(seed)
    sensor = draw_sensor(rng, gsd_m=float(rng.uniform(0.07, 0.6)))
    view = View(x_m=0.0, y_m=0.0, size=Size(rows, cols))

    tile = render(draw_town(seed, 45.0), sensor, rng, view=view)

    assert tile.image.shape == (3, rows, cols)
    assert tile.labels.shape == tile.height.shape == (rows, cols)
    assert (tile.image.dtype, tile.labels.dtype, tile.height.dtype) == ("u1", "u1", "f4")
    assert tile.labels.max() < len(CLASSES)
    assert np.isfinite(tile.height).all()
    assert (tile.height[tile.labels == BUILDING] > 2).all()
    assert (tile.height[(tile.labels == ROAD) | (tile.labels == WATER)] == 0).all()
    assert (tile.height >= 0).all()


@pytest.mark.parametrize("style", ["town", "village"])
def test_two_sensors_see_the_same_town(style):
    plan = draw_town(8, 80.0, style=style)
    fine = made(plan, Sensor(gsd_m=0.2, season="dry", haze=0.3, sun_azimuth_deg=20))
    coarse = made(plan, Sensor(gsd_m=0.5, bands=("nir", "red", "green")))

    at = ((np.arange(160) + 0.5) * 0.5 / 0.2).astype(int)

    assert (fine.labels[np.ix_(at, at)] == coarse.labels).mean() > 0.95


def test_a_part_of_a_town_is_that_part_of_the_whole():
    plan = draw_town(3, 60.0, style="town")
    whole = made(plan)

    part = made(plan, view=View(x_m=20.0, y_m=10.0, size=Size(100, 120)))

    same = part.labels == whole.labels[40:140, 80:200]
    assert same[4:-4, 4:-4].mean() > 0.999


def test_a_band_looks_the_same_wherever_it_stands_in_the_image():
    plan = draw_town(2, 30.0)

    colour = made(plan).image
    infrared = made(plan, Sensor(gsd_m=0.25, noise=0.0, bands=("nir", "red", "green"))).image

    assert (colour[0] == infrared[1]).all()
    assert (colour[1] == infrared[2]).all()


def test_vegetation_is_brighter_in_the_infrared_than_in_red_and_water_is_not():
    plan = draw_town(12, 120.0, style="town")
    sensor = Sensor(gsd_m=0.5, bands=("nir", "red"), gain=(1.0, 1.0), haze=0.0)
    tile = made(plan, sensor)
    nir, red = tile.image.astype(float)

    brighter = [(nir - red)[tile.labels == k].mean() for k in (CLASSES.value("vegetation"), WATER)]

    assert brighter[0] > 20
    assert brighter[1] < 0


def test_random_tiles_hold_every_class_and_some_have_no_building():
    rng = np.random.default_rng(0)
    shares = np.array(
        [np.bincount(random_tile(rng, 96).labels.ravel(), minlength=5) / 96**2 for _ in range(40)]
    )

    assert (shares.max(0) > 0.05).all()
    assert 0.2 < (shares[:, BUILDING] > 0.01).mean() < 0.95


def test_an_unknown_style_is_refused():
    with pytest.raises(InputError) as caught:
        draw_town(1, 30.0, style="baroque")

    assert str(caught.value) == (
        "style 'baroque'; expected one of suburb, informal, village, town, city, industry, "
        "country, forest."
    )


def test_a_sensor_with_an_unknown_band_is_refused():
    with pytest.raises(InputError) as caught:
        Sensor(gsd_m=0.25, bands=("red", "thermal"), gain=(1.0, 1.0))

    assert str(caught.value) == (
        "a sensor of 0.25 m with bands red, thermal; "
        "expected a positive ground size and bands of red, green, blue, nir."
    )


def test_a_sensor_with_too_few_gains_is_refused():
    with pytest.raises(InputError) as caught:
        Sensor(gsd_m=0.25, bands=("nir", "red"))

    assert str(caught.value) == "3 gains for 2 bands; expected one gain per band."


@pytest.mark.parametrize(
    ("name", "bands"),
    [("town_rgb", ("red", "green", "blue")), ("town_irrg", ("nir", "red", "green"))],
)
def test_a_sample_scene_lies_on_its_truth_and_heights(name, bands):
    with (
        rasterio.open(SAMPLES / f"{name}.tif") as scene,
        rasterio.open(SAMPLES / f"{name}_truth.tif") as truth,
        rasterio.open(SAMPLES / f"{name}_dsm.tif") as dsm,
    ):
        assert scene.descriptions == bands
        assert scene.crs == truth.crs == dsm.crs == "EPSG:32737"
        assert scene.bounds == truth.bounds == dsm.bounds
        assert (truth.nodata, dsm.nodata) == (255, -9999)
        assert dsm.res[0] == 2 * scene.res[0]
        assert ClassTable.from_json(truth.tags()["EARTHGATE_CLASSES"]) == CLASSES
        assert set(np.unique(truth.read(1))) == set(range(len(CLASSES)))


@pytest.mark.parametrize("name", ["town_rgb", "town_irrg"])
def test_the_label_polygons_of_a_sample_scene_agree_with_its_truth(name):
    with rasterio.open(SAMPLES / f"{name}_truth.tif") as truth:
        classes, transform, crs = truth.read(1), truth.transform, truth.crs

    polygons = gpd.read_file(SAMPLES / f"{name}_labels.gpkg")

    assert polygons.crs == crs
    assert set(polygons["class"]) == set(CLASSES.names)
    for kind, shape in zip(polygons["class"], polygons.geometry, strict=True):
        inside = geometry_mask([shape], classes.shape, transform, invert=True)
        assert (classes[inside] == CLASSES.value(kind)).mean() > 0.98


def test_the_sample_tiles_stay_small():
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 8e6
