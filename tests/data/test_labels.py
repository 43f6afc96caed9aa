import pickle
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from rasters import NORTH_UP, ROTATED, SOUTH_UP, RasterSpec, write_raster
from shapely import LineString, MultiPoint, Point, Polygon, box

from earthgate_geo.data.labels import LabelLayer, LabelOptions, open_labels
from earthgate_geo.errors import ClassNameError, DataError, InputError, MissingCrsError
from earthgate_geo.metrics import OTHER
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.raster.grid import Grid, Size, Window

CLASSES = ClassTable(
    (
        LandClass(0, "building", "#ff0000"),
        LandClass(1, "road", "#888888"),
        LandClass(2, "water", "#0000ff"),
    )
)
ROWS, COLS = 60, 80
WHOLE = Window(0, 0, Size(ROWS, COLS))
UTM = rasterio.crs.CRS.from_epsg(32633)


def grid(transform: Affine = NORTH_UP) -> Grid:
    return Grid(Size(ROWS, COLS), transform, UTM)


def write_shapes(
    path: Path, shapes: list, columns: dict, *, transform: Affine = NORTH_UP, crs="EPSG:32633"
) -> Path:
    """Write shapes given in pixels (x = column, y = row) of a grid with ``transform``."""
    t = transform
    placed = [
        shapely.transform(s, lambda p: p @ [[t.a, t.d], [t.b, t.e]] + (t.c, t.f)) for s in shapes
    ]
    frame = geopandas.GeoDataFrame(columns, geometry=placed, crs="EPSG:32633")
    frame.to_crs(crs).to_file(path)
    return path


def labels_of(path: Path, transform: Affine = NORTH_UP, **options) -> LabelLayer:
    return open_labels(path, grid(transform), CLASSES, LabelOptions(**options))


def refusal(kind: type[Exception], path: Path, **options) -> str:
    with pytest.raises(kind) as caught:
        labels_of(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:32632", "EPSG:3857"])
def test_shapes_of_any_crs_fall_on_their_pixels(tmp_path, transform, crs):
    shapes = [box(10, 20, 30, 40), Point(3.5, 7.5), LineString([(5.5, 50.5), (70.5, 50.5)])]
    path = write_shapes(
        tmp_path / "labels.gpkg",
        shapes,
        {"class": ["building", "road", "water"]},
        transform=transform,
        crs=crs,
    )

    labels = labels_of(path, transform).read(WHOLE)

    expected = np.full((ROWS, COLS), 255, np.uint8)
    expected[20:40, 10:30], expected[7, 3], expected[50, 5:71] = 0, 1, 2
    assert labels.dtype == np.uint8
    assert (labels == expected).all()


boxes = st.tuples(
    st.integers(-20, 90), st.integers(-20, 70), st.integers(1, 60), st.integers(1, 60)
)


@given(
    drawn=st.lists(st.tuples(boxes, st.sampled_from(CLASSES.names)), min_size=1, max_size=6),
    row=st.integers(-30, 59),
    col=st.integers(-30, 79),
    rows=st.integers(31, 90),
    cols=st.integers(31, 90),
)
@settings(max_examples=25, deadline=None)
def test_a_window_equals_that_part_of_the_whole_and_255_past_the_edge(
    tmp_path_factory, drawn, row, col, rows, cols
):
    shapes = [box(0, 0, 1, 1)] + [box(x, y, x + w, y + h) for (x, y, w, h), _ in drawn]
    names = ["road"] + [name for _, name in drawn]
    path = tmp_path_factory.mktemp("labels") / "labels.gpkg"
    labels = labels_of(write_shapes(path, shapes, {"class": names}))

    part = labels.read(Window(row, col, Size(rows, cols)))

    padded = np.pad(labels.read(WHOLE), 120, constant_values=255)
    assert (part == padded[row + 120 : row + 120 + rows, col + 120 : col + 120 + cols]).all()


def test_a_polygon_of_many_vertices_is_burnt_like_a_plain_one(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 5000)
    radius = 40 + 5 * np.cos(70 * angle)
    star = Polygon(np.c_[40 + radius * np.cos(angle), 30 + radius * np.sin(angle)])
    path = write_shapes(tmp_path / "labels.gpkg", [star], {"class": ["road"]})
    whole = rasterize([(star, 1)], out_shape=(ROWS, COLS), fill=255, transform=Affine.identity())

    labels = labels_of(path)

    for window in (WHOLE, Window(3, 60, Size(20, 20)), Window(25, 35, Size(9, 9))):
        here = np.s_[window.row : window.row_stop, window.col : window.col_stop]
        assert (labels.read(window) == whole[here]).all()


def test_the_smaller_of_overlapping_shapes_wins(tmp_path):
    shapes = [Point(12.5, 12.5), box(10, 10, 20, 20), box(0, 0, 40, 40)]
    path = write_shapes(tmp_path / "l.gpkg", shapes, {"class": ["water", "building", "road"]})

    labels = labels_of(path).read(WHOLE)

    assert (labels[12, 12], labels[15, 15], labels[30, 30]) == (2, 0, 1)


def test_multipart_and_3d_shapes_count_and_empty_ones_do_not(tmp_path):
    shapes = [
        MultiPoint([(1.5, 1.5), (70.5, 50.5)]),
        shapely.force_3d(box(10, 10, 20, 20)),
        Polygon(),
    ]
    path = write_shapes(tmp_path / "l.gpkg", shapes, {"class": ["road", "water", "building"]})

    assert labels_of(path).class_pixels() == {"building": 0, "road": 2, "water": 100}


def test_shapes_without_a_class_are_unknown(tmp_path):
    shapes = [box(0, 0, 10, 10), box(20, 20, 30, 30), box(40, 20, 50, 30)]
    path = write_shapes(tmp_path / "l.gpkg", shapes, {"class": ["road", None, " "]})

    assert labels_of(path).class_pixels()["road"] == 100
    assert (labels_of(path).read(WHOLE)[25, 25:50:20] == 255).all()


def test_a_class_for_all_shapes_needs_no_field(tmp_path):
    path = write_shapes(tmp_path / "l.geojson", [box(0, 0, 4, 5)], {})

    labels = labels_of(path, label_class="water")

    assert labels.class_pixels() == {"building": 0, "road": 0, "water": 20}
    assert labels.named == (2,)


def test_a_map_translates_words_codes_and_other(tmp_path):
    shapes = [box(0, 0, 10, 10), box(10, 0, 20, 10), box(20, 0, 30, 10), box(30, 0, 40, 10)]
    words = write_shapes(tmp_path / "w.gpkg", shapes, {"kind": ["House", "grass", "road", "sea"]})
    codes = write_shapes(tmp_path / "c.gpkg", shapes, {"kind": [7.0, 9.0, 1.0, 3.0]})
    word_map = {"House": "building", "grass": "other", "sea": "water"}
    code_map = {"7": "building", "9": "other", "1": "road", "3": "water"}

    for path, label_map in ((words, word_map), (codes, code_map)):
        labels = labels_of(path, field="kind", label_map=label_map)
        assert labels.read(WHOLE)[5, 5:40:10].tolist() == [0, OTHER, 1, 2]
        assert labels.class_pixels() == {"building": 100, "road": 100, "water": 100, "other": 100}
        assert labels.named == (0, 1, 2)


def test_labels_name_the_classes_of_their_map_even_unseen_ones(tmp_path):
    path = write_shapes(tmp_path / "l.gpkg", [box(0, 0, 9, 9)], {"class": ["a"]})

    assert labels_of(path, label_map={"a": "other", "b": "water"}).named == (2,)


def test_a_layer_of_styles_beside_the_shapes_is_no_obstacle(tmp_path):
    path = write_shapes(tmp_path / "l.gpkg", [box(0, 0, 9, 9)], {"class_name": ["road"]})
    pyogrio.write_dataframe(pd.DataFrame({"styleQML": ["<qgis/>"]}), path, layer="layer_styles")

    assert labels_of(path).class_pixels()["road"] == 81


def test_positions_are_labelled_pixels_of_every_object(tmp_path):
    shapes = [box(0, 0, 5, 5), box(66, 2, 76, 9), Point(40.5, 40.5), box(50, 50, 60, 60)]
    names = ["building", "building", "road", "other"]
    labels = labels_of(write_shapes(tmp_path / "l.gpkg", shapes, {"class": names}))

    positions = labels.positions()

    read = labels.read(WHOLE)
    assert all(read[row, col] == value for row, col, value in positions)
    assert sorted(value for _, _, value in positions) == [0, 0, 1, OTHER]
    assert (40, 40, 1) in positions


def test_pickled_labels_read_the_same(tmp_path):
    shapes = write_shapes(tmp_path / "l.gpkg", [box(0, 0, 9, 9)], {"class": ["road"]})
    write_raster(tmp_path / "l.tif", values=np.eye(ROWS, COLS, dtype=np.uint8)[None])

    for labels in (labels_of(shapes), labels_of(tmp_path / "l.tif")):
        copy = pickle.loads(pickle.dumps(labels))
        assert (copy.read(WHOLE) == labels.read(WHOLE)).all()


def codes_of(dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, (1, ROWS, COLS)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32"])
def test_a_raster_on_the_scene_s_grid_is_taken_pixel_by_pixel(tmp_path, dtype):
    codes = codes_of(dtype)
    write_raster(tmp_path / "l.tif", RasterSpec(transform=ROTATED), values=codes)

    labels = labels_of(tmp_path / "l.tif", ROTATED)

    assert (labels.read(WHOLE) == codes[0]).all()
    assert labels.class_pixels() == {
        name: int((codes == value).sum()) for value, name in enumerate(CLASSES.names)
    }
    assert labels.named == (0, 1, 2)


def test_a_raster_of_another_crs_resolution_and_orientation_is_laid_on_the_grid(tmp_path):
    # Codes in 2 m squares of the neighbouring zone, south-up; where they lie is told by PROJ.
    row, col = np.mgrid[:ROWS, :COLS] + 0.5
    x, y = (np.array(v) for v in NORTH_UP @ (col.ravel(), row.ravel()))
    x32, y32 = (np.array(v) for v in rasterio.warp.transform("EPSG:32633", "EPSG:32632", x, y))
    left, bottom = x32.min() - 10, y32.min() - 10
    cells = np.random.default_rng(0).integers(0, 3, (1, 60, 60), dtype=np.uint8)
    spec = RasterSpec(transform=Affine(2, 0, left, 0, 2, bottom), crs="EPSG:32632")
    write_raster(tmp_path / "l.tif", spec, values=cells)
    down, across = (y32 - bottom) / 2, (x32 - left) / 2
    clear = np.abs([down - down.round(), across - across.round()]).min(axis=0) > 0.002

    labels = labels_of(tmp_path / "l.tif").read(WHOLE)

    expected = cells[0, down.astype(int), across.astype(int)]
    assert (labels.ravel() == expected)[clear].all()
    assert clear.mean() > 0.98


def test_a_raster_is_unknown_at_255_nodata_masked_and_beyond_its_edge(tmp_path):
    codes = codes_of()[:, :40]
    codes[0, 0], codes[0, 1] = 255, 9
    write_raster(tmp_path / "nodata.tif", RasterSpec(nodata=9), values=codes)
    write_raster(tmp_path / "mask.tif", values=codes, mask=codes[0] != 9)
    alpha = np.concatenate([codes, np.where(codes == 9, 0, 255).astype(np.uint8)])
    spec = RasterSpec(interpretation=(ColorInterp.gray, ColorInterp.alpha))
    write_raster(tmp_path / "alpha.tif", spec, values=alpha)

    for name in ("nodata.tif", "mask.tif", "alpha.tif"):
        labels = labels_of(tmp_path / name).read(WHOLE)
        assert (labels[:2] == 255).all()
        assert (labels[40:] == 255).all()
        assert (labels[2:40] == codes[0, 2:]).all()


def test_the_class_table_of_a_raster_says_what_its_codes_are(tmp_path):
    codes = codes_of()
    own = ClassTable(
        (
            LandClass(0, "water", "#000001"),
            LandClass(1, "other", "#000002"),
            LandClass(2, "house", "#000003"),
        )
    )
    write_raster(
        tmp_path / "l.tif", RasterSpec(tags={"EARTHGATE_CLASSES": own.to_json()}), values=codes
    )

    labels = labels_of(tmp_path / "l.tif", label_map={"house": "building"})

    assert (labels.read(WHOLE) == np.array([2, OTHER, 0])[codes[0]]).all()
    assert labels.named == (0, 2)


def test_a_map_gives_codes_a_class_even_the_nodata_code(tmp_path):
    codes = codes_of()
    write_raster(tmp_path / "l.tif", RasterSpec(nodata=0), values=codes)

    labels = labels_of(tmp_path / "l.tif", label_map={"0": "other", "1": "building", "2": "water"})

    assert (labels.read(WHOLE) == np.array([OTHER, 0, 2])[codes[0]]).all()


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / "l.gpkg"

    assert refusal(InputError, path) == f"{path} does not exist; expected labels, vector or raster."


@pytest.mark.parametrize("text", ["", "building", '{"type": "FeatureCollection", "features": [{'])
def test_a_file_that_is_neither_vector_nor_raster_is_refused(tmp_path, text):
    path = tmp_path / "l.geojson"
    path.write_text(text)

    assert refusal(DataError, path) == (
        f"{path} can be opened neither as a vector nor as a raster; expected a complete file such "
        "as GeoPackage, GeoJSON, Shapefile or GeoTIFF."
    )


def test_labels_without_a_crs_are_refused(tmp_path):
    shapes = write_shapes(tmp_path / "l.shp", [box(0, 0, 9, 9)], {"class": ["road"]})
    shapes.with_suffix(".prj").unlink()
    write_raster(tmp_path / "l.tif", RasterSpec(crs=None), values=codes_of())

    assert refusal(MissingCrsError, shapes) == (
        f"{shapes} has no coordinate reference system; expected one that says where its shapes "
        f"lie. Write it into the file, e.g. with ogr2ogr -a_srs EPSG:32633 fixed.gpkg {shapes}, "
        "if you know it."
    )
    assert refusal(MissingCrsError, tmp_path / "l.tif") == (
        f"{tmp_path / 'l.tif'} has no coordinate reference system; expected one that says where "
        "its coordinates lie. Write it into the file, e.g. with gdal_edit.py -a_srs EPSG:32633 "
        f"{tmp_path / 'l.tif'}, if you know it."
    )


def test_labels_elsewhere_are_refused(tmp_path):
    shapes = write_shapes(tmp_path / "l.gpkg", [box(500, 0, 600, 9)], {"class": ["road"]})
    transform = Affine.translation(4000, 0) @ NORTH_UP
    write_raster(tmp_path / "l.tif", RasterSpec(transform=transform), values=codes_of())

    for path in (shapes, tmp_path / "l.tif"):
        assert refusal(DataError, path) == (
            f"{path} has no label inside the scene; expected labels that overlap it. "
            "Look at both in QGIS; one of the files may name a wrong CRS."
        )


def test_classes_that_the_model_lacks_are_refused_with_the_ways_on(tmp_path):
    shapes = [box(0, 0, 9, 9)] * 3
    path = write_shapes(tmp_path / "l.gpkg", shapes, {"kind": ["tree", "road", "car"]})
    write_raster(tmp_path / "l.tif", values=codes_of() + np.uint8(2))

    assert refusal(ClassNameError, path, field="kind") == (
        f"field kind of {path} names classes that the model lacks: car, tree; expected one of "
        "building, road, water. Rename them, e.g. --label-map car=building or car=other, or train "
        "a model that has them: earthgate train."
    )
    assert refusal(ClassNameError, tmp_path / "l.tif") == (
        f"{tmp_path / 'l.tif'} names classes that the model lacks: 3, 4; expected one of "
        "building, road, water. Rename them, e.g. --label-map 3=building or 3=other, or train "
        "a model that has them: earthgate train."
    )


def test_a_class_for_all_that_the_model_lacks_is_refused(tmp_path):
    path = write_shapes(tmp_path / "l.gpkg", [box(0, 0, 9, 9)], {})

    assert refusal(ClassNameError, path, label_class="tree") == (
        f"{path} names classes that the model lacks: tree; expected one of building, road, water. "
        "Rename them, e.g. --label-map tree=building or tree=other, or train a model that has "
        "them: earthgate train."
    )


def test_a_long_list_of_unknown_classes_is_cut(tmp_path):
    write_raster(tmp_path / "l.tif", values=np.arange(100, 120, dtype=np.uint8).reshape(1, 4, 5))

    assert "lacks: 100, 101, 102, 103, 104, 105, 106, 107 and 12 more;" in refusal(
        ClassNameError, tmp_path / "l.tif"
    )


def test_a_map_to_a_class_that_the_model_lacks_is_refused(tmp_path):
    write_raster(tmp_path / "l.tif", values=codes_of())

    assert refusal(ClassNameError, tmp_path / "l.tif", label_map={"1": "bulding"}) == (
        "--label-map 1=bulding; expected one of building, road, water or other."
    )


def test_with_a_map_codes_that_it_leaves_out_are_refused(tmp_path):
    write_raster(tmp_path / "l.tif", values=codes_of())

    assert refusal(ClassNameError, tmp_path / "l.tif", label_map={"1": "road", "2": "other"}) == (
        f"{tmp_path / 'l.tif'} names classes that the model lacks: 0; expected one of building, "
        "road, water. Rename them, e.g. --label-map 0=building or 0=other, or train a model that "
        "has them: earthgate train."
    )


def test_without_a_class_field_the_fields_are_listed(tmp_path):
    path = write_shapes(tmp_path / "l.gpkg", [box(0, 0, 9, 9)], {"kind": ["road"], "area": [3]})
    bare = write_shapes(tmp_path / "bare.gpkg", [box(0, 0, 9, 9)], {})
    fix = "Name it with --label-field, or give all one class, e.g. --label-class building."

    assert refusal(InputError, path) == (
        f"{path} has the fields kind, area; expected to know which holds the class. {fix}"
    )
    assert refusal(InputError, path, field="Kind") == (
        f"{path} has the fields kind, area; expected a field Kind. {fix}"
    )
    assert refusal(InputError, bare) == (
        f"{bare} has no fields; expected to know which holds the class. {fix}"
    )


def test_a_field_and_a_class_for_all_exclude_each_other(tmp_path):
    path = write_shapes(tmp_path / "l.gpkg", [box(0, 0, 9, 9)], {"kind": ["road"]})

    assert refusal(InputError, path, field="kind", label_class="road") == (
        "--label-field kind and --label-class road; expected one of them."
    )


def test_options_for_vectors_are_refused_for_a_raster(tmp_path):
    path = tmp_path / "l.tif"
    write_raster(path, values=codes_of())

    assert refusal(InputError, path, label_class="road") == (
        f"--label-field or --label-class with {path}, which is a raster; expected classes by "
        "code. Say which code is which class, e.g. --label-map 1=building,0=other."
    )


def test_a_table_without_geometries_is_refused(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("class,lon,lat\nroad,16.1,48.2\n")

    assert refusal(DataError, path) == (
        f"{path} has no geometries, only a table; expected polygons, lines, points or a raster."
    )


def test_several_layers_are_refused_by_name(tmp_path):
    path = tmp_path / "l.gpkg"
    for layer in ("houses", "streets"):
        frame = geopandas.GeoDataFrame(geometry=[Point(1, 1)], crs="EPSG:32633")
        frame.to_file(path, layer=layer)

    assert refusal(DataError, path) == (
        f"{path} has the layers houses, streets; expected one layer of labels. Write one to a "
        f"file of its own: ogr2ogr labels.gpkg {path} houses."
    )


def test_rasters_that_are_no_class_codes_are_refused(tmp_path):
    write_raster(tmp_path / "rgb.tif")
    noise = np.random.default_rng(0).random((1, ROWS, COLS)).astype(np.float32)
    write_raster(tmp_path / "noise.tif", values=noise)

    assert refusal(DataError, tmp_path / "rgb.tif") == (
        f"{tmp_path / 'rgb.tif'} has 3 bands; expected one band of class codes."
    )
    assert refusal(DataError, tmp_path / "noise.tif") == (
        f"{tmp_path / 'noise.tif'} holds more than 256 different values; expected class codes."
    )


def test_labels_without_a_way_to_the_scene_are_refused(tmp_path):
    plane = 'LOCAL_CS["plane",UNIT["metre",1]]'
    write_raster(tmp_path / "l.tif", RasterSpec(crs=plane), values=codes_of())

    assert refusal(DataError, tmp_path / "l.tif") == (
        f"{tmp_path / 'l.tif'} has a CRS from which PROJ knows no way to the scene's; expected a "
        "CRS tied to the Earth, like the scene's. Write the right CRS into it with "
        "gdal_edit.py -a_srs or ogr2ogr -a_srs."
    )


def test_a_damaged_raster_is_refused_where_it_breaks(tmp_path):
    path = tmp_path / "l.tif"
    profile = {"driver": "GTiff", "count": 1, "height": ROWS, "width": COLS, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=UTM, transform=NORTH_UP) as file:
        file.write(codes_of())
    path.write_bytes(path.read_bytes()[:3000])

    assert refusal(DataError, path) == (
        f"{path} cannot be read; expected a complete file. It is damaged or cut short: copy it "
        "again from its source."
    )
