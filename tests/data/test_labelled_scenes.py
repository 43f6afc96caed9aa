import pickle
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from numpy.testing import assert_array_equal
from rasters import RasterSpec, write_raster

from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.label_names import LabelOptions
from earthgate_geo.data.labelled_scenes import Reading, open_labelled
from earthgate_geo.data.pairs import Pair, open_pairs
from earthgate_geo.data.patches import PatchDataset
from earthgate_geo.errors import DataError, EarthgateError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.raster.grid import Size, Window

WHOLE = Window(0, 0, Size(60, 80))
READING = Reading(patch_px=128)
WATER = ClassTable((LandClass(0, "land", "#000000"), LandClass(1, "water", "#0000ff")))


def shapes(path, boxes, *, crs="EPSG:32633", to="EPSG:32633", field="class"):
    """Write boxes in pixels (left, top, right, bottom) of the usual scene, by class."""
    corners = [
        shapely.box(
            *(Affine(0.5, 0, 5e5, 0, -0.5, 5.2e6) @ b[:2]),
            *(Affine(0.5, 0, 5e5, 0, -0.5, 5.2e6) @ b[2:]),
        )
        for b, _ in boxes
    ]
    frame = gpd.GeoDataFrame({field: [name for _, name in boxes]}, geometry=corners, crs=crs)
    (frame.to_crs(to) if crs else frame).to_file(path)


@pytest.fixture
def folder(tmp_path):
    """Two scenes with vectors, in two formats and CRSs."""
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "b.tif", RasterSpec(seed=1))
    shapes(tmp_path / "a_labels.gpkg", [((0, 0, 20, 30), "roof"), ((40, 0, 60, 30), "lawn")])
    shapes(tmp_path / "b_labels.geojson", [((10, 10, 30, 20), "pond")], to="EPSG:4326")
    return tmp_path


def opened(folder, reading=READING, **changes):
    pairs, classes = open_pairs(folder)
    return open_labelled(pairs, classes, replace(reading, **changes), monitor=SilentMonitor())


def refusal(folder, **changes):
    with pytest.raises(EarthgateError) as caught:
        opened(folder, **changes)
    return caught.value


def read(scene, window=WHOLE):
    return scene.patches[0].labels.read(window)


def test_classes_are_the_names_in_all_files_in_their_order(folder):
    scenes, classes = opened(folder)

    assert classes.names == ("lawn", "pond", "roof")
    first, second = map(read, scenes)
    assert (first[:30, :20] == 2).all()
    assert (first[:30, 40:60] == 0).all()
    assert (first == UNKNOWN).sum() == 60 * 80 - 30 * 40
    assert (second[11:19, 11:29] == 1).all()
    assert scenes[0].grid.crs.to_epsg() == 32633


def test_a_folder_that_names_its_classes_decides(folder):
    (folder / "classes.json").write_text('{"0": "pond", "1": "roof", "2": "lawn"}')

    scenes, classes = opened(folder)

    assert classes.names == ("pond", "roof", "lawn")
    assert (read(scenes[0])[:30, :20] == 1).all()


def test_a_map_of_names_joins_classes(folder):
    options = LabelOptions(label_map={"lawn": "ground", "pond": "ground", "roof": "building"})

    scenes, classes = opened(folder, labels=options)

    assert classes.names == ("building", "ground")
    assert (read(scenes[1])[11:19, 11:29] == 1).all()


def test_the_rest_may_be_a_class_where_shapes_are_all_there_is_of_theirs(folder):
    options = LabelOptions(label_class="thing")

    scenes, classes = opened(folder, labels=options, rest="nothing")

    labels = read(scenes[0])
    assert classes.names == ("nothing", "thing")
    assert (labels == 1).sum() == 1200
    assert (labels == 0).sum() == 60 * 80 - 1200


def test_one_class_alone_cannot_be_told_apart(folder):
    assert str(refusal(folder, labels=LabelOptions(label_class="thing"))) == (
        "labels that name thing and no other class; expected two classes or more to tell apart. "
        "Say what the ground without labels is, e.g. --label-rest background."
    )


def test_a_raster_on_its_scenes_pixels_is_codes_even_where_it_calls_them_nodata(tmp_path):
    labels = np.random.default_rng(0).choice([0, 1, OTHER, UNKNOWN], (1, 60, 80)).astype(np.uint8)
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "labels.tif", RasterSpec(nodata=0), values=labels)
    pairs = [Pair(tmp_path / "a.tif", tmp_path / "labels.tif")]

    scenes, _ = open_labelled(pairs, WATER, READING, monitor=SilentMonitor())

    assert_array_equal(read(scenes[0]), labels[0])


def test_a_raster_of_other_pixels_is_brought_onto_the_scene(tmp_path):
    coarse = np.kron([[0, 1], [1, 0]], np.ones((8, 10), int)).astype(np.uint8)[None]
    place = Affine(2, 0, 500000, 0, -2, 5200000)
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "labels.tif", RasterSpec(transform=place), values=coarse)
    pairs = [Pair(tmp_path / "a.tif", tmp_path / "labels.tif")]

    scenes, _ = open_labelled(pairs, WATER, READING, monitor=SilentMonitor())

    assert_array_equal(read(scenes[0]), np.kron(coarse[0], np.ones((4, 4), np.uint8))[:60, :80])


def test_codes_are_named_by_a_map_where_no_file_names_them(tmp_path):
    write_raster(tmp_path / "a.tif")
    labels = np.full((1, 60, 80), 7, np.uint8)
    labels[:, :9] = 3
    write_raster(tmp_path / "a_labels.tif", values=labels)
    options = LabelOptions(label_map={"7": "sea", "3": "beach"})

    scenes, classes = opened(tmp_path, labels=options)

    assert classes.names == ("beach", "sea")
    assert_array_equal(read(scenes[0]), np.where(labels[0] == 3, 0, 1))


def test_a_code_that_means_nothing_is_told_before_any_training(tmp_path):
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "a_labels.tif", values=np.full((1, 60, 80), 7, np.uint8))
    (tmp_path / "classes.json").write_text('{"0": "land", "1": "water"}')

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'a_labels.tif'} holds the label 7; expected one of 254, 255, 0, 1."
    )


def test_patches_hold_a_label_on_a_valid_pixel(tmp_path):
    mask = np.ones((64, 64), np.uint8)
    mask[:, 32:] = 0
    write_raster(tmp_path / "a.tif", RasterSpec(rows=64, cols=64), mask=mask)
    shapes(
        tmp_path / "a_labels.gpkg",
        [((0, 0, 10, 10), "roof"), ((40, 0, 50, 10), "roof"), ((0, 40, 10, 50), "lawn")],
    )

    scenes, _ = opened(tmp_path, patch_px=32)

    assert [p.window for p in scenes[0].patches] == [
        Window(0, 0, Size(32, 32)),
        Window(32, 0, Size(32, 32)),
    ]


def test_patches_carry_their_labels_to_other_processes(folder):
    scenes, _ = opened(folder)

    copies = pickle.loads(pickle.dumps([scene.patches for scene in scenes]))

    for scene, patches in zip(scenes, copies, strict=True):
        assert_array_equal(patches[0].labels.read(WHOLE), read(scene))


def test_every_file_is_checked_and_each_problem_has_its_line(folder):
    write_raster(folder / "c.tif", RasterSpec(crs=None, transform=None))
    shapes(folder / "c_labels.gpkg", [((0, 0, 20, 30), "roof")])
    write_raster(folder / "d.tif")
    write_raster(folder / "e.tif")
    shapes(folder / "e_labels.gpkg", [((9000, 0, 9020, 30), "roof")])
    write_raster(folder / "f.tif", RasterSpec(bands=5))
    shapes(folder / "f_labels.gpkg", [((0, 0, 20, 30), "roof")])
    (folder / "g.tif").write_bytes(b"no raster")
    shapes(folder / "g_labels.gpkg", [((0, 0, 20, 30), "roof")])
    write_raster(folder / "h.tif")
    shapes(folder / "h_labels.gpkg", [((0, 0, 20, 30), "roof")], field="kind")

    error = refusal(folder)

    assert isinstance(error, DataError)
    assert error.exit_code == 2
    assert str(error) == (
        "6 of 8 scenes cannot train; expected scenes and labels that fit each other. The lines "
        "below say what is wrong with each."
    )
    causes = {
        "c.tif": "has neither a transform nor a CRS; expected a georeferenced raster.",
        "d.tif": "has no labels; expected labelled images to train on.",
        "e_labels.gpkg": "has no label inside the scene; expected labels that overlap it.",
        "f.tif": "has 5 bands",
        "g.tif": "cannot be opened as a raster; expected a file that GDAL reads",
        "h_labels.gpkg": "has the fields kind; expected to know which holds the class.",
    }
    assert len(error.__notes__) == len(causes)
    for name, cause in causes.items():
        assert any(name in note and cause in note for note in error.__notes__), name


def test_a_single_problem_is_the_error_itself(folder):
    write_raster(folder / "c.tif")

    assert str(refusal(folder)) == (
        f"{folder / 'c.tif'} has no labels; expected labelled images to train on."
    )


def test_a_class_that_the_folder_does_not_name_is_told_with_its_file(folder):
    (folder / "classes.json").write_text('{"0": "roof", "1": "lawn"}')

    assert str(refusal(folder)) == (
        f"field class of {folder / 'b_labels.geojson'} names classes that are not in classes.json: "
        "pond; expected one of roof, lawn. Rename them with --label-map, or add them to "
        "classes.json."
    )


def test_a_crs_may_be_assumed(folder):
    write_raster(folder / "a.tif", RasterSpec(crs=None))

    scenes, _ = opened(folder, assume_crs="EPSG:32633")

    assert (read(scenes[0])[:30, :20] == 2).all()


def test_options_of_vectors_are_refused_where_there_is_none(tmp_path):
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "a_labels.tif", values=np.zeros((1, 60, 80), np.uint8))

    error = refusal(tmp_path, rest="nothing")

    assert isinstance(error, InputError)
    assert str(error) == (
        "--label-field, --label-class or --label-rest, but all labels are rasters; expected "
        "vector labels. Say which code is which class, e.g. --label-map 1=building,0=background."
    )


def test_real_footprints_train_on_their_scene(shared_data):
    scenes = shared_data / "scenes"
    pair = Pair(scenes / "kampala_ug_scene.tif", scenes / "kampala_ug_buildings.gpkg")
    reading = replace(
        READING, labels=LabelOptions(label_class="building"), rest="ground", patch_px=512
    )

    (scene,), classes = open_labelled([pair], None, reading, monitor=SilentMonitor())

    assert classes.names == ("building", "ground")
    assert 7 <= len(scene.patches) < 45
    assert isinstance(scene.patches[0].pair.image, Path)


def test_a_scene_where_nothing_is_drawn_is_all_rest(folder):
    write_raster(folder / "c.tif")
    (folder / "c_labels.geojson").write_text('{"type": "FeatureCollection", "features": []}')

    scenes, classes = opened(folder, rest="ground")

    assert classes.names == ("ground", "lawn", "pond", "roof")
    assert (read(scenes[2]) == 0).all()


def test_a_scene_where_nothing_is_drawn_is_refused_without_a_rest(folder):
    write_raster(folder / "c.tif")
    empty = gpd.GeoDataFrame({"class": []}, geometry=[], crs="EPSG:32633")
    empty.to_file(folder / "c_labels.gpkg", geometry_type="Polygon")

    assert str(refusal(folder)) == (
        f"{folder / 'c_labels.gpkg'} has no label inside the scene; expected labels that overlap "
        "it. Look at both in QGIS; one of the files may name a wrong CRS."
    )


def test_shapes_elsewhere_are_refused_whatever_the_rest(folder):
    write_raster(folder / "c.tif")
    shapes(folder / "c_labels.gpkg", [((9000, 0, 9020, 30), "roof")])

    assert "c_labels.gpkg has no label inside the scene" in str(refusal(folder, rest="ground"))


def test_every_labelled_patch_of_a_long_scene_trains(tmp_path):
    scene = RasterSpec(bands=1, rows=64, cols=8256)
    write_raster(tmp_path / "a.tif", scene)
    write_raster(tmp_path / "labels.tif", scene, values=np.zeros((1, 64, 8256), np.uint8))
    pairs = [Pair(tmp_path / "a.tif", tmp_path / "labels.tif")]

    (scene,), _ = open_labelled(
        pairs, WATER, replace(READING, patch_px=64), monitor=SilentMonitor()
    )

    assert len(scene.patches) == 129


def test_a_label_beside_the_valid_pixels_of_a_patch_does_not_count(tmp_path):
    mask = np.ones((64, 64), np.uint8)
    mask[:32, :32] = 0
    write_raster(tmp_path / "a.tif", RasterSpec(rows=64, cols=64), mask=mask)
    shapes(tmp_path / "a_labels.gpkg", [((0, 0, 20, 20), "roof"), ((40, 40, 50, 50), "lawn")])

    scenes, _ = opened(tmp_path, patch_px=48)
    shapes(tmp_path / "a_labels.gpkg", [((0, 0, 20, 20), "roof"), ((0, 20, 20, 32), "lawn")])
    unseen, _ = opened(tmp_path, patch_px=48)

    assert (len(scenes[0].patches), len(unseen[0].patches)) == (1, 0)


@pytest.mark.parametrize("shift_m", [0, 0.4])
@pytest.mark.parametrize(
    ("label_map", "meant"),
    [({"1": "house", "2": "road"}, UNKNOWN), ({"0": "bare", "1": "house", "2": "road"}, 0)],
)
def test_nodata_of_labels_is_unknown_unless_the_map_names_it(tmp_path, shift_m, label_map, meant):
    codes = np.random.default_rng(0).integers(0, 3, (1, 60, 80), dtype=np.uint8)
    place = Affine(0.5, 0, 500000 + shift_m, 0, -0.5, 5200000)
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "a_labels.tif", RasterSpec(nodata=0, transform=place), values=codes)

    scenes, classes = opened(tmp_path, labels=LabelOptions(label_map=label_map))

    shown = read(scenes[0])[:, 1:]
    there = codes[0, :, 1:] if shift_m == 0 else codes[0, :, :-1]
    road = classes.value("road")
    assert_array_equal(shown, np.array([meant, road - 1, road], np.uint8)[there])


def test_the_table_of_a_raster_names_its_nodata_too(tmp_path):
    codes = np.random.default_rng(0).integers(0, 2, (1, 60, 80), dtype=np.uint8)
    tags = {"EARTHGATE_CLASSES": WATER.to_json()}
    place = Affine(0.5, 0, 500000.4, 0, -0.5, 5200000)
    for name, transform in (("a", RasterSpec().transform), ("b", place)):
        write_raster(tmp_path / f"{name}.tif")
        spec = RasterSpec(nodata=0, tags=tags, transform=transform)
        write_raster(tmp_path / f"{name}_labels.tif", spec, values=codes)

    scenes, _ = opened(tmp_path)

    assert_array_equal(read(scenes[0]), codes[0])
    assert_array_equal(read(scenes[1])[:, 1:], codes[0, :, :-1])


def test_labels_that_are_not_a_number_are_unknown(tmp_path):
    codes = np.random.default_rng(0).integers(0, 2, (1, 60, 80)).astype(np.float32)
    codes[:, :9] = np.nan
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "a_labels.tif", RasterSpec(nodata=np.nan), values=codes)

    scenes, _ = opened(tmp_path, labels=LabelOptions(label_map={"1": "house", "0": "bare"}))

    assert_array_equal(read(scenes[0]), np.nan_to_num(codes[0], nan=UNKNOWN))


@pytest.mark.parametrize("shift_m", [0, 0.4])
def test_codes_that_a_map_leaves_out_keep_their_meaning(tmp_path, shift_m):
    codes = np.random.default_rng(0).choice([0, 1, 7, OTHER], (1, 60, 80)).astype(np.uint8)
    place = Affine(0.5, 0, 500000 + shift_m, 0, -0.5, 5200000)
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "a_labels.tif", RasterSpec(transform=place), values=codes)
    (tmp_path / "classes.json").write_text('{"0": "land", "1": "water"}')

    scenes, _ = opened(tmp_path, labels=LabelOptions(label_map={"7": "water"}))

    there = codes[0, :, 1:] if shift_m == 0 else codes[0, :, :-1]
    assert_array_equal(read(scenes[0])[:, 1:], np.where(there == 7, 1, there))


def test_a_map_translates_once(tmp_path):
    codes = np.random.default_rng(0).integers(0, 2, (1, 60, 80), dtype=np.uint8)
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "a_labels.tif", values=codes)
    write_raster(tmp_path / "b.tif")
    shapes(tmp_path / "b_labels.gpkg", [((0, 0, 80, 60), "tree")])
    label_map = {"0": "rock", "1": "tree", "tree": "woods"}

    scenes, classes = opened(tmp_path, labels=LabelOptions(label_map=label_map))

    assert classes.names == ("rock", "tree", "woods")
    assert_array_equal(read(scenes[0]), codes[0])
    assert (read(scenes[1]) == 2).all()


def test_a_code_without_a_name_is_told_where_no_file_lists_classes(tmp_path):
    place = Affine(0.5, 0, 500000.4, 0, -0.5, 5200000)
    codes = np.random.default_rng(0).integers(0, 3, (1, 60, 80), dtype=np.uint8)
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "a_labels.tif", RasterSpec(transform=place), values=codes)

    assert str(refusal(tmp_path, labels=LabelOptions(label_map={"0": "a", "1": "b"}))) == (
        f"{tmp_path / 'a_labels.tif'} holds codes without a name: 2; expected one of a, b. Name "
        "them with --label-map."
    )


def test_blank_text_is_no_class(folder):
    write_raster(folder / "c.tif")
    shapes(folder / "c_labels.gpkg", [((0, 0, 9, 9), "roof"), ((9, 9, 20, 20), " ")])

    scenes, classes = opened(folder)

    assert classes.names == ("lawn", "pond", "roof")
    third = read(scenes[2])
    assert (third[:9, :9] == 2).all()
    assert (third != UNKNOWN).sum() == 81


def test_a_damaged_label_file_is_told_with_all_other_problems(folder):
    whole = (folder / "a_labels.gpkg").read_bytes()
    (folder / "a_labels.gpkg").write_bytes(whole[: len(whole) // 3])
    (folder / "b_labels.geojson").unlink()
    shapes(folder / "b_labels.fgb", [((0, 0, 20, 30), "roof")] * 90)
    whole = (folder / "b_labels.fgb").read_bytes()
    (folder / "b_labels.fgb").write_bytes(whole[: len(whole) * 2 // 3])

    first, second = refusal(folder).__notes__
    assert first == (
        f"{folder / 'a.tif'}: {folder / 'a_labels.gpkg'} can be opened neither as a vector nor as "
        "a raster; expected a complete file such as GeoPackage, GeoJSON, Shapefile or GeoTIFF."
    )
    assert second == (
        f"{folder / 'b.tif'}: {folder / 'b_labels.fgb'} cannot be read; expected a complete file. "
        "It is damaged or cut short: copy it again from its source."
    )


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files by /proc")
def test_no_label_file_stays_open(tmp_path):
    place = Affine(0.25, 0, 500000, 0, -0.25, 5200000)
    for name in "abc":
        write_raster(tmp_path / f"{name}.tif")
        codes = np.zeros((1, 120, 160), np.uint8)
        write_raster(tmp_path / f"{name}_labels.tif", RasterSpec(transform=place), values=codes)
    (tmp_path / "classes.json").write_text('{"0": "land", "1": "water"}')

    scenes, _ = opened(tmp_path)
    patches = PatchDataset(
        [patch for scene in scenes for patch in scene.patches],
        codes=LabelCodes.of_indices(2),
    )
    masks = [patches[index]["mask"] for index in range(3)]

    files = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert not any(path.is_relative_to(tmp_path) for path in files)
    assert not torch.stack(masks).any()
