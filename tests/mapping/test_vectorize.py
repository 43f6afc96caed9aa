import json
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from pyarrow import parquet
from pyproj import Geod
from rasterio.features import rasterize
from rasters import NORTH_UP, ROTATED, SOUTH_UP, UTM, RasterSpec, write_raster

from earthgate_geo.errors import CancelledError, DataError, InputError, OutputError
from earthgate_geo.mapping import vectorize as module
from earthgate_geo.mapping.vectorize import vectorize
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.classes import NODATA, ClassTable, LandClass
from earthgate_geo.request import VectorOptions

TABLE = ClassTable(
    (
        LandClass(0, "building", "#d7301f"),
        LandClass(1, "road", "#969696"),
        LandClass(2, "water", "#2b8cbe"),
    )
)
TAGS = {"EARTHGATE_CLASSES": TABLE.to_json(), "EARTHGATE_MODEL": "abc"}


class Recorder(SilentMonitor):
    def __init__(self, *, cancel_at: int | None = None) -> None:
        self.warnings: list[str] = []
        self.done: list[int] = []
        self._cancel_at = cancel_at

    def update(self, done: int) -> None:
        self.done.append(done)
        if self._cancel_at is not None and done >= self._cancel_at:
            raise CancelledError

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def patches(*, rows: int = 50, cols: int = 70, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 2, NODATA], (rows // 5 + 1, cols // 5 + 1))
    return np.kron(coarse, np.ones((5, 5)))[:rows, :cols].astype(np.uint8)


def write_map(
    path: Path,
    classes: NDArray[np.uint8],
    *,
    transform: Affine = NORTH_UP,
    crs: str = UTM,
    tags: Mapping[str, str] = TAGS,
) -> Path:
    spec = RasterSpec(transform=transform, crs=crs, nodata=NODATA, tags=dict(tags))
    write_raster(path, spec, values=classes[None])
    return path


def polygons_of(
    classes: NDArray[np.uint8], folder: Path, *, transform: Affine = NORTH_UP, crs: str = UTM
) -> GeoDataFrame:
    source = write_map(folder / "map.tif", classes, transform=transform, crs=crs)
    vectorize(source, folder / "town.gpkg", monitor=SilentMonitor())
    return geopandas.read_file(folder / "town.gpkg", layer="town")


def read(path: Path) -> GeoDataFrame:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, layer=path.stem)


def rows_of(frame: GeoDataFrame) -> list[tuple[object, ...]]:
    shapes = shapely.to_wkb(shapely.normalize(frame.geometry.values))
    return sorted(
        zip(frame.class_id, frame.class_name, frame.area_m2, frame.confidence, shapes, strict=True)
    )


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED])
def test_polygons_burn_back_to_the_map(transform: Affine, tmp_path: Path) -> None:
    classes = patches()

    frame = polygons_of(classes, tmp_path, transform=transform)

    pairs = zip(frame.geometry, frame.class_id, strict=True)
    burnt = rasterize(pairs, classes.shape, fill=NODATA, transform=transform, dtype="uint8")
    assert np.array_equal(burnt, classes)
    assert frame.is_valid.all()
    assert set(frame.geom_type) == {"MultiPolygon"}
    assert set(map(tuple, frame[["class_id", "class_name"]].to_numpy())) == set(
        enumerate(TABLE.names)
    )
    assert frame.crs == UTM
    assert (shapely.is_ccw(shapely.get_exterior_ring(frame.geometry.explode().values))).all()


def test_corners_lie_exactly_on_pixel_corners(tmp_path: Path) -> None:
    frame = polygons_of(np.pad(np.zeros((3, 4), np.uint8), 1, constant_values=1), tmp_path)

    building = frame[frame.class_id == 0].geometry.item()
    left, top = NORTH_UP @ (1, 1)
    right, bottom = NORTH_UP @ (5, 4)
    assert building.bounds == (left, bottom, right, top)
    assert len(building.geoms[0].exterior.coords) == 5


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, NORTH_UP),
        (UTM, ROTATED),
        ("EPSG:4326", Affine(0.01, 0, 10, 0, -0.01, 60)),
        ("EPSG:3857", Affine(500, 0, 1.1e6, 0, -500, 8e6)),
        ("EPSG:3031", Affine(500, 0, -17500, 0, -500, 12500)),
    ],
)
def test_areas_are_those_on_the_ellipsoid(crs: str, transform: Affine, tmp_path: Path) -> None:
    frame = polygons_of(patches(), tmp_path, transform=transform, crs=crs)

    # Segments short against the curvature; near the pole the geodesic library is the reference.
    dense = frame.segmentize(50 if crs == UTM else 500 if crs != "EPSG:4326" else 0.005)
    geodesic = [
        abs(Geod(ellps="WGS84").geometry_area_perimeter(p)[0]) for p in dense.to_crs(4326).geometry
    ]
    assert np.allclose(frame.area_m2, geodesic, rtol=2e-5, atol=0.5)


def test_polygons_off_the_earth_have_no_area(tmp_path: Path) -> None:
    classes = np.repeat(np.array([0, 1], np.uint8), 200)[None].repeat(30, axis=0)
    disk = "+proj=geos +h=35785831 +lon_0=-75 +sweep=x +ellps=GRS80"
    past_the_limb = Affine(30000, 0, -4e6, 0, -30000, 450000)

    frame = polygons_of(classes, tmp_path, transform=past_the_limb, crs=disk)

    areas = frame.set_index("class_name").area_m2
    assert areas["building"] > 200 * 30 * 30000**2
    assert np.isnan(areas["road"])


def test_area_by_class_is_pixels_times_pixel_area(tmp_path: Path) -> None:
    classes = patches()
    crs = "+proj=laea +lat_0=50 +lon_0=10 +ellps=WGS84"  # already equal-area
    source = write_map(
        tmp_path / "map.tif", classes, crs=crs, transform=Affine(0.4, 0, 3e4, 0, -0.5, -2e4)
    )

    document = vectorize(source, tmp_path / "map.gpkg", monitor=SilentMonitor())

    frame = geopandas.read_file(tmp_path / "map.gpkg", layer="map")
    for entry in TABLE:
        expected = (classes == entry.value).sum() * 0.4 * 0.5
        found = document["classes"][entry.name]
        chosen = frame[frame.class_name == entry.name]
        assert found["polygons"] == len(chosen)
        assert found["area_m2"] == pytest.approx(expected, rel=1e-6)
        assert chosen.area_m2.sum() == pytest.approx(expected, rel=1e-6)
        assert chosen.area.sum() == pytest.approx(expected, rel=1e-6)
    assert document["polygons"] == len(frame)
    assert document["output"] == str(tmp_path / "map.gpkg")


def test_chunks_and_strips_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = patches(rows=150, cols=80)
    whole = polygons_of(classes, tmp_path)
    (tmp_path / "town.gpkg").unlink()

    monkeypatch.setattr(module, "STRIP_PIXELS", 7 * 80)
    monkeypatch.setattr(module, "CHUNK_CORNERS", 100)
    cut = polygons_of(classes, tmp_path)

    assert sorted(whole.normalize().to_wkb()) == sorted(cut.normalize().to_wkb())
    assert whole.area_m2.sum() == pytest.approx(cut.area_m2.sum(), rel=1e-12)


def test_small_polygons_can_be_left_out(tmp_path: Path) -> None:
    classes = np.ones((10, 10), np.uint8)
    classes[2, 2] = 0
    classes[5:7, 5:7] = 2
    source = write_map(tmp_path / "map.tif", classes)

    options = VectorOptions(min_area_m2=0.9)
    document = vectorize(source, tmp_path / "map.gpkg", options=options, monitor=SilentMonitor())

    frame = geopandas.read_file(tmp_path / "map.gpkg", layer="map")
    assert sorted(frame.class_name) == ["road", "water"]
    assert document["classes"]["building"] == {"polygons": 0, "area_m2": 0.0}
    assert frame[frame.class_name == "road"].geometry.item().area == pytest.approx(95 * 0.25)


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED])
def test_simplified_polygons_have_fewer_corners_and_no_gaps(
    transform: Affine, tmp_path: Path
) -> None:
    rows, cols = np.mgrid[:60, :80]
    classes = np.digitize(rows + 7 * np.sin(cols / 9), [15, 30, 45]).astype(np.uint8) % 3
    source = write_map(tmp_path / "map.tif", classes, transform=transform)
    options = VectorOptions(simplify_m=1.0)

    vectorize(source, tmp_path / "exact.gpkg", monitor=SilentMonitor())
    vectorize(source, tmp_path / "simple.gpkg", options=options, monitor=SilentMonitor())

    exact = geopandas.read_file(tmp_path / "exact.gpkg", layer="exact")
    simple = geopandas.read_file(tmp_path / "simple.gpkg", layer="simple")
    corners = [shapely.get_num_coordinates(frame.geometry).sum() for frame in (exact, simple)]
    assert corners[1] < corners[0] / 3
    assert simple.is_valid.all()
    assert shapely.coverage_is_valid(simple.geometry.explode().values)
    assert simple.area.sum() == pytest.approx(exact.area.sum())
    assert simple.area_m2.tolist() == exact.area_m2.tolist()


def test_polygons_can_be_cut_at_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_PX", 32)
    source = write_map(tmp_path / "map.tif", np.zeros((50, 70), np.uint8))
    options, monitor = VectorOptions(cut_at_tiles=True, simplify_m=2), Recorder()

    vectorize(source, tmp_path / "map.gpkg", options=options, monitor=monitor)

    frame = geopandas.read_file(tmp_path / "map.gpkg", layer="map")
    pixels = sorted(frame.area / 0.25)
    assert pixels == [6 * 18, 6 * 32, 18 * 32, 18 * 32, 32 * 32, 32 * 32]
    assert monitor.done == [32, 64, 96, 114, 132, 150]
    assert monitor.warnings == []


def test_regions_of_too_many_corners_are_cut_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPEN_CORNERS", 100)
    monkeypatch.setattr(module, "BAND_ROWS", 8)
    classes = np.zeros((40, 60), np.uint8)
    classes[1::2, 1::2] = 1
    source = write_map(tmp_path / "map.tif", classes)
    monitor = Recorder()

    document = vectorize(source, tmp_path / "map.gpkg", monitor=monitor)

    frame = geopandas.read_file(tmp_path / "map.gpkg", layer="map")
    (warning,) = monitor.warnings
    assert warning == (
        f"{source} has regions of over 100 corners: to bound memory, polygons end at row 8, and "
        "wherever that recurs; --cut-at-tiles ends them at a regular grid instead"
    )
    assert document["classes"]["building"]["polygons"] == 5
    assert frame.is_valid.all()
    assert frame.area.sum() == pytest.approx(classes.size * 0.25)


@pytest.mark.parametrize("ending", [".gpkg", ".fgb", ".parquet"])
def test_the_area_of_a_class_in_the_crs_is_that_of_its_pixels(ending: str, tmp_path: Path) -> None:
    classes = patches(rows=200, cols=300)
    source = write_map(tmp_path / "map.tif", classes, transform=ROTATED)

    vectorize(source, tmp_path / f"map{ending}", monitor=SilentMonitor())

    frame = read(tmp_path / f"map{ending}")
    for entry in TABLE:
        pixels = (classes == entry.value).sum()
        area = frame[frame.class_id == entry.value].area.sum()
        assert area == pytest.approx(pixels * abs(ROTATED.determinant), rel=1e-3)


@pytest.mark.parametrize("ending", [".fgb", ".parquet"])
def test_every_format_holds_the_same(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_CORNERS", 100)
    source = write_map(tmp_path / "map.tif", patches())
    sure = np.arange(50 * 70, dtype=np.uint8).reshape(50, 70) % 250
    write_map(tmp_path / "map_conf.tif", sure, tags={"EARTHGATE_MODEL": "abc"})

    for name in ("map.gpkg", f"map{ending}"):
        vectorize(source, tmp_path / name, monitor=SilentMonitor())

    package, other = read(tmp_path / "map.gpkg"), read(tmp_path / f"map{ending}")
    fields = ["class_id", "class_name", "area_m2", "confidence"]
    assert list(other.columns) == [*fields, "geometry"]
    assert set(other.geom_type) == {"MultiPolygon"}
    assert other.crs == UTM
    assert rows_of(other) == rows_of(package)


def test_parquet_tells_where_each_polygon_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRIP_PIXELS", 7 * 70)
    monkeypatch.setattr(module, "CHUNK_CORNERS", 100)
    source = write_map(tmp_path / "map.tif", patches())

    vectorize(source, tmp_path / "map.parquet", monitor=SilentMonitor())

    found = parquet.ParquetFile(tmp_path / "map.parquet")
    geo = json.loads(found.metadata.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    frame = geopandas.read_parquet(tmp_path / "map.parquet")
    left, bottom, right, top = frame.total_bounds
    part = geopandas.read_parquet(
        tmp_path / "map.parquet", bbox=(left, bottom, left + 5, bottom + 5)
    )
    assert found.num_row_groups > 1
    assert geo["version"] == "1.1.0"
    assert column["bbox"] == [left, bottom, right, top]
    assert column["geometry_types"] == ["MultiPolygon"]
    assert sorted(part.normalize().to_wkb()) == sorted(
        frame[frame.intersects(shapely.box(left, bottom, left + 5, bottom + 5))]
        .normalize()
        .to_wkb()
    )


@pytest.mark.parametrize("ending", [".fgb", ".parquet"])
def test_an_empty_map_makes_an_empty_layer_in_every_format(ending: str, tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", np.full((4, 4), NODATA, np.uint8))

    vectorize(source, tmp_path / f"map{ending}", monitor=SilentMonitor())

    frame = read(tmp_path / f"map{ending}")
    assert len(frame) == 0
    assert frame.crs == UTM


@pytest.mark.parametrize(
    ("name", "layer"),
    [("(1).gpkg", "1)"), ("-b.fgb", "b"), ("gpkg_x.gpkg", "map_gpkg_x"), ("...gpkg", "map_")],
)
def test_names_that_geopackage_does_not_allow_are_mended(
    name: str, layer: str, tmp_path: Path
) -> None:
    source = write_map(tmp_path / "map.tif", patches())

    traced = vectorize(source, tmp_path / name, monitor=SilentMonitor())

    assert pyogrio.list_layers(tmp_path / name)[0, 0] == layer
    assert len(geopandas.read_file(tmp_path / name, layer=layer)) == traced["polygons"] > 0


def test_another_ending_is_refused(tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", patches())
    target = tmp_path / "map.shp"

    with pytest.raises(OutputError) as refused:
        vectorize(source, target, monitor=SilentMonitor())

    assert str(refused.value) == (
        f"{target} for the polygons; expected a name ending in .gpkg, .fgb or .parquet."
    )
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


def test_confidence_is_the_mean_over_the_polygon(tmp_path: Path) -> None:
    classes = np.array([[0, 0, 1], [0, NODATA, 1]], np.uint8)
    stored = np.array([[254, 127, 0], [0, NODATA, 254]], np.uint8)
    source = write_map(tmp_path / "map.tif", classes)
    write_map(tmp_path / "map_conf.tif", stored, tags={"EARTHGATE_MODEL": "abc"})

    vectorize(source, tmp_path / "map.gpkg", monitor=SilentMonitor())

    frame = geopandas.read_file(tmp_path / "map.gpkg", layer="map").sort_values("class_id")
    assert frame.confidence.tolist() == pytest.approx([0.5, 0.5])


def test_without_a_confidence_layer_confidence_is_null(tmp_path: Path) -> None:
    polygons_of(patches(), tmp_path)

    with sqlite3.connect(tmp_path / "town.gpkg") as package:
        found = package.execute("SELECT DISTINCT confidence FROM town").fetchall()
    package.close()
    assert found == [(None,)]


def test_a_confidence_layer_of_another_run_is_left_aside(tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", patches())
    other = write_map(tmp_path / "map_conf.tif", patches(), tags={"EARTHGATE_MODEL": "xyz"})
    monitor = Recorder()

    vectorize(source, tmp_path / "map.gpkg", monitor=monitor)

    assert monitor.warnings == [
        f"{other} is of another run than {source}: polygons get no confidence"
    ]
    assert geopandas.read_file(tmp_path / "map.gpkg", layer="map").confidence.isna().all()


def test_the_style_names_every_class_and_is_the_default(tmp_path: Path) -> None:
    polygons_of(patches(), tmp_path)

    with sqlite3.connect(tmp_path / "town.gpkg") as package:
        (row,) = package.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
        geometry = package.execute("SELECT column_name FROM gpkg_geometry_columns").fetchone()
    package.close()
    assert row[:3] == ("town", *geometry, 1)
    assert re.findall(r'label="(\w+)"', row[3]) == list(TABLE.names)


def test_a_map_without_data_makes_an_empty_layer(tmp_path: Path) -> None:
    frame = polygons_of(np.full((4, 4), NODATA, np.uint8), tmp_path)

    assert len(frame) == 0
    assert {"class_id", "class_name", "area_m2", "confidence"} <= set(frame.columns)


def test_a_raster_that_is_no_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    write_raster(path)

    with pytest.raises(InputError) as refused:
        vectorize(path, tmp_path / "map.gpkg", monitor=SilentMonitor())

    assert str(refused.value) == (
        f"{path} is not a map that earthgate wrote; "
        "expected one band of classes with the tag EARTHGATE_CLASSES."
    )
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_a_confidence_layer_on_another_grid_is_refused(tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", patches())
    other = write_map(tmp_path / "other.tif", patches(rows=49))

    with pytest.raises(InputError) as refused:
        vectorize(source, tmp_path / "map.gpkg", confidence_path=other, monitor=SilentMonitor())

    assert str(refused.value) == (
        f"{other} does not lie on the grid of {source}; expected the confidence layer of that map."
    )


def test_a_value_without_a_class_is_refused(tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", np.full((4, 4), 9, np.uint8))

    with pytest.raises(DataError) as refused:
        vectorize(source, tmp_path / "map.gpkg", monitor=SilentMonitor())

    assert str(refused.value) == (
        f"{source} holds the value 9; expected 0..2 or 255, as its class table says."
    )
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


def test_an_existing_package_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", patches())
    target = tmp_path / "map.gpkg"
    target.write_text("mine")

    with pytest.raises(OutputError):
        vectorize(source, target, monitor=SilentMonitor())
    assert target.read_text() == "mine"

    vectorize(source, target, overwrite=True, monitor=SilentMonitor())
    assert len(geopandas.read_file(target, layer="map")) > 0


@pytest.mark.parametrize("ending", [".gpkg", ".fgb", ".parquet"])
def test_cancel_leaves_nothing(ending: str, tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", patches())

    with pytest.raises(CancelledError):
        vectorize(source, tmp_path / f"map{ending}", monitor=Recorder(cancel_at=1))

    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


def test_the_map_itself_is_not_touched(tmp_path: Path) -> None:
    source = write_map(tmp_path / "map.tif", patches())
    before = source.read_bytes()

    vectorize(source, tmp_path / "map.gpkg", monitor=SilentMonitor())

    assert source.read_bytes() == before
    with rasterio.open(source) as dataset:
        assert dataset.tags()["EARTHGATE_CLASSES"] == TABLE.to_json()
