import numpy as np
import pytest
from rasterio.enums import ColorInterp
from rasters import RasterSpec, write_raster

from earthgate_geo.raster.fill import likely_fill
from earthgate_geo.raster.read import SceneOptions, open_scene

ROWS, COLS = 60, 80


@pytest.mark.parametrize(
    ("value", "rows", "expected"), [(0, 30, 0.5), (255, 15, 0.25), (0, 3, None), (100, 30, None)]
)
def test_a_value_at_an_end_that_covers_much_of_a_scene_is_likely_no_data(
    tmp_path, value, rows, expected
):
    values = np.random.default_rng(0).integers(1, 255, (3, ROWS, COLS), dtype=np.uint8)
    values[:, :rows] = value
    write_raster(tmp_path / "scene.tif", values=values)

    with open_scene(tmp_path / "scene.tif") as scene:
        found = likely_fill(scene, (1, 2, 3))
    with open_scene(tmp_path / "scene.tif", SceneOptions(nodata=value)) as scene:
        declared = likely_fill(scene, (1, 2, 3))

    assert (found and found[1]) == pytest.approx(expected, abs=0.001)
    assert found is None or found[0] == value
    assert declared is None


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", -3.4028234663852886e38), ("uint32", 2**32 - 1), ("int16", 0)]
)
def test_the_likely_fill_is_exactly_what_nodata_takes(tmp_path, dtype, value):
    values = np.ones((3, ROWS, COLS), dtype)
    values[:, :30] = value
    values[:, 40:] = 2
    write_raster(tmp_path / "scene.tif", values=values)

    with open_scene(tmp_path / "scene.tif") as scene:
        (found, _) = likely_fill(scene, (1, 2, 3))
    with open_scene(tmp_path / "scene.tif", SceneOptions(nodata=float(str(found)))) as scene:
        assert scene.preview((1,)).valid.mean() == pytest.approx(0.5, abs=0.02)


def test_what_other_bands_record_is_no_fill(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (4, ROWS, COLS), dtype=np.uint8)
    values[:3, :30] = 0
    infrared = RasterSpec(bands=4, interpretation=[ColorInterp.undefined] * 4)
    write_raster(tmp_path / "scene.tif", infrared, values=values)

    with open_scene(tmp_path / "scene.tif") as scene:
        assert likely_fill(scene, (1, 2, 3)) is None


def test_a_scene_of_one_value_has_no_fill(tmp_path):
    write_raster(tmp_path / "scene.tif", values=np.full((3, ROWS, COLS), 7, np.uint8))

    with open_scene(tmp_path / "scene.tif") as scene:
        assert likely_fill(scene, (1, 2, 3)) is None


def test_a_scene_without_a_valid_pixel_has_no_fill(tmp_path):
    write_raster(tmp_path / "scene.tif", mask=np.zeros((ROWS, COLS), bool))

    with open_scene(tmp_path / "scene.tif") as scene:
        assert likely_fill(scene, (1, 2, 3)) is None
