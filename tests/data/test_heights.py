import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds
from rasters import NORTH_UP, ROTATED, SOUTH_UP, UTM, RasterSpec, write_raster

from earthgate_geo.data.heights import UNSCALED, HeightLayer, open_heights
from earthgate_geo.data.scenes import NetworkInput, SceneDataset
from earthgate_geo.errors import DataError, HeightsElsewhereError, InputError
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import open_scene

ROWS, COLS = 60, 80
ALL = Window(0, 0, Size(ROWS, COLS))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=ROWS, cols=COLS))
    return tmp_path / "scene.tif"


def hills(rows: int = ROWS, cols: int = COLS) -> NDArray[np.float32]:
    """Smooth heights of 400 to 420 m, (1, row, col)."""
    row, col = np.mgrid[:rows, :cols]
    return (410 + 10 * np.sin(row / rows * 3) * np.cos(col / cols * 4))[None].astype(np.float32)


def layer_of(scene: Path, values: NDArray, *, name: str = "dsm.tif", **spec) -> HeightLayer:
    """Write heights and open them for the scene."""
    write_raster(scene.parent / name, RasterSpec(**spec), values=values)
    return open_heights(str(scene.parent / name), open_scene(scene).grid)


def seen(scene: Path, layer: HeightLayer, network: Size = ALL.size) -> NDArray[np.float32]:
    """Return the channel of heights of the whole scene, (row, col)."""
    source = open_scene(scene)
    transform = NetworkInput(source.radiometry((1, 2, 3)), network, heights=layer.radiometry())
    dataset = SceneDataset(source, bands=(1, 2, 3), heights=layer, transforms=transform)
    image = dataset[dataset.query(ALL)]["image"]
    assert image.shape == (4, network.rows, network.cols)
    assert image.dtype == torch.float32
    return image[3].numpy()


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED])
def test_heights_on_the_pixels_of_the_scene_are_read_as_they_are(tmp_path, transform) -> None:
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=ROWS, cols=COLS, transform=transform))
    layer = layer_of(tmp_path / "scene.tif", hills(), transform=transform)

    pixels = layer.read(Window(-3, 70, Size(20, 20)))

    assert pixels.values.dtype == np.float32
    assert (pixels.values[0, 3:, :10] == hills()[0, :17, 70:]).all()
    assert pixels.valid[3:, :10].all()
    assert not pixels.valid[:3].any()
    assert not pixels.valid[:, 10:].any()
    assert (pixels.values[0, ~pixels.valid] == 0).all()


def test_heights_of_another_crs_and_gsd_lie_where_they_belong(scene) -> None:
    fine, where = hills(120, 160), NORTH_UP @ Affine.translation(-20, -15) @ Affine.scale(0.75)
    crs = "EPSG:3857"
    left, bottom, right, top = transform_bounds(
        UTM, crs, where.c, where.f - 45, where.c + 60, where.f
    )
    transform = Affine(2, 0, left, 0, -2, top)
    there = np.full((1, int((top - bottom) / 2), int((right - left) / 2)), -9999, np.float32)
    options = {"src_crs": UTM, "dst_crs": crs, "dst_nodata": -9999}
    reproject(
        fine, there, src_transform=where, dst_transform=transform,
        resampling=Resampling.bilinear, **options,
    )  # fmt: skip
    expected = np.empty((1, ROWS, COLS), np.float32)
    reproject(
        fine, expected, src_transform=where, dst_transform=NORTH_UP, src_crs=UTM, dst_crs=UTM,
        resampling=Resampling.bilinear,
    )  # fmt: skip

    pixels = layer_of(scene, there, crs=crs, transform=transform, nodata=-9999).read(ALL)

    assert pixels.valid.all()
    np.testing.assert_allclose(pixels.values, expected, atol=0.15)


def test_tiles_of_a_layer_are_windows_of_the_whole(scene) -> None:
    coarse = NORTH_UP @ Affine.scale(3)
    layer = layer_of(scene, hills(20, 27), transform=coarse)

    whole, part = layer.read(ALL), layer.read(Window(17, 23, Size(30, 40)))

    np.testing.assert_allclose(part.values[0], whole.values[0, 17:47, 23:63], atol=1e-3)


@pytest.mark.parametrize(
    "filler", [np.nan, np.inf, -np.inf, -9999, -99999, -32767, -32768, 3.4e38, -3.4e38, 2e7]
)
def test_what_is_no_height_does_not_mix_with_heights(scene, filler) -> None:
    values = hills(30, 40)
    values[0, 10:14, 20:26] = filler

    pixels = layer_of(scene, values, transform=NORTH_UP @ Affine.scale(2)).read(ALL)

    assert not pixels.valid[21:27, 41:51].any()
    assert pixels.valid.mean() > 0.95
    assert ((pixels.values[0] > 399) & (pixels.values[0] < 421))[pixels.valid].all()


def test_minus_9999_of_whole_numbers_in_centimetres_is_no_height(scene) -> None:
    values = (hills() * 10).astype(np.int16)
    values[0, :, 40:] = -9999

    layer = layer_of(scene, values)

    assert (layer.read(ALL).valid == (np.arange(COLS) < 40)).all()
    channel = seen(scene, layer)
    assert channel[:, :56].min() >= 0  # 16 pixels of the hole are filled
    assert (channel[:, 57:] == NO_HEIGHT).all()


def declare_scaling(path: Path, *, scale: float, offset: float) -> None:
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (scale,), (offset,)


def test_scale_and_offset_of_either_file_are_applied_to_what_is_a_height(scene) -> None:
    folder, ground = scene.parent, np.full((1, ROWS, COLS), 600, np.int16)
    values = np.round((hills() - 300) * 100).astype(np.int16)
    values[0, :, 40:] = -9999
    write_raster(folder / "dsm.tif", values=values)
    declare_scaling(folder / "dsm.tif", scale=0.01, offset=300)
    write_raster(folder / "dtm.tif", values=ground)
    declare_scaling(folder / "dtm.tif", scale=0.5, offset=100)

    layer = open_heights(
        str(folder / "dsm.tif"), open_scene(scene).grid, dtm=str(folder / "dtm.tif")
    )

    pixels = layer.read(ALL)
    assert (pixels.valid == (np.arange(COLS) < 40)).all()
    np.testing.assert_allclose(pixels.values[0, :, :40], hills()[0, :, :40] - 400, atol=0.006)


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1, 1e3, 2e4])
def test_the_unit_of_heights_does_not_matter(scene, factor) -> None:
    expected = seen(scene, layer_of(scene, hills()))

    found = seen(scene, layer_of(scene, (hills() * np.float64(factor)), name="other.tif"))

    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_tile_of_the_network_s_size_holds_scaled_heights(scene) -> None:
    low, high = np.percentile(hills(), (1, 99))

    channel = seen(scene, layer_of(scene, hills()))

    np.testing.assert_allclose(channel, ((hills()[0] - low) / (high - low)).clip(0, 1), atol=1e-5)


@pytest.mark.parametrize("value", [0, -3, 0.1, 8848.86, 1e-30])
def test_constant_heights_are_in_the_middle(scene, value) -> None:
    values = np.full((1, 30, 40), value, np.float32)

    channel = seen(scene, layer_of(scene, values, transform=NORTH_UP @ Affine.scale(2.1)))

    np.testing.assert_allclose(channel, 0.5, atol=1e-3)


def test_small_holes_are_filled_from_what_is_near_and_large_ones_are_not(scene) -> None:
    values = hills()
    values[0, :, 40:] = np.nan
    whole = seen(scene, layer_of(scene, values, name="whole.tif"))
    values[0, 20:24, 20:24] = np.nan

    channel = seen(scene, layer_of(scene, values))

    np.testing.assert_allclose(channel[20:24, 20:24], whole[20:24, 20:24], atol=0.1)
    assert (channel[:, 60:] == NO_HEIGHT).all()
    assert ((channel == NO_HEIGHT) | ((channel >= 0) & (channel <= 1))).all()


@pytest.mark.parametrize("network", [Size(30, 40), Size(17, 23), Size(120, 160), Size(30, 160)])
def test_resizing_mixes_heights_with_heights_alone(scene, network) -> None:
    values = np.full((1, ROWS, COLS), 5.0, np.float32)
    values[0, :5] = 1.0
    values[0, 30, ::3] = np.nan
    values[0, 31:] = np.nan
    values[0, 28:30] = 3.0

    channel = seen(scene, layer_of(scene, values), network)

    near = channel[int(network.rows * 0.46) : int(network.rows * 0.5)]
    assert near.min() >= 0.49  # of 1 to 5, at least 3
    assert set(np.unique(channel[-3:])) <= {np.float32(NO_HEIGHT), *np.unique(channel[-3:].clip(0))}


def test_a_tile_without_any_height_stays_without(scene) -> None:
    values = np.full((1, ROWS, COLS), np.nan, np.float32)
    values[0, :4, :4] = hills()[0, :4, :4]
    layer, source = layer_of(scene, values), open_scene(scene)
    transform = NetworkInput(source.radiometry((1, 2, 3)), Size(16, 16), heights=layer.radiometry())
    dataset = SceneDataset(source, bands=(1, 2, 3), heights=layer, transforms=transform)

    image = dataset[dataset.query(Window(40, 40, Size(16, 16)))]["image"]

    assert (image[3] == NO_HEIGHT).all()


def test_a_scene_without_heights_has_a_channel_of_missing_ones(scene) -> None:
    source = open_scene(scene)
    transform = NetworkInput(source.radiometry((1, 2, 3)), Size(16, 16), heights=UNSCALED)
    dataset = SceneDataset(source, bands=(1, 2, 3), transforms=transform)

    image = dataset[dataset.query(ALL)]["image"]

    assert image.shape == (4, 16, 16)
    assert (image[3] == NO_HEIGHT).all()


def test_a_terrain_model_of_another_gsd_is_subtracted_and_both_must_be_known(scene) -> None:
    ground = np.full((1, 20, 27), 400, np.int16)
    ground[0, 15:] = -9999
    write_raster(
        scene.parent / "dtm.tif",
        RasterSpec(transform=NORTH_UP @ Affine.scale(3)),
        values=ground,
    )
    values = hills()
    values[0, :10] = np.nan
    write_raster(scene.parent / "dsm.tif", values=values)

    layer = open_heights(
        str(scene.parent / "dsm.tif"), open_scene(scene).grid, dtm=str(scene.parent / "dtm.tif")
    )

    pixels = layer.read(ALL)
    np.testing.assert_allclose(pixels.values[0, 10:45], hills()[0, 10:45] - 400, atol=1e-3)
    assert pixels.valid[10:45].all()
    assert not pixels.valid[:10].any()
    assert not pixels.valid[46:].any()


def test_the_share_with_heights_is_of_the_valid_pixels(tmp_path) -> None:
    mask = np.broadcast_to(np.arange(COLS) < 40, (ROWS, COLS))
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=ROWS, cols=COLS), mask=mask)
    layer = layer_of(tmp_path / "scene.tif", hills()[:, :, :30])

    assert layer.covered(open_scene(tmp_path / "scene.tif")) == pytest.approx(0.75)


def test_much_finer_heights_are_read_within_bounds(scene) -> None:
    values = np.repeat(np.repeat(hills(), 30, axis=1), 30, axis=2)
    layer = layer_of(scene, values, transform=NORTH_UP @ Affine.scale(1 / 30))

    pixels = layer.read(ALL)

    assert pixels.valid.all()
    np.testing.assert_allclose(pixels.values, hills(), atol=0.3)


@pytest.mark.parametrize("finer", [2, 5, 40])
def test_a_pixel_has_the_mean_of_the_finer_heights_that_there_are(scene, finer) -> None:
    rng = np.random.default_rng(0)
    values = np.kron(hills(), np.ones((1, finer, finer))).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = -9999
    middle = finer // 2
    values[0, middle::finer, middle::finer] = -9999
    cells = np.where(values[0] == -9999, np.nan, values[0]).reshape(ROWS, finer, COLS, finer)
    layer = layer_of(scene, values, transform=NORTH_UP @ Affine.scale(1 / finer))

    pixels = layer.read(ALL)

    known = np.isfinite(cells).any(axis=(1, 3))
    assert (pixels.valid == known).all()
    mean = np.nanmean(cells.swapaxes(1, 2)[known], axis=(1, 2))
    np.testing.assert_allclose(pixels.values[0][known], mean, atol=0.3)


def test_a_layer_pickles_and_opens_again_as_it_is(scene) -> None:
    layer = layer_of(scene, hills(30, 40), transform=NORTH_UP @ Affine.scale(2))
    expected, digest = layer.read(ALL), layer.digest()
    other = pickle.loads(pickle.dumps(layer))
    again = layer.reopened()
    layer.close()

    for copy in (other, again):
        found = copy.read(ALL)
        assert (found.values == expected.values).all()
        assert (found.valid == expected.valid).all()
        assert copy.digest() == digest
        assert copy.radiometry() == again.radiometry()


def test_the_digest_changes_with_either_file(scene) -> None:
    grid, folder = open_scene(scene).grid, scene.parent
    for name in ("dsm.tif", "dtm.tif"):
        write_raster(folder / name, values=hills())
    before = open_heights(str(folder / "dsm.tif"), grid, dtm=str(folder / "dtm.tif")).digest()
    write_raster(folder / "dtm.tif", values=hills() + 1, compress="deflate")

    after = open_heights(str(folder / "dsm.tif"), grid, dtm=str(folder / "dtm.tif")).digest()

    assert after != before
    assert open_heights(str(folder / "dsm.tif"), grid).digest() != after


def test_heights_elsewhere_are_refused(scene) -> None:
    with pytest.raises(HeightsElsewhereError) as caught:
        layer_of(scene, hills(), transform=NORTH_UP @ Affine.translation(0, 61))

    assert str(caught.value) == (
        f"{scene.parent / 'dsm.tif'} lies outside the scene; expected heights of the same ground. "
        "Check the CRS of both with gdalinfo, or leave the heights out."
    )


def test_a_terrain_model_elsewhere_is_refused(scene) -> None:
    far = RasterSpec(transform=NORTH_UP @ Affine.translation(1e4, 0))
    write_raster(scene.parent / "dtm.tif", far, values=hills())
    write_raster(scene.parent / "dsm.tif", values=hills())

    with pytest.raises(HeightsElsewhereError, match=r"dtm\.tif lies outside the scene"):
        open_heights(
            str(scene.parent / "dsm.tif"),
            open_scene(scene).grid,
            dtm=str(scene.parent / "dtm.tif"),
        )


def test_heights_in_feet_are_not_less_a_ground_in_metres(scene) -> None:
    folder, grid = scene.parent, open_scene(scene).grid
    write_raster(folder / "feet.tif", RasterSpec(crs=f"{UTM}+6360"), values=hills() * 3.28)
    write_raster(folder / "metres.tif", RasterSpec(crs=f"{UTM}+5703"), values=hills())
    write_raster(folder / "unsaid.tif", values=hills())
    feet, metres, unsaid = (str(folder / f"{name}.tif") for name in ("feet", "metres", "unsaid"))

    with pytest.raises(DataError) as caught:
        open_heights(feet, grid, dtm=metres)

    assert str(caught.value) == (
        f"{feet} in US survey foot and {metres} in metre; expected heights and the ground's in one "
        "unit. Convert one of them with gdal_calc.py, and its vertical CRS with gdal_edit.py."
    )
    assert open_heights(feet, grid, dtm=unsaid).read(ALL).valid.all()
    assert open_heights(feet, grid, dtm=feet).read(ALL).values.max() == 0


def test_heights_without_a_single_number_in_the_scene_are_refused(scene) -> None:
    layer = layer_of(scene, np.full((1, ROWS, COLS), -9999, np.float32))

    with pytest.raises(HeightsElsewhereError) as caught:
        layer.radiometry()

    assert str(caught.value) == (
        f"{scene.parent / 'dsm.tif'} holds no height in the scene; expected numbers that are "
        "neither nodata nor NaN. Check its nodata value and extent with gdalinfo, or leave the "
        "heights out."
    )


def test_a_picture_is_no_surface_model(scene) -> None:
    with pytest.raises(DataError) as caught:
        open_heights(str(scene), open_scene(scene).grid)

    assert str(caught.value) == (
        f"{scene} has 3 bands; expected one band, of heights. Take the one that holds heights "
        "with gdal_translate -b 1."
    )


def test_a_missing_file_is_refused(scene) -> None:
    with pytest.raises(InputError, match=r"nope\.tif does not exist"):
        open_heights("nope.tif", open_scene(scene).grid)
