import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from rasterio.enums import ColorInterp
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window as RasterioWindow
from rasters import NORTH_UP, ROTATED, SOUTH_UP, RasterSpec, noise, write_raster

from earthgate_geo.errors import BandError, DataError, EmptySceneError, InputError
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import Radiometry, SceneOptions, open_scene

RED, GREEN, BLUE = ColorInterp.red, ColorInterp.green, ColorInterp.blue
ROWS, COLS = 60, 80
WHOLE = Window(0, 0, Size(ROWS, COLS))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    path = tmp_path_factory.mktemp("masked") / "scene.tif"
    mask = np.random.default_rng(1).random((ROWS, COLS)) < 0.7
    write_raster(path, mask=mask, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    return path


def reference(path, window, bands):
    area = RasterioWindow(window.col, window.row, window.size.cols, window.size.rows)
    with rasterio.open(path) as source:
        return source.read(bands, window=area), source.dataset_mask(window=area) != 0


def windows(*, low_row, high_row, low_col, high_col):
    rows = st.integers(low_row, high_row).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(1, 2 * ROWS))
    )
    cols = st.integers(low_col, high_col).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(1, 2 * COLS))
    )
    return st.tuples(rows, cols)


@given(windows(low_row=0, high_row=ROWS - 1, low_col=0, high_col=COLS - 1))
@settings(max_examples=40, deadline=None)
def test_a_window_inside_is_what_rasterio_reads_with_its_mask(masked, spans):
    (row, rows), (col, cols) = spans
    window = Window(row, col, Size(min(rows, ROWS - row), min(cols, COLS - col)))

    with open_scene(masked) as scene:
        pixels = scene.read(window, (3, 1))

    values, valid = reference(masked, window, [3, 1])
    assert_array_equal(pixels.values, values)
    assert_array_equal(pixels.valid, valid)


@given(windows(low_row=-70, high_row=ROWS - 1, low_col=-90, high_col=COLS - 1))
@settings(max_examples=40, deadline=None)
def test_a_window_past_the_edge_is_padded_with_invalid_zeros(masked, spans):
    (row, rows), (col, cols) = spans
    window = Window(row, col, Size(rows + max(-row, 0), cols + max(-col, 0)))
    values, valid = reference(masked, WHOLE, [1, 2, 3])
    margin = 200
    values = np.pad(values, ((0, 0), (margin, margin), (margin, margin)))
    valid = np.pad(valid, margin)
    there = np.s_[
        row + margin : row + margin + window.size.rows,
        col + margin : col + margin + window.size.cols,
    ]

    with open_scene(masked) as scene:
        pixels = scene.read(window, (1, 2, 3))

    assert_array_equal(pixels.values, values[:, *there])
    assert_array_equal(pixels.valid, valid[there])


@given(windows(low_row=0, high_row=ROWS - 1, low_col=0, high_col=COLS - 1))
@settings(max_examples=30, deadline=None)
def test_has_valid_is_exact(sparse, spans):
    (row, rows), (col, cols) = spans
    window = Window(row, col, Size(rows, cols))

    with open_scene(sparse) as scene:
        claims = scene.has_valid(window)

        assert claims == scene.read_valid(window).any()


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "scene.tif"
    mask = np.zeros((ROWS, COLS), bool)
    mask[7, 11] = mask[40:44, 60:70] = True
    write_raster(path, mask=mask)
    return path


def test_a_window_wholly_outside_is_refused(masked):
    with open_scene(masked) as scene, pytest.raises(InputError):
        scene.read(Window(ROWS, 0, Size(5, 5)), (1,))


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
@pytest.mark.parametrize("bands", [1, 3, 7])
def test_every_type_and_band_count_comes_back_as_written(tmp_path, dtype, bands):
    path = tmp_path / "scene.tif"
    written = write_raster(path, RasterSpec(dtype=dtype, bands=bands))

    with open_scene(path) as scene:
        pixels = scene.read(WHOLE, range(1, bands + 1))

        assert (scene.dtype, scene.count) == (dtype, bands)
    assert pixels.values.dtype == dtype
    assert_array_equal(pixels.values, written)
    assert pixels.valid.all()


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED])
def test_the_grid_is_the_files_own(tmp_path, transform):
    path = tmp_path / "scene.tif"
    written = write_raster(path, RasterSpec(transform=transform))

    with open_scene(path) as scene:
        assert scene.grid.transform == transform
        assert scene.grid.size == Size(ROWS, COLS)
        assert scene.grid.crs.to_epsg() == 32633
        assert_array_equal(scene.read(WHOLE, (1, 2, 3)).values, written)


def as_vrt(path):
    copy_raster(path, path.with_suffix(".vrt"), driver="VRT")
    return path.with_suffix(".vrt")


def as_jp2(path):
    copy_raster(
        path, path.with_suffix(".jp2"), driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES"
    )
    return path.with_suffix(".jp2")


def as_zip(path):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.write(path, path.name)
    return f"/vsizip/{path.with_suffix('.zip')}/{path.name}"


@pytest.mark.parametrize("convert", [as_vrt, as_jp2, as_zip])
def test_other_formats_read_the_same(tmp_path, convert):
    written = write_raster(tmp_path / "scene.tif")

    with open_scene(convert(tmp_path / "scene.tif")) as scene:
        pixels = scene.read(WHOLE, (1, 2, 3))

        assert scene.name == "scene"
        assert scene.choose_bands(("red", "green", "blue")) == (1, 2, 3)
    assert_array_equal(pixels.values, written)
    assert pixels.valid.all()


def test_bands_of_different_types_are_read_as_their_common_type(tmp_path):
    byte = write_raster(tmp_path / "byte.tif", RasterSpec(bands=1))
    real = write_raster(tmp_path / "real.tif", RasterSpec(bands=1, dtype="float32"))
    text = as_vrt(tmp_path / "byte.tif").read_text()
    start, stop = text.index("<VRTRasterBand"), text.index("</VRTDataset>")
    second = text[start:stop].replace('"Byte" band="1"', '"Float32" band="2"')
    both = text[:stop] + second.replace("byte.tif", "real.tif") + text[stop:]
    (tmp_path / "both.vrt").write_text(both)

    with open_scene(tmp_path / "both.vrt") as scene:
        pixels = scene.read(WHOLE, (2, 1))

        assert scene.dtype == "float32"
    assert_array_equal(pixels.values, np.concatenate([real, byte]))


def test_a_container_of_rasters_asks_for_one_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_raster(Path("two.tif"), RasterSpec(bands=2))
    copy_raster("two.tif", "two.nc", driver="netCDF")

    with pytest.raises(DataError) as refusal:
        open_scene("two.nc")

    assert str(refusal.value) == (
        "two.nc is a container of 2 rasters; expected one raster. Name one of them, e.g. "
        "netcdf:two.nc:Band1."
    )


def test_a_vrt_without_its_files_is_refused_on_reading(tmp_path):
    write_raster(tmp_path / "scene.tif")
    path = as_vrt(tmp_path / "scene.tif")
    (tmp_path / "scene.tif").unlink()

    with open_scene(path) as scene, pytest.raises(DataError) as refusal:
        scene.read(WHOLE, (1,))

    assert str(refusal.value) == (
        f"{path} cannot be read at rows 0 to 59, columns 0 to 79; expected a complete file. "
        "Check that the files it names are there and complete."
    )


@pytest.mark.parametrize("external", [False, True])
def test_masks_inside_and_beside_the_file_count(tmp_path, external):
    mask = np.random.default_rng(0).random((ROWS, COLS)) < 0.5
    write_raster(tmp_path / "scene.tif", mask=mask, external_mask=external)

    with open_scene(tmp_path / "scene.tif") as scene:
        assert_array_equal(scene.read_valid(WHOLE), mask)
    assert (tmp_path / "scene.tif.msk").exists() == external


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_alpha_band_counts_as_mask_and_not_as_band(tmp_path, dtype):
    spec = RasterSpec(bands=4, dtype=dtype, interpretation=(RED, GREEN, BLUE, ColorInterp.alpha))
    values = noise(spec)
    values[3] = np.random.default_rng(0).integers(0, 2, (ROWS, COLS))
    write_raster(tmp_path / "scene.tif", spec, values=values)

    with open_scene(tmp_path / "scene.tif") as scene:
        assert scene.choose_bands(("red", "green", "blue")) == (1, 2, 3)
        assert_array_equal(scene.read_valid(WHOLE), values[3] > 0)


def test_a_tagged_nodata_value_hides_pixels_that_hold_it_in_all_bands(tmp_path):
    values = np.ones((3, ROWS, COLS), np.uint8)
    values[:, 5, 5] = values[0, 6, 6] = 0
    write_raster(tmp_path / "scene.tif", RasterSpec(nodata=0), values=values)

    with open_scene(tmp_path / "scene.tif") as scene:
        valid = scene.read_valid(WHOLE)

    assert np.argwhere(~valid).tolist() == [[5, 5]]


@pytest.mark.parametrize(("tagged", "dtype"), [(None, "uint8"), (7, "uint8"), (7, "float32")])
def test_a_given_nodata_value_replaces_the_tagged_one(tmp_path, tagged, dtype):
    values = np.ones((3, ROWS, COLS), dtype)
    values[:, 5, 5] = 0
    values[:, 6, 6] = 7
    write_raster(tmp_path / "scene.tif", RasterSpec(nodata=tagged), values=values)

    with open_scene(tmp_path / "scene.tif", SceneOptions(nodata=0)) as scene:
        valid = scene.read_valid(WHOLE)

    assert np.argwhere(~valid).tolist() == [[5, 5]]


def test_a_given_nodata_value_comes_on_top_of_a_mask(tmp_path):
    values = np.ones((3, ROWS, COLS), np.uint8)
    values[:, 5, 5] = 0
    mask = np.ones((ROWS, COLS), bool)
    mask[6, 6] = False
    write_raster(tmp_path / "scene.tif", values=values, mask=mask)

    with open_scene(tmp_path / "scene.tif", SceneOptions(nodata=0)) as scene:
        valid = scene.read_valid(WHOLE)

    assert np.argwhere(~valid).tolist() == [[5, 5], [6, 6]]


def test_a_given_nodata_value_of_nan_hides_nothing_more_than_nan(tmp_path):
    values = np.ones((1, ROWS, COLS), np.float32)
    values[:, 5, 5] = np.nan
    write_raster(tmp_path / "scene.tif", values=values)

    with open_scene(tmp_path / "scene.tif", SceneOptions(nodata=np.nan)) as scene:
        valid = scene.read_valid(WHOLE)

    assert np.argwhere(~valid).tolist() == [[5, 5]]


@pytest.mark.parametrize(
    ("nodata", "sentence"),
    [
        (-9999, "--nodata -9999, a value that {} cannot hold; expected a whole number in 0..255."),
        (0.5, "--nodata 0.5, a value that {} cannot hold; expected a whole number in 0..255."),
        (np.nan, "--nodata nan, a value that {} cannot hold; expected a whole number in 0..255."),
    ],
)
def test_a_nodata_value_that_no_pixel_can_hold_is_refused(tmp_path, nodata, sentence):
    write_raster(tmp_path / "scene.tif")

    with pytest.raises(InputError) as refusal:
        open_scene(tmp_path / "scene.tif", SceneOptions(nodata=nodata))

    assert str(refusal.value) == sentence.format(tmp_path / "scene.tif")


def test_a_nan_in_any_band_of_the_file_makes_a_pixel_invalid(tmp_path):
    spec = RasterSpec(bands=5, dtype="float32")
    values = noise(spec)
    values[4, 3, 4] = np.nan
    write_raster(tmp_path / "scene.tif", spec, values=values)

    with open_scene(tmp_path / "scene.tif") as scene:
        pixels = scene.read(WHOLE, (1, 2, 3))

    assert_array_equal(pixels.values, values[:3])
    assert np.argwhere(~pixels.valid).tolist() == [[3, 4]]


def test_bands_given_by_the_user_win(tmp_path):
    write_raster(tmp_path / "scene.tif", RasterSpec(bands=5))
    given = {"red": 5, "green": 3, "blue": 1}

    with open_scene(tmp_path / "scene.tif", SceneOptions(bands=given)) as scene:
        assert scene.choose_bands(("red", "green", "blue")) == (5, 3, 1)


def test_a_band_number_that_the_file_lacks_is_refused(tmp_path):
    write_raster(tmp_path / "scene.tif")

    with pytest.raises(BandError) as refusal:
        open_scene(tmp_path / "scene.tif", SceneOptions(bands={"red": 4}))

    assert str(refusal.value) == (
        f"--bands red=4, but {tmp_path / 'scene.tif'} has 3 bands; expected a number in 1..3."
    )


def test_a_palette_is_refused_as_an_image(tmp_path):
    path = tmp_path / "scene.tif"
    write_raster(path, RasterSpec(bands=1))
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {0: (1, 2, 3, 255)})

    with open_scene(path) as scene, pytest.raises(BandError) as refusal:
        scene.choose_bands(("red", "green", "blue"))

    assert str(refusal.value) == (
        f"{path} is a palette image: its values are codes, not brightness; expected an image. "
        "Turn it into colours first with gdal_translate -expand rgb."
    )


def test_complex_pixels_are_refused(tmp_path):
    path = tmp_path / "sar.tif"
    write_raster(path, RasterSpec(bands=1, dtype="complex64"))

    with pytest.raises(DataError) as refusal:
        open_scene(path)

    assert str(refusal.value) == (
        f"{path} holds complex numbers; expected an image of real numbers. Derive one first, "
        f"e.g. gdal_translate DERIVED_SUBDATASET:AMPLITUDE:{path} amplitude.tif."
    )


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError) as refusal:
        open_scene(tmp_path / "nowhere.tif")

    assert str(refusal.value) == (
        f"{tmp_path / 'nowhere.tif'} does not exist; expected a raster file."
    )


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "scene.tif").touch()

    with pytest.raises(DataError) as refusal:
        open_scene(tmp_path / "scene.tif")

    assert str(refusal.value) == (
        f"{tmp_path / 'scene.tif'} is empty (0 bytes); expected a raster file. Copy it again."
    )


@pytest.mark.parametrize("name", ["notes.txt", ""])
def test_what_is_not_a_raster_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("not a raster")
    path = tmp_path / name

    with pytest.raises(DataError) as refusal:
        open_scene(path)

    assert str(refusal.value) == (
        f"{path} cannot be opened as a raster; expected a file that GDAL reads, such as GeoTIFF, "
        f"VRT or JPEG 2000. See what gdalinfo says about it: gdalinfo {path}."
    )


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw", "jpeg"])
def test_a_file_cut_short_says_where_it_cannot_be_read(tmp_path, capfd, compress):
    path = tmp_path / "scene.tif"
    write_raster(tmp_path / "whole.tif", RasterSpec(rows=512, cols=256))
    copy_raster(tmp_path / "whole.tif", path, driver="COG", BLOCKSIZE=128, COMPRESS=compress)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])

    with open_scene(path) as scene:
        scene.read(Window(0, 0, Size(100, 100)), (1, 2, 3))
        with pytest.raises(DataError) as refusal:
            scene.read(Window(300, 10, Size(100, 100)), (1, 2, 3))
        with pytest.raises(DataError):
            scene.radiometry((1, 2, 3))

    assert str(refusal.value) == (
        f"{path} cannot be read at rows 300 to 399, columns 10 to 109; expected a complete file. "
        "It is damaged or cut short: copy it again from its source."
    )
    assert capfd.readouterr().err == ""


def test_a_mask_cut_off_is_damage_like_any_other(tmp_path):
    path, mask = tmp_path / "scene.tif", np.ones((300, 200), bool)
    write_raster(path, RasterSpec(rows=300, cols=200), mask=mask)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 60])

    with open_scene(path) as scene, pytest.raises(DataError) as refusal:
        scene.read(Window(0, 0, Size(300, 200)), (1, 2, 3))

    assert str(refusal.value).startswith(f"{path} cannot be read at rows 0 to 299, columns 0 to")


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_name_that_is_not_in_utf8_is_refused(tmp_path):
    with pytest.raises(InputError) as refusal:
        open_scene(os.fsdecode(b"\xfcml.tif"))

    assert str(refusal.value) == (
        "the file name '\\udcfcml.tif' is not in UTF-8; expected one that is. Rename it."
    )


def test_a_scene_without_a_valid_pixel_has_no_radiometry(tmp_path):
    path = tmp_path / "scene.tif"
    write_raster(path, RasterSpec(nodata=0), values=np.zeros((3, ROWS, COLS), np.uint8))

    with open_scene(path) as scene:
        assert not scene.has_valid(WHOLE)
        with pytest.raises(EmptySceneError) as refusal:
            scene.radiometry((1, 2, 3))

    assert str(refusal.value) == (
        f"{path} has no valid pixel; expected pixels that are neither nodata, masked, "
        "transparent nor NaN. Check its nodata value with gdalinfo; --nodata gives another."
    )


def test_one_valid_pixel_between_the_decimated_ones_is_found(tmp_path):
    values = np.zeros((1, 3000, 2100), np.uint8)
    values[0, 2501, 1701] = 9
    write_raster(tmp_path / "scene.tif", RasterSpec(nodata=0), values=values, compress="deflate")

    with open_scene(tmp_path / "scene.tif") as scene:
        assert scene.radiometry((1,)) == Radiometry((9.0,), (9.0,))
        assert scene.has_valid(Window(2400, 1600, Size(512, 512)))
        assert not scene.has_valid(Window(0, 0, Size(512, 512)))


def test_a_scene_of_one_pixel_works(tmp_path):
    path = tmp_path / "scene.tif"
    written = write_raster(path, RasterSpec(rows=1, cols=1))
    window = Window(0, 0, Size(32, 32))

    with open_scene(path) as scene:
        radiometry = scene.radiometry((1, 2, 3))
        pixels = scene.read(window, (1, 2, 3))

        assert scene.has_valid(window)
        assert scene.valid_share(window) == pytest.approx(1 / 1024)
    assert_array_equal(pixels.values[:, 0, 0], written[:, 0, 0])
    assert_array_equal(radiometry.scale(written), np.full((3, 1, 1), 0.5, np.float32))


def test_radiometry_is_the_percentiles_of_the_finite_valid_pixels(tmp_path):
    values = np.arange(ROWS * COLS, dtype=np.float32).reshape(1, ROWS, COLS)
    values[0, 0, :3] = np.inf, -np.inf, np.nan
    values[0, -1] = 1e30
    mask = np.ones((ROWS, COLS), bool)
    mask[-1] = False
    write_raster(tmp_path / "scene.tif", values=values, mask=mask)

    with open_scene(tmp_path / "scene.tif") as scene:
        radiometry = scene.radiometry((1,))

    low, high = np.percentile(np.arange(3, (ROWS - 1) * COLS), (1, 99))
    assert radiometry.low == pytest.approx((low,))
    assert radiometry.high == pytest.approx((high,))


def test_digital_numbers_are_scaled_per_band_and_clipped():
    radiometry = Radiometry((10.0, 0.0), (20.0, 1000.0))
    values = np.array([[[0, 10, 15, 20, 99]], [[0, 500, 1000, 2000, 250]]], np.uint16)

    scaled = radiometry.scale(values)

    assert scaled.dtype == np.float32
    expected = [[[0, 0, 0.5, 1, 1]], [[0, 0.5, 1, 1, 0.25]]]
    assert_array_equal(scaled, np.array(expected, np.float32))


def test_the_preview_keeps_the_shape_of_the_scene(tmp_path):
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=300, cols=40))

    with open_scene(tmp_path / "scene.tif") as scene:
        preview = scene.preview((3, 2, 1), longest_px=100)

    assert preview.values.shape == (3, 100, 13)
    assert preview.valid.shape == (100, 13)


def test_the_valid_share_follows_the_mask_and_the_edge(tmp_path):
    mask = np.zeros((ROWS, COLS), bool)
    mask[:30] = True
    write_raster(tmp_path / "scene.tif", mask=mask)

    with open_scene(tmp_path / "scene.tif") as scene:
        assert scene.valid_share(Window(0, 0, Size(30, 10))) == 1
        assert scene.valid_share(Window(20, 0, Size(20, 10))) == 0.5
        assert scene.valid_share(Window(0, 0, Size(30, 160))) == 0.5
        assert scene.valid_share(Window(40, 0, Size(20, 10))) == 0


def test_a_scene_survives_pickling(masked):
    with open_scene(masked, SceneOptions(bands={"red": 2})) as scene:
        pickled = pickle.dumps(scene)
        expected = scene.read(WHOLE, (1, 2, 3))

        with pickle.loads(pickled) as again:
            pixels = again.read(WHOLE, (1, 2, 3))

            assert again.digest() == scene.digest()
            assert again.choose_bands(("red",)) == (2,)
    assert_array_equal(pixels.values, expected.values)
    assert_array_equal(pixels.valid, expected.valid)


def test_a_file_whose_place_does_not_matter_is_read_without_one(tmp_path):
    path = tmp_path / "picture.tif"
    values = write_raster(path, RasterSpec(crs=None, transform=None))

    with open_scene(path, SceneOptions(placed=False)) as scene:
        pixels = pickle.loads(pickle.dumps(scene)).read(
            WHOLE, scene.choose_bands(("red", "green", "blue"))
        )

    assert_array_equal(pixels.values, values)
    assert scene.grid.size == WHOLE.size
    assert not scene.grid.crs


def test_the_digest_tells_files_apart(tmp_path):
    write_raster(tmp_path / "one.tif")
    write_raster(tmp_path / "two.tif", RasterSpec(transform=SOUTH_UP))

    with open_scene(tmp_path / "one.tif") as one, open_scene(tmp_path / "two.tif") as two:
        assert one.digest() != two.digest()


def test_tags_and_path_are_kept_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_raster(Path("scene.tif"), RasterSpec(tags={"SENSOR": "drone"}))

    with open_scene("scene.tif") as scene:
        assert scene.path == "scene.tif"
        assert scene.tags["SENSOR"] == "drone"
