import numpy as np
import pytest
from affine import Affine
from pyproj import Transformer
from rasters import NORTH_UP, ROTATED, SOUTH_UP, RasterSpec, write_raster
from shapely.geometry import shape

from earthgate_geo.errors import EmptySceneError
from earthgate_geo.raster.footprint import footprint
from earthgate_geo.raster.read import open_scene

TO_LONLAT = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)


def footprint_of(path, spec, mask=None):
    write_raster(path, spec, mask=mask)
    with open_scene(path) as scene:
        return footprint(scene)


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED])
def test_the_outline_is_that_of_the_valid_pixels_window(tmp_path, transform) -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:20, 5:7] = mask[30, 40] = True

    found = footprint_of(tmp_path / "a.tif", RasterSpec(transform=transform), mask)

    corners = [(5, 10), (41, 10), (41, 31), (5, 31)]
    expected = [TO_LONLAT.transform(*(transform @ corner)) for corner in corners]
    outline = shape(found.geometry)
    assert outline.exterior.is_ccw
    assert found.bbox == outline.bounds
    ring = np.array(outline.exterior.coords)
    for corner in expected:
        assert np.abs(ring - corner).max(axis=1).min() < 1e-7
    assert len(ring) == 5


def test_a_scene_larger_than_the_decimated_read_keeps_its_edges(tmp_path) -> None:
    spec = RasterSpec(bands=1, rows=3000, cols=2000)

    found = footprint_of(tmp_path / "a.tif", spec)

    corners = [NORTH_UP @ corner for corner in ((0, 0), (2000, 0), (2000, 3000), (0, 3000))]
    lon, lat = zip(*(TO_LONLAT.transform(*corner) for corner in corners), strict=True)
    assert found.bbox == pytest.approx((min(lon), min(lat), max(lon), max(lat)), abs=1e-6)


def test_a_scene_across_the_date_line_is_cut_there(tmp_path) -> None:
    across = Affine(100, 0, 495_000, 0, -100, 8_000_000)
    spec = RasterSpec(bands=1, crs="+proj=tmerc +lon_0=180 +x_0=500000 +ellps=WGS84", cols=100)

    found = footprint_of(tmp_path / "a.tif", RasterSpec(**vars(spec) | {"transform": across}))

    west, _, east, _ = found.bbox
    assert found.geometry["type"] == "MultiPolygon"
    assert 179 < west < 180
    assert -180 < east < -179
    assert all(part.exterior.is_ccw for part in shape(found.geometry).geoms)


def test_a_crs_without_longitude_has_no_footprint(tmp_path) -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1]]'

    assert footprint_of(tmp_path / "a.tif", RasterSpec(crs=local)) is None


def test_a_scene_without_data_is_refused(tmp_path) -> None:
    with pytest.raises(EmptySceneError):
        footprint_of(tmp_path / "a.tif", RasterSpec(), np.zeros((60, 80)))
