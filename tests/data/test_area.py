import pickle
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Transformer
from rasters import RasterSpec, write_raster

from earthgate_geo.data.area import open_area
from earthgate_geo.errors import DataError, InputError, OutsideAreaError
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import Scene, open_scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=40, cols=60))
    return open_scene(tmp_path / "scene.tif")


def drawn(scene: Scene, path: Path, *pixels: shapely.Geometry, crs: str | None = None) -> str:
    """Shapes given in pixels, written in the CRS of the scene or another."""
    t = scene.grid.transform
    shapes = [shapely.affinity.affine_transform(s, [t.a, t.b, t.d, t.e, t.c, t.f]) for s in pixels]
    frame = geopandas.GeoDataFrame(geometry=shapes, crs=scene.grid.crs.to_wkt())
    frame.to_crs(crs or frame.crs).to_file(path)
    return str(path)


def inside(scene: Scene, path: str) -> np.ndarray:
    return open_area(path, scene.grid).read(Window(0, 0, scene.grid.size))


@pytest.mark.parametrize("crs", [None, "EPSG:4326"])
def test_pixels_are_inside_whose_centre_a_polygon_holds(scene, tmp_path, crs) -> None:
    shapes = [shapely.box(10.4, 5.6, 20.6, 9.4), shapely.box(50, 30, 99, 99)]
    expected = np.zeros((40, 60), bool)
    expected[6:9, 10:21] = expected[30:, 50:] = True

    found = inside(scene, drawn(scene, tmp_path / "area.gpkg", *shapes, crs=crs))

    assert np.array_equal(found, expected)


def test_windows_past_the_edge_and_copies_agree_with_the_whole(scene, tmp_path) -> None:
    path = drawn(scene, tmp_path / "area.gpkg", shapely.Point(30, 20).buffer(15))
    area = pickle.loads(pickle.dumps(open_area(path, scene.grid)))

    part = area.read(Window(10, 20, Size(60, 60)))

    assert np.array_equal(part[:30, :40], inside(scene, path)[10:, 20:])
    assert not part[30:].any()


def test_the_digest_is_of_what_is_drawn(scene, tmp_path) -> None:
    one, same, other = (
        open_area(drawn(scene, tmp_path / name, shapely.box(0, 0, side, side)), scene.grid).digest
        for name, side in (("a.gpkg", 9), ("b.geojson", 9), ("c.gpkg", 8))
    )

    assert one == same != other


@pytest.mark.parametrize("bounds", [(-180, -90, 180, 90), (-10, 20, 179, 80)])
def test_an_area_far_larger_than_the_scene_holds_all_of_it(scene, tmp_path, bounds) -> None:
    world = geopandas.GeoDataFrame(geometry=[shapely.box(*bounds)], crs="EPSG:4326")
    world.to_file(tmp_path / "world.gpkg")

    assert inside(scene, str(tmp_path / "world.gpkg")).all()


def test_an_edge_that_is_a_curve_in_the_scene_runs_along_it(scene, tmp_path) -> None:
    # Two degrees of a parallel: a straight line between its ends runs half a kilometre beside it.
    to_degrees = Transformer.from_crs(scene.grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*(scene.grid.transform @ (30, 20)))
    north = geopandas.GeoDataFrame(
        geometry=[shapely.box(lon - 1, lat, lon + 1, lat + 0.1)], crs="EPSG:4326"
    )
    north.to_file(tmp_path / "north.gpkg")

    rows = inside(scene, str(tmp_path / "north.gpkg")).sum(axis=0)

    assert rows.min() >= 19
    assert rows.max() <= 21


@pytest.mark.parametrize(
    "shape",
    [shapely.box(100, 100, 120, 120), shapely.box(60, 0, 90, 40), shapely.box(0, -9, 60, 0.4)],
)
def test_an_area_without_a_pixel_of_the_scene_is_refused(scene, tmp_path, shape) -> None:
    path = drawn(scene, tmp_path / "area.gpkg", shape)

    with pytest.raises(OutsideAreaError) as refused:
        open_area(path, scene.grid)

    assert str(refused.value) == (
        f"{path} has no polygon inside the scene; expected the area to map. "
        "Look at both in QGIS; one of the files may name a wrong CRS."
    )


def test_an_area_without_polygons_is_refused(scene, tmp_path) -> None:
    path = drawn(scene, tmp_path / "area.gpkg", shapely.Point(5, 5))

    with pytest.raises(InputError) as refused:
        open_area(path, scene.grid)

    assert str(refused.value) == f"{path} holds Point; expected the polygons of an area."


def test_what_is_no_vector_file_is_refused(scene, tmp_path) -> None:
    with pytest.raises(InputError) as missing:
        open_area("nowhere.gpkg", scene.grid)
    with pytest.raises(DataError) as raster:
        open_area(scene.path, scene.grid)

    assert str(missing.value) == (
        "nowhere.gpkg does not exist; expected a vector file with polygons."
    )
    assert str(raster.value) == f"{scene.path} is a raster; expected a vector file with polygons."
