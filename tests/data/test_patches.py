import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasters import NORTH_UP, RasterSpec, write_raster

from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.pairs import Pair, open_pairs
from earthgate_geo.data.patches import (
    Patch,
    PatchDataset,
    check_heights,
    cut,
    joint_radiometry,
    patches_of,
)
from earthgate_geo.errors import BandError, DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import SceneOptions, open_scene

UNPLACED = {"crs": None, "transform": None}
WHOLE = Window(0, 0, Size(60, 80))
ROWS = ((0, 1, 2), (3, 4, 5))
"""Patches of an image of 60 x 80 px in squares of about 30."""


@pytest.fixture
def pair(tmp_path):
    """An image without a place, and labels 0..3, OTHER and UNKNOWN in a PNG."""
    write_raster(tmp_path / "image.tif", RasterSpec(**UNPLACED))
    labels = np.random.default_rng(5).choice([0, 1, 2, 3, OTHER, UNKNOWN], (60, 80))
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "labels.png")
    return Pair(tmp_path / "image.tif", tmp_path / "labels.png")


def pixels(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            return source.read()


def item_of(path, *, window=None, **options):
    return PatchDataset([Patch(Pair(path), window)], **options)[0]


def windows_of(rows, cols, patch_px, folder):
    path = folder / "image.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">'
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    return [patch.window for patch in cut([Pair(path)], patch_px)]


def refusal(kind, path, **options):
    with pytest.raises(kind) as caught:
        item_of(path, **options)
    return str(caught.value)


def test_an_isprs_tile_gives_the_144_patches_of_the_papers(tmp_path):
    windows = windows_of(6000, 6000, 512, tmp_path)

    starts = [*range(0, 5121, 512), 5488]
    assert windows == [Window(r, c, Size(512, 512)) for r in starts for c in starts]
    assert len(windows) == 144


@given(rows=st.integers(1, 50), cols=st.integers(1, 50), patch_px=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_patches_cover_an_image_and_never_leave_it(tmp_path_factory, rows, cols, patch_px):
    windows = windows_of(rows, cols, patch_px, tmp_path_factory.mktemp("image"))

    seen = np.zeros((rows, cols), np.bool_)
    for window in windows:
        assert window == window.clipped(Size(rows, cols))
        assert window.size == Size(min(rows, patch_px), min(cols, patch_px))
        seen[window.row : window.row_stop, window.col : window.col_stop] = True
    assert seen.all()
    assert len(windows) == -(-rows // patch_px) * -(-cols // patch_px)


def test_patches_of_several_pairs_stay_with_their_pair(pair, tmp_path):
    Image.new("L", (40, 20)).save(tmp_path / "small.png")
    small = Pair(tmp_path / "small.png", None, {"domain": "a"})

    patches = cut([pair, small], 60)

    assert [(patch.pair, patch.window) for patch in patches] == [
        (pair, Window(0, 0, Size(60, 60))),
        (pair, Window(0, 20, Size(60, 60))),
        (small, Window(0, 0, Size(20, 40))),
    ]


@given(rows=st.integers(1, 60), cols=st.integers(1, 60), patch_px=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_patches_that_train_hold_every_pixel_once(tmp_path_factory, rows, cols, patch_px):
    folder = tmp_path_factory.mktemp("image")
    write_raster(folder / "image.tif", RasterSpec(rows=rows, cols=cols))

    with open_scene(folder / "image.tif") as image:
        patches = patches_of(Pair(folder / "image.tif"), image, patch_px)

    seen = np.zeros((rows, cols), int)
    for patch in patches:
        at = patch.window
        seen[at.row : at.row_stop, at.col : at.col_stop] += 1
        assert at.size.rows in range(min(rows, patch_px * 2 // 3), patch_px * 3 // 2 + 2)
    assert (seen == 1).all()


def test_scenes_of_any_resolution_are_shown_at_the_one_that_is_asked_for(tmp_path):
    labels = np.kron(np.indices((3, 4)).sum(0) % 2, np.ones((20, 20), int)).astype(np.uint8)
    values = np.stack([labels * 200 + 20] * 3).astype(np.uint8)
    write_raster(tmp_path / "image.tif", values=values)
    write_raster(tmp_path / "labels.tif", values=labels[None])
    pair = Pair(tmp_path / "image.tif", tmp_path / "labels.tif")

    with open_scene(pair.image) as image:
        patches = patches_of(pair, image, 64, gsd_m=1.0)
    item = PatchDataset(patches, codes=LabelCodes.of_indices(2))[0]

    assert [(p.window, p.network) for p in patches] == [(WHOLE, Size(30, 40))]
    assert_array_equal(item["mask"], labels[::2, ::2])
    assert_array_equal(item["image"][0], (values[0, ::2, ::2] / np.float32(255)))
    assert item["valid"].all()


def test_an_image_without_a_place_keeps_its_pixels(pair):
    with open_scene(pair.image, SceneOptions(placed=False)) as image:
        assert patches_of(pair, image, 100, gsd_m=1.0) == [Patch(pair, WHOLE)]


def test_images_of_one_scene_share_its_statistics(tmp_path):
    mosaic = np.linspace(0, 60000, 3 * 40 * 80).reshape(3, 40, 80).astype(np.uint16)
    write_raster(tmp_path / "mosaic.tif", values=mosaic)
    pairs = []
    for index, name in enumerate(("left", "right")):
        part = np.ascontiguousarray(mosaic[:, :, index * 40 : index * 40 + 40])
        write_raster(tmp_path / f"{name}.tif", RasterSpec(**UNPLACED), values=part)
        pairs.append(Pair(tmp_path / f"{name}.tif", None, {"scene": "mosaic"}))
    alone = Pair(tmp_path / "mosaic.tif", None, {"scene": ""})

    shared = joint_radiometry([*pairs, alone])
    whole = item_of(tmp_path / "mosaic.tif", scaling="scene")["image"]
    parts = PatchDataset([Patch(p) for p in pairs], scaling="scene", radiometry=shared)

    assert set(shared) == {str(pair.image) for pair in pairs}
    joined = torch.cat([parts[0]["image"], parts[1]["image"]], 2)
    torch.testing.assert_close(joined, whole, atol=1e-6, rtol=0)
    assert torch.equal(parts.without_labels()[1]["image"], parts[1]["image"])


def slope(rows, cols):
    return np.linspace(100, 200, rows * cols, dtype=np.float32).reshape(1, rows, cols)


def test_heights_are_a_fourth_channel_between_their_percentiles(pair, tmp_path):
    heights = write_raster(tmp_path / "dsm.tif", RasterSpec(**UNPLACED), values=slope(60, 80))
    measured = Pair(pair.image, height=tmp_path / "dsm.tif")
    low, high = np.percentile(heights, (1, 99))
    patches = [Patch(measured), Patch(measured, Window(7, 11, Size(20, 30)))]

    whole, part = PatchDataset(patches, heights=True)

    expected = np.clip((heights - low) / (high - low), 0, 1)
    np.testing.assert_allclose(whole["image"][3:], expected, atol=1e-5)
    assert torch.equal(part["image"], whole["image"][:, 7:27, 11:41])
    assert_array_equal(whole["image"][:3], item_of(pair.image)["image"])


def test_an_image_without_heights_has_a_channel_that_says_so(pair):
    dataset = PatchDataset([Patch(Pair(pair.image))], heights=True)

    for item in (dataset[0], dataset.without_labels()[0]):
        assert item["image"].shape == (4, 60, 80)
        assert (item["image"][3] == NO_HEIGHT).all()


@pytest.mark.parametrize("filler", [np.nan, np.inf, -9999, -32767, -32768, 3e38])
def test_near_holes_in_heights_are_filled_and_others_stay(pair, tmp_path, filler):
    heights = slope(60, 80)
    heights[0, :4, :4] = heights[0, :, 40:] = filler
    write_raster(tmp_path / "dsm.tif", RasterSpec(**UNPLACED), values=heights)

    item = PatchDataset([Patch(Pair(pair.image, height=tmp_path / "dsm.tif"))], heights=True)[0]

    channel = item["image"][3]
    assert (channel[:, :40] >= 0).all()
    assert (channel[:, 60:] == NO_HEIGHT).all()
    assert torch.isfinite(channel).all()


def test_constant_heights_are_in_the_middle_and_none_at_all_are_no_error(pair, tmp_path):
    for value, expected in ((7, 0.5), (-9999, NO_HEIGHT)):
        values = np.full((1, 60, 80), value, np.int16)
        write_raster(tmp_path / "dsm.tif", RasterSpec(**UNPLACED), values=values)
        patch = Patch(Pair(pair.image, height=tmp_path / "dsm.tif"))

        assert (PatchDataset([patch], heights=True)[0]["image"][3] == expected).all()


def test_heights_of_another_grid_are_brought_onto_a_placed_image(tmp_path):
    write_raster(tmp_path / "image.tif")
    coarse = slope(30, 40)
    place = NORTH_UP @ Affine.scale(2)
    write_raster(tmp_path / "dsm.tif", RasterSpec(transform=place), values=coarse)
    pair = Pair(tmp_path / "image.tif", height=tmp_path / "dsm.tif")
    with open_scene(pair.image) as image:
        patches = patches_of(pair, image, 30)
        check_heights(pair, image)

    items = PatchDataset(pickle.loads(pickle.dumps(patches)), heights=True)

    joined = torch.cat([torch.cat([items[i]["image"][3] for i in row], 1) for row in ROWS])
    wanted = np.clip((coarse[0] - coarse.min()) / np.ptp(coarse), 0, 1)
    assert len(patches) == 6
    np.testing.assert_allclose(joined[::2, ::2], wanted, atol=0.05)


def test_heights_of_images_of_one_scene_share_their_percentiles(pair, tmp_path):
    pairs = []
    for index, part in enumerate(np.split(slope(120, 80), 2, axis=1)):
        write_raster(tmp_path / f"dsm{index}.tif", RasterSpec(**UNPLACED), values=part)
        row = {"scene": "one"}
        copy = tmp_path / f"{index}.tif"
        copy.write_bytes(pair.image.read_bytes())
        pairs.append(Pair(copy, None, row, tmp_path / f"dsm{index}.tif"))

    upper, lower = PatchDataset(
        [Patch(pair) for pair in pairs], radiometry=joint_radiometry(pairs), heights=True
    )

    assert float(upper["image"][3].max()) == pytest.approx(0.5, abs=0.01)
    assert float(lower["image"][3].min()) == pytest.approx(0.5, abs=0.01)


def test_heights_of_another_size_without_a_place_are_refused(pair, tmp_path):
    write_raster(tmp_path / "dsm.tif", RasterSpec(**UNPLACED), values=slope(60, 79))
    measured = Pair(pair.image, height=tmp_path / "dsm.tif")

    with pytest.raises(DataError) as refusal:
        PatchDataset([Patch(measured)], heights=True)[0]

    assert str(refusal.value) == (
        f"the heights {tmp_path / 'dsm.tif'} are 60 x 79 px, their image {pair.image} 60 x 80 px; "
        "expected one size, pixel on pixel."
    )


@pytest.mark.parametrize("window", [None, Window(7, 11, Size(20, 30))])
def test_bytes_become_0_to_1_and_labels_their_indices(pair, window):
    item = PatchDataset([Patch(pair, window)], codes=LabelCodes.of_indices(4))[0]

    at = window or WHOLE
    part = np.s_[..., at.row : at.row_stop, at.col : at.col_stop]
    assert_array_equal(item["image"], (pixels(pair.image) / np.float32(255))[part])
    assert_array_equal(item["mask"], pixels(pair.label)[0][part])
    assert item["valid"].all()
    assert {name: values.dtype for name, values in item.items()} == {
        "image": torch.float32,
        "mask": torch.int64,
        "valid": torch.bool,
    }


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_scenes_are_scaled_whole_as_mapping_scales_them(tmp_path, dtype):
    path = tmp_path / "image.tif"
    write_raster(path, RasterSpec(dtype=dtype, seed=3))
    window = Window(10, 20, Size(16, 16))
    with open_scene(path) as scene:
        expected = scene.radiometry((1, 2, 3)).scale(scene.read(window, (1, 2, 3)).values)

    item = item_of(path, window=window, scaling="scene")

    assert_array_equal(item["image"], expected)


def test_a_scene_needs_no_place_to_be_scaled(tmp_path):
    values = write_raster(tmp_path / "unplaced.tif", RasterSpec(dtype="uint16", **UNPLACED))
    write_raster(tmp_path / "placed.tif", values=values)

    unplaced, placed = (
        item_of(tmp_path / f"{name}.tif", scaling="scene") for name in ("unplaced", "placed")
    )

    assert_array_equal(unplaced["image"], placed["image"])


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_pictures_are_read_without_a_word(tmp_path, capfd, ending):
    path = tmp_path / f"picture.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(noise).save(path)

    item = item_of(path)

    assert capfd.readouterr().err == ""
    assert_array_equal(item["image"], pixels(path) / np.float32(255))


def test_transparent_pixels_are_grey_and_unknown(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (10, 12, 4), np.uint8)
    values[..., 3] = 255
    values[2:5, 3:9, 3] = 0
    Image.fromarray(values).save(tmp_path / "image.png")
    Image.fromarray(np.ones((10, 12), np.uint8)).save(tmp_path / "labels.png")
    pair = Pair(tmp_path / "image.png", tmp_path / "labels.png")

    item = PatchDataset([Patch(pair)], codes=LabelCodes.of_indices(2))[0]

    gap = values[..., 3] == 0
    assert item["image"].shape == (3, 10, 12)
    assert (item["image"][:, gap] == 0.5).all()
    assert_array_equal(item["image"][:, ~gap] * 255, values[~gap, :3].T.astype(np.float32))
    assert_array_equal(item["mask"], np.where(gap, UNKNOWN, 1))
    assert_array_equal(item["valid"], ~gap)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0), ("float32", None)])
def test_pixels_without_data_are_grey_and_do_not_move_the_scale(tmp_path, dtype, nodata):
    values = np.random.default_rng(0).uniform(100, 200, (3, 20, 20)).astype(dtype)
    values[:, 4:9, 5:10] = np.nan if nodata is None else nodata
    write_raster(tmp_path / "image.tif", RasterSpec(nodata=nodata, **UNPLACED), values=values)

    item = item_of(tmp_path / "image.tif", scaling="scene")

    assert (item["image"][:, 4:9, 5:10] == 0.5).all()
    assert not item["valid"][4:9, 5:10].any()
    assert item["valid"].sum() == 375
    shown = item["image"][:, item["valid"]]
    assert shown.min() == 0
    assert shown.max() == 1
    assert 0.4 < shown.mean() < 0.6


def test_an_image_without_a_pixel_of_data_is_all_grey(tmp_path):
    values = np.zeros((3, 8, 8), np.uint16)
    write_raster(tmp_path / "image.tif", RasterSpec(nodata=0), values=values)

    item = item_of(tmp_path / "image.tif", scaling="scene")

    assert (item["image"] == 0.5).all()
    assert not item["valid"].any()


def test_one_band_is_shown_three_times(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "image.png")

    item = item_of(tmp_path / "image.png")

    assert_array_equal(item["image"] * 255, np.stack([grey] * 3).astype(np.float32))


def test_the_file_says_which_bands_are_red_green_and_blue_unless_they_are_named(tmp_path):
    meanings = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    spec = RasterSpec(bands=4, interpretation=meanings, **UNPLACED)
    values = write_raster(tmp_path / "image.tif", spec) / np.float32(255)

    said, named = item_of(tmp_path / "image.tif"), item_of(tmp_path / "image.tif", bands=(4, 3, 2))

    assert_array_equal(said["image"], values[[2, 1, 0]])
    assert_array_equal(named["image"], values[[3, 2, 1]])


def test_labels_are_codes_even_where_their_file_calls_them_nodata(pair, tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (1, 60, 80), np.uint8)
    write_raster(tmp_path / "labels.tif", RasterSpec(nodata=0), values=labels)
    pair = Pair(pair.image, tmp_path / "labels.tif")

    item = PatchDataset([Patch(pair)], codes=LabelCodes.of_indices(2))[0]

    assert_array_equal(item["mask"], labels[0])


def test_coloured_labels_become_indices(pair, tmp_path):
    truth = np.random.default_rng(0).integers(0, 2, (60, 80))
    colours = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    Image.fromarray(colours[truth]).save(tmp_path / "colours.png")
    codes = LabelCodes(values={(255, 0, 0): 0, (0, 0, 255): 1})

    item = PatchDataset([Patch(Pair(pair.image, tmp_path / "colours.png"))], codes=codes)[0]

    assert_array_equal(item["mask"], truth)


def test_without_labels_every_pixel_is_unknown_and_no_label_file_is_opened(pair, tmp_path):
    lost = Pair(pair.image, tmp_path / "lost.png", {"domain": "a"})
    dataset = PatchDataset([Patch(lost)], codes=LabelCodes.of_indices(4)).without_labels()

    assert (dataset[0]["mask"] == UNKNOWN).all()
    assert dataset[0]["valid"].all()
    assert dataset.patches == (Patch(Pair(pair.image, None, {"domain": "a"})),)


def test_a_patch_reads_the_same_again_whatever_was_done_to_it(pair):
    dataset = PatchDataset([Patch(pair)], codes=LabelCodes.of_indices(4), scaling="scene")
    first = dataset[0]
    kept = {name: values.clone() for name, values in first.items()}
    for values in first.values():
        values.zero_()

    again = dataset[0]

    assert all(torch.equal(again[name], kept[name]) for name in kept)


def test_a_dataset_is_pickled_small_and_reads_the_same(pair):
    dataset = PatchDataset([Patch(pair)], codes=LabelCodes.of_indices(4), scaling="scene")
    item = dataset[0]

    packed = pickle.dumps(dataset)
    copy = pickle.loads(packed)

    assert len(packed) < 2000
    assert all(torch.equal(copy[0][name], item[name]) for name in item)


@pytest.mark.parametrize(
    "read",
    [
        lambda pair: cut([pair], 32),
        lambda pair: PatchDataset([Patch(pair)], codes=LabelCodes.of_indices(1))[0],
    ],
)
def test_labels_of_another_size_are_refused(pair, tmp_path, read):
    Image.new("L", (81, 60)).save(tmp_path / "wide.png")
    wide = Pair(pair.image, tmp_path / "wide.png")

    with pytest.raises(DataError) as caught:
        read(wide)

    assert str(caught.value) == (
        f"the labels {wide.label} are 60 x 81 px, their image {wide.image} 60 x 80 px; expected "
        "one size, pixel on pixel."
    )


def test_a_strange_label_is_named_with_its_file(pair):
    with pytest.raises(DataError) as caught:
        PatchDataset(
            [Patch(pair)], codes=LabelCodes(values={0: 0, 1: 1, 2: 2, 254: 254, 255: 255})
        )[0]

    assert str(caught.value) == (
        f"{pair.label} holds the label 3; expected one of 0, 1, 2, 254, 255."
    )


def test_labels_without_a_meaning_are_refused(pair):
    with pytest.raises(InputError) as caught:
        PatchDataset([Patch(pair)])

    assert str(caught.value) == (
        f"the labels {pair.label} without a table of codes; expected what their codes mean."
    )


def test_more_than_bytes_cannot_be_divided_by_255(tmp_path):
    path = tmp_path / "image.tif"
    write_raster(path, RasterSpec(dtype="uint16"))

    assert refusal(DataError, path) == (
        f"{path} holds uint16; expected bytes, to be divided by 255. Scale by percentiles "
        "instead, or convert it to bytes."
    )


@pytest.mark.parametrize("band", [0, 4])
def test_a_band_that_is_not_there_is_refused(tmp_path, band):
    path = tmp_path / "image.tif"
    write_raster(path)

    assert refusal(BandError, path, bands=(1, 2, band)) == (
        f"bands 1, 2, {band} of {path}; expected numbers in 1..3."
    )


def test_an_image_that_is_not_there_is_named():
    assert (
        refusal(InputError, Path("lost.png")) == "lost.png does not exist; expected a raster file."
    )


@pytest.mark.parametrize(
    ("name", "classes", "column"),
    [
        ("fair_buildings", 2, "label"),
        ("dubai_mbrsc", 6, "label"),
        ("dubai_mbrsc", 4, "label_common4"),
        ("dronedeploy_sample", 6, "label"),
        ("dronedeploy_sample", 4, "label_common4"),
    ],
)
def test_real_pairs_are_read_without_a_word(shared_data, capfd, name, classes, column):
    root = shared_data / name
    pairs, _ = open_pairs(root)
    some = [Pair(p.image, root / p.row[column]) for p in pairs[:: len(pairs) // 2]]
    dataset = PatchDataset(cut(some, 512), codes=LabelCodes.of_indices(classes), scaling="scene")

    items = [dataset[i] for i in range(len(dataset))]

    assert all(0 <= item["image"].min() < item["image"].max() <= 1 for item in items)
    assert sum(int((item["mask"] < classes).sum()) for item in items) > 1000
    assert capfd.readouterr().err == ""


def test_real_stacks_of_16_bits_are_read_by_their_bands(shared_data):
    root = shared_data / "hls_water_dem"
    pairs = [Pair(root / f"images/{i}.tif", root / f"labels/{i}.png") for i in ("000", "010")]
    codes = LabelCodes.of_indices(2)

    dataset = PatchDataset(cut(pairs, 128), codes=codes, bands=(4, 3, 2), scaling="scene")

    assert {int(value) for value in dataset[0]["mask"].unique()} == {0, 1}
    assert dataset[0]["image"].shape == (3, 128, 128)
    assert 0.2 < float(dataset[0]["image"].mean()) < 0.8


def test_real_labels_on_a_coarser_grid_than_their_image_are_refused(shared_data):
    root = shared_data / "lidar_rgb_ndsm" / "teak_neon"
    pair = Pair(root / "TEAK_043_rgb.tif", root / "TEAK_043_class.tif")

    with pytest.raises(DataError, match="expected one size, pixel on pixel"):
        cut([pair], 512)
