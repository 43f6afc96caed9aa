import numpy as np
import pytest
import torch
from rasters import RasterSpec, write_raster

from earthgate_geo.data.scenes import SceneDataset, plan_tiles
from earthgate_geo.pictures import Place
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.raster.read import open_scene

CLASSES = ClassTable((LandClass(0, "dark", "#102030"), LandClass(1, "bright", "#fafbfc")))


def threshold(images: torch.Tensor) -> torch.Tensor:
    bright = images.mean(1, keepdim=True)
    return torch.cat([0.5 - bright, bright - 0.5], 1)


def place_of(scene, *, gsd_min_m: float = 0.1) -> Place:
    plan = plan_tiles(scene.grid, tile_px=64, stride_px=48, gsd_min_m=gsd_min_m, gsd_max_m=4.0)
    return Place(SceneDataset(scene, bands=(1, 2, 3)), plan, scene.radiometry((1, 2, 3)))


@pytest.mark.parametrize(
    ("rows", "cols", "gsd_min_m", "shape"),
    [(40, 60, 0.1, (40, 60)), (700, 900, 0.1, (512, 512)), (40, 60, 1.0, (20, 30))],
)
def test_all_pictures_of_a_place_have_one_shape(tmp_path, rows, cols, gsd_min_m, shape) -> None:
    write_raster(tmp_path / "s.tif", RasterSpec(rows=rows, cols=cols))

    with open_scene(tmp_path / "s.tif") as scene:
        place = place_of(scene, gsd_min_m=gsd_min_m)

    mapped, confidence = place.mapped(threshold, CLASSES, torch.device("cpu"))
    assert place.photograph().shape == mapped.shape == (*shape, 3)
    assert confidence.shape == shape


def test_a_map_shows_the_colours_of_the_classes_and_gaps_in_grey(tmp_path) -> None:
    values = np.full((3, 40, 60), 200, np.uint8)
    values[:, :20] = 10
    values[:, :, :5] = 0
    write_raster(tmp_path / "s.tif", RasterSpec(nodata=0), values=values)

    with open_scene(tmp_path / "s.tif") as scene:
        mapped, _ = place_of(scene).mapped(threshold, CLASSES, torch.device("cpu"))

    assert mapped[5, 30].tolist() == [0x10, 0x20, 0x30]
    assert mapped[30, 30].tolist() == [0xFA, 0xFB, 0xFC]
    assert mapped[30, 2].tolist() == [128, 128, 128]


def test_confidence_is_the_probability_of_the_class_in_front(tmp_path) -> None:
    values = np.full((3, 40, 60), 200, np.uint8)
    values[:, :20] = 10
    values[:, :, :5] = 0
    write_raster(tmp_path / "s.tif", RasterSpec(nodata=0), values=values)

    with open_scene(tmp_path / "s.tif") as scene:
        _, confidence = place_of(scene).mapped(threshold, CLASSES, torch.device("cpu"))

    sure = 1 / (1 + np.exp(-1))  # the logits of black and of white are half on either side of 0
    assert confidence[5, 30] == pytest.approx(sure)
    assert confidence[30, 30] == pytest.approx(sure)
    assert np.isnan(confidence[30, 2])


def test_the_place_is_where_the_scene_shows_most(tmp_path) -> None:
    values = np.full((3, 1024, 2048), 90, np.uint8)
    rng = np.random.default_rng(0)
    values[:, 512:, 1536:] = rng.integers(1, 255, (3, 512, 512))
    values[:, :, :700] = 0
    write_raster(tmp_path / "s.tif", RasterSpec(nodata=0), values=values)

    with open_scene(tmp_path / "s.tif") as scene:
        photograph = place_of(scene).photograph()

    assert photograph.std() > 50
    assert (photograph == 127).mean() < 0.01
