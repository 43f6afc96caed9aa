import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window as RasterioWindow
from rasters import NORTH_UP, ROTATED, SOUTH_UP, RasterSpec, write_raster
from torch.utils.data import DataLoader
from torchgeo.datasets import GeoDataset
from torchgeo.datasets.utils import stack_samples

from earthgate_geo.data.heights import HeightLayer
from earthgate_geo.data.labels import LabelOptions, open_labels
from earthgate_geo.data.sampling import TopDownSampler
from earthgate_geo.data.scenes import NetworkInput, SceneDataset, TilePlan, plan_tiles
from earthgate_geo.errors import DataError, InputError
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.raster.grid import Grid, Size, Window
from earthgate_geo.raster.read import Radiometry, open_scene

PLANE = CRS.from_wkt('LOCAL_CS["plane",UNIT["metre",1]]')
TRANSFORMS = {
    "odd": Affine(0.149, 0, 500000.0371, 0, -0.149, 5200000.11),
    "fraction": Affine(10.000000001, 0, 1 / 3, 0, -10.000000001, 7.0),
    "oblong": Affine(0.3, 0, 500000, 0, -0.7, 5200000),
    "south-up": SOUTH_UP,
    "mirrored": Affine(-0.5, 0, 500000, 0, -0.5, 5200000),
    "rotated": ROTATED,
}


def dataset_of(path: Path, **options) -> SceneDataset:
    scene = open_scene(path)
    return SceneDataset(scene, bands=range(1, scene.count + 1), **options)


def heights_of(folder: Path) -> HeightLayer:
    grid = open_scene(folder / "scene.tif").grid
    return HeightLayer(open_scene(folder / "dsm.tif"), grid)


def plane_grid(row_m: float, col_m: float) -> Grid:
    return Grid(Size(3000, 4000), Affine.scale(col_m, -row_m), PLANE)


@pytest.fixture(scope="module", params=[*TRANSFORMS, "degrees"])
def placed(request, tmp_path_factory) -> SceneDataset:
    path = tmp_path_factory.mktemp("placed") / "scene.tif"
    degrees = Affine(1 / 3600, 0, 16.1, 0, -1 / 3600, 48.2)
    transform = TRANSFORMS.get(request.param, degrees)
    crs = "EPSG:4326" if request.param == "degrees" else "EPSG:32633"
    write_raster(path, RasterSpec(rows=131, cols=97, transform=transform, crs=crs))
    return dataset_of(path)


@given(
    row=st.integers(-200, 100_000),
    col=st.integers(-200, 100_000),
    rows=st.integers(1, 5000),
    cols=st.integers(1, 5000),
)
@settings(max_examples=60, deadline=None)
def test_a_window_becomes_a_query_and_back_exactly(placed, row, col, rows, cols):
    window = Window(row, col, Size(rows, cols))

    assert placed.window(placed.query(window)) == window


@given(
    row=st.integers(0, 130), col=st.integers(0, 96), rows=st.integers(1, 9), cols=st.integers(1, 9)
)
@settings(max_examples=20, deadline=None)
def test_a_sample_is_the_file_s_own_pixels(placed, row, col, rows, cols):
    window = Window(row, col, Size(rows, cols)).clipped(placed.scene.grid.size)

    image = placed[placed.query(window)]["image"]

    area = RasterioWindow(window.col, window.row, window.size.cols, window.size.rows)
    with rasterio.open(placed.scene.path) as file:
        assert (image.numpy() == file.read(window=area)).all()


@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 70),
    tile=st.integers(4, 40),
    overlap=st.integers(0, 3),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
)
@settings(max_examples=30, deadline=None)
def test_every_tile_equals_a_plain_read_with_its_mask(
    tmp_path_factory, rows, cols, tile, overlap, dtype
):
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    mask = np.random.default_rng(rows).random((rows, cols)) < 0.6
    spec = RasterSpec(rows=rows, cols=cols, dtype=dtype, seed=cols)
    pixels = write_raster(path, spec, mask=mask)
    padded = np.pad(pixels, ((0, 0), (0, 40), (0, 40))).astype(np.float32)
    padded_mask = np.pad(mask, (0, 40))
    dataset = dataset_of(path)

    for query in TopDownSampler(dataset, Size(tile, tile), Size(tile - overlap, tile - overlap)):
        sample = dataset[query]
        w = sample["window"]
        here = np.s_[w.row : w.row_stop, w.col : w.col_stop]
        assert sample["image"].dtype == torch.float32
        assert (sample["image"].numpy() == padded[:, *here]).all()
        assert (sample["valid"].numpy() == padded_mask[here]).all()


def test_bands_come_in_the_order_asked_for(tmp_path):
    pixels = write_raster(tmp_path / "scene.tif", RasterSpec(bands=4))
    dataset = SceneDataset(open_scene(tmp_path / "scene.tif"), bands=(4, 1, 1))

    image = dataset[dataset.query(Window(3, 5, Size(8, 8)))]["image"]

    assert (image.numpy() == pixels[[3, 0, 0], 3:11, 5:13]).all()


def test_it_is_a_torchgeo_dataset_of_one_scene(placed):
    x, y, _ = placed.bounds

    assert isinstance(placed, GeoDataset)
    assert len(placed) == 1
    assert placed.window((x, y)) == Window(0, 0, Size(131, 97))
    assert placed.window((slice(None, None),)) == Window(0, 0, Size(131, 97))
    assert min(placed.res) > 0


def test_a_window_wholly_outside_is_refused(placed):
    with pytest.raises(InputError) as caught:
        placed[placed.query(Window(500, 0, Size(8, 8)))]

    assert str(caught.value) == (
        "a window at row 500, column 0; expected one that meets the raster of 131 x 97 px."
    )


def test_a_pickled_dataset_reads_the_same(placed):
    query = placed.query(Window(100, 60, Size(64, 64)))

    copy = pickle.loads(pickle.dumps(placed))

    assert (copy[query]["image"] == placed[query]["image"]).all()


def test_labels_and_heights_lie_on_the_scene_s_pixels(tmp_path):
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=60, cols=80, transform=ROTATED))
    codes = np.random.default_rng(0).integers(0, 2, (1, 60, 80), dtype=np.uint8)
    write_raster(tmp_path / "codes.tif", RasterSpec(transform=ROTATED), values=codes)
    heights = np.random.default_rng(1).random((1, 60, 80)).astype(np.float32)
    heights[0, :5] = -9999
    write_raster(tmp_path / "dsm.tif", RasterSpec(transform=ROTATED, nodata=-9999), values=heights)
    scene = open_scene(tmp_path / "scene.tif")
    classes = ClassTable((LandClass(0, "road", "#111111"), LandClass(1, "water", "#222222")))
    labels = open_labels(tmp_path / "codes.tif", scene.grid, classes, LabelOptions())
    dataset = SceneDataset(scene, bands=(1,), labels=labels, heights=heights_of(tmp_path))

    sample = dataset[dataset.query(Window(-2, 70, Size(20, 20)))]

    assert sample["mask"].dtype == torch.int64
    assert (sample["mask"].numpy()[2:, :10] == codes[0, :18, 70:]).all()
    assert (sample["mask"].numpy()[:, 10:] == 255).all()
    assert (sample["mask"].numpy()[:2] == 255).all()
    assert sample["height"].dtype == torch.float32
    assert sample["height_valid"].numpy()[7:, :10].all()
    assert not sample["height_valid"].numpy()[:7].any()
    assert not sample["height_valid"].numpy()[:, 10:].any()
    assert (sample["height"].numpy()[7:, :10] == heights[0, 5:18, 70:]).all()


def test_heights_of_another_crs_and_resolution_are_warped(tmp_path):
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=60, cols=80))
    # A plane rising 1 m per metre to the east, at 2 m, south-up, one zone further west.
    with rasterio.open(tmp_path / "scene.tif") as file:
        left, bottom, right, top = rasterio.warp.transform_bounds(
            "EPSG:32633", "EPSG:32632", file.transform.c, file.transform.f - 30,
            file.transform.c + 40, file.transform.f,
        )  # fmt: skip
    transform = Affine(2, 0, left - 20, 0, 2, bottom - 20)
    cols, rows = int((right - left + 40) / 2), int((top - bottom + 40) / 2)
    plane = np.arange(cols, dtype=np.float64) * 2 + 1 + left - 20
    values = np.broadcast_to(plane, (1, rows, cols)).copy()
    spec = RasterSpec(transform=transform, crs="EPSG:32632")
    write_raster(tmp_path / "dsm.tif", spec, values=values)
    dataset = dataset_of(tmp_path / "scene.tif", heights=heights_of(tmp_path))

    sample = dataset[dataset.query(Window(0, 0, Size(60, 80)))]

    row, col = np.mgrid[:60, :80] + 0.5
    x, y = NORTH_UP @ (col.ravel(), row.ravel())
    east, _ = rasterio.warp.transform("EPSG:32633", "EPSG:32632", x, y)
    assert sample["height_valid"].all()
    np.testing.assert_allclose(sample["height"].numpy().ravel(), east, atol=0.1)


def test_heights_without_a_way_to_the_scene_are_refused(tmp_path):
    write_raster(tmp_path / "scene.tif")
    write_raster(tmp_path / "dsm.tif", RasterSpec(bands=1, crs=PLANE.to_wkt()))

    with pytest.raises(DataError) as caught:
        dataset_of(tmp_path / "scene.tif", heights=heights_of(tmp_path))

    assert str(caught.value) == (
        f"{tmp_path / 'dsm.tif'} has a CRS from which PROJ knows no way to the scene's; expected "
        "a CRS tied to the Earth, like the scene's. Write the right CRS into it with "
        "gdal_edit.py -a_srs or ogr2ogr -a_srs."
    )


@pytest.mark.parametrize(
    ("row_m", "col_m", "tile", "stride"),
    [
        (0.3, 0.3, (512, 512), (384, 384)),  # in the range: its own pixels
        (0.1, 0.6, (3072, 512), (2304, 384)),  # 6 : 1 on the ground: rows shrunk to 0.6
        (0.3, 0.32, (512, 512), (384, 384)),  # nearly square is left alone
        (0.05, 0.05, (1024, 1024), (768, 768)),  # shrunk 2x to 0.1
        (0.02, 0.05, (2560, 1024), (1920, 768)),  # each axis to 0.1
        (1.0, 1.0, (307, 307), (230, 230)),  # enlarged 1.67x: 307.2, 230.4
        (1.2, 1.2, (256, 256), (192, 192)),  # enlarged 2x, the most
        (1.0, 0.5, (307, 614), (230, 461)),  # rows enlarged to 0.6, columns shrunk to 0.6
    ],
)
def test_tiles_are_brought_to_the_range_of_the_model(row_m, col_m, tile, stride):
    plan = plan_tiles(
        plane_grid(row_m, col_m), tile_px=512, stride_px=384, gsd_min_m=0.1, gsd_max_m=0.6
    )

    assert plan == TilePlan(tile=Size(*tile), stride=Size(*stride), network=Size(512, 512))


def test_a_scene_too_coarse_keeps_its_pixels_with_one_note():
    plan = plan_tiles(plane_grid(10, 9), tile_px=512, stride_px=384, gsd_min_m=0.1, gsd_max_m=0.6)

    assert plan == TilePlan(
        tile=Size(512, 512),
        stride=Size(384, 384),
        network=Size(512, 512),
        note="The scene's pixels are 10 m on the ground, but the model was trained for 0.1 to "
        "0.6 m: it is mapped at its own size, and the map may be poor (--gsd 0.6 forces the "
        "model's).",
    )


def test_a_forced_ground_size_holds_in_both_axes_and_says_nothing():
    plan = plan_tiles(
        plane_grid(2, 1),
        tile_px=512,
        stride_px=384,
        gsd_min_m=0.1,
        gsd_max_m=0.6,
        forced_gsd_m=0.5,
    )

    assert plan == TilePlan(tile=Size(128, 256), stride=Size(96, 192), network=Size(512, 512))


@pytest.mark.parametrize("forced", [0.001, 100, -1])
def test_an_absurd_forced_ground_size_is_refused(forced):
    with pytest.raises(InputError) as caught:
        plan_tiles(
            plane_grid(0.5, 0.5),
            tile_px=512,
            stride_px=384,
            gsd_min_m=0.1,
            gsd_max_m=0.6,
            forced_gsd_m=forced,
        )

    assert str(caught.value) == (
        f"--gsd {forced:g} for a scene whose pixels are 0.5 m; expected 0.016 to 16 m."
    )


def test_a_geographic_scene_is_planned_by_its_size_on_the_ground():
    # 1e-6 degrees at 60 degrees north: 0.111 m down, half of that across.
    grid = Grid(Size(100, 100), Affine(1e-6, 0, 10, 0, -1e-6, 60), CRS.from_epsg(4326))

    plan = plan_tiles(grid, tile_px=512, stride_px=512, gsd_min_m=0.2, gsd_max_m=0.6)

    assert plan.tile == Size(round(512 * 0.2 / 0.1114), round(512 * 0.2 / 0.0558))


def network_sample(image: np.ndarray, valid: np.ndarray | None = None) -> dict:
    valid = np.ones(image.shape[1:], np.bool_) if valid is None else valid
    return {"image": torch.from_numpy(image.astype(np.float32)), "valid": torch.from_numpy(valid)}


BYTES = Radiometry((0.0,), (255.0,))


def test_a_tile_of_the_network_s_size_is_only_scaled():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 6))

    seen = NetworkInput(BYTES, Size(8, 6))(network_sample(image))["image"]

    assert (seen.numpy() == image.astype(np.float32) / 255).all()


def test_shrinking_averages_and_enlarging_is_bilinear_per_axis():
    image = np.array([[[0, 255], [255, 255], [0, 0], [0, 255]]])

    seen = NetworkInput(BYTES, Size(2, 4))(network_sample(image))["image"]

    expected = [[0.5, 0.625, 0.875, 1.0], [0.0, 0.125, 0.375, 0.5]]
    np.testing.assert_allclose(seen.numpy(), [expected], atol=1e-6)


def test_invalid_pixels_become_grey_before_resizing():
    image = np.array([[[np.nan, 255], [255, 255]]])
    valid = np.array([[False, True], [True, True]])

    seen = NetworkInput(BYTES, Size(1, 1))(network_sample(image, valid))["image"]

    assert seen.item() == pytest.approx((0.5 + 3) / 4)


def test_the_rest_of_a_sample_stays_in_scene_pixels(tmp_path):
    write_raster(tmp_path / "scene.tif")
    scene = open_scene(tmp_path / "scene.tif")
    transform = NetworkInput(scene.radiometry((1, 2, 3)), Size(16, 16))
    dataset = SceneDataset(scene, bands=(1, 2, 3), transforms=transform)

    sample = dataset[dataset.query(Window(0, 0, Size(32, 24)))]

    assert sample["image"].shape == (3, 16, 16)
    assert sample["valid"].shape == (32, 24)
    assert sample["window"] == Window(0, 0, Size(32, 24))


def test_a_loader_delivers_batches(tmp_path):
    write_raster(tmp_path / "scene.tif")
    dataset = dataset_of(tmp_path / "scene.tif")
    sampler = TopDownSampler(dataset, Size(32, 32), Size(32, 32))

    batches = list(DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=stack_samples))

    assert [len(batch["image"]) for batch in batches] == [4, 2]
    assert batches[0]["image"].shape == (4, 3, 32, 32)
    assert [w.row for w in batches[0]["window"]] == [0, 0, 0, 28]
