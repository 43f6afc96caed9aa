import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasters import NORTH_UP, ROTATED, SOUTH_UP, UTM

from earthgate_geo.errors import InputError
from earthgate_geo.raster.classes import NODATA, ClassTable, LandClass, aux_xml, qml
from earthgate_geo.raster.cog import Layer, LayerWriter
from earthgate_geo.raster.grid import Grid, Size
from earthgate_geo.raster.read import open_scene

TABLE = ClassTable((LandClass(0, "building", "#d7301f"), LandClass(1, "road", "#888888")))
PLAIN = Grid(Size(60, 80), NORTH_UP, CRS.from_string(UTM))


def noise(grid, bands=1, high=256):
    rng = np.random.default_rng(0)
    return rng.integers(0, high, (bands, grid.size.rows, grid.size.cols), dtype=np.uint8)


def write(layer, grid, values, *, step=100, creation=None):
    scratch = layer.path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    before = {path: path.read_bytes() for path in layer.path.parent.iterdir() if path.is_file()}
    with LayerWriter(layer, grid, scratch=scratch, creation=creation) as writer:
        for row in range(0, grid.size.rows, step):
            writer.write_rows(row, values[:, row : row + step])
        writer.finish()
        now = {path: path.read_bytes() for path in layer.path.parent.iterdir() if path.is_file()}
        assert now == before
        writer.publish()
    assert list(scratch.iterdir()) == []
    return writer


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_rows_in_any_chunks_come_back_exactly(tmp_path_factory, data):
    rows, cols = data.draw(st.integers(1, 1200)), data.draw(st.integers(1, 700))
    bands = data.draw(st.integers(1, 3))
    grid = Grid(Size(rows, cols), NORTH_UP, CRS.from_string(UTM))
    values = noise(grid, bands)
    folder = tmp_path_factory.mktemp("chunks")

    with LayerWriter(Layer(path=folder / "map.tif", bands=bands), grid, scratch=folder) as writer:
        row = 0
        while row < rows:
            step = data.draw(st.integers(1, rows - row))
            writer.write_rows(row, values[:, row : row + step])
            row += step
        writer.finish()
        writer.publish()

    with rasterio.open(folder / "map.tif") as source:
        assert_array_equal(source.read(), values)
    assert_array_equal(writer.counts, np.bincount(values[0].ravel(), minlength=256))


def test_a_class_map_carries_its_names_colours_and_tags(tmp_path):
    grid = Grid(Size(1300, 700), NORTH_UP, CRS.from_string(UTM))
    values = noise(grid, high=2)
    values[0, :40] = NODATA
    layer = Layer(
        path=tmp_path / "map.tif", classes=TABLE, descriptions=("class",), tags={"MODEL": "x"}
    )

    write(layer, grid, values)

    with rasterio.open(layer.path) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "DEFLATE"
        assert source.block_shapes == [(512, 512)]
        assert source.overviews(1) == [2, 4]
        assert source.colorinterp == (ColorInterp.palette,)
        assert source.descriptions == ("class",)
        assert source.nodata == NODATA
        assert source.tags()["MODEL"] == "x"
        assert ClassTable.from_json(source.tags()["EARTHGATE_CLASSES"]) == TABLE
        palette = source.colormap(1)
        assert {value: palette[value] for value in TABLE.colormap()} == TABLE.colormap()
        assert_array_equal(source.read(), values)
    counts = np.bincount(values.ravel(), minlength=256).tolist()
    assert (tmp_path / "map.qml").read_text(encoding="utf-8") == qml(TABLE)
    assert (tmp_path / "map.tif.aux.xml").read_text(encoding="utf-8") == aux_xml(TABLE, counts)


def test_a_class_map_shows_the_commonest_class_in_its_overviews(tmp_path):
    grid = Grid(Size(1024, 1024), NORTH_UP, CRS.from_string(UTM))
    values = np.zeros((1, 1024, 1024), np.uint8)
    values[:, ::2, ::2] = 1

    write(Layer(path=tmp_path / "map.tif", classes=TABLE), grid, values)
    write(Layer(path=tmp_path / "conf.tif"), grid, values * 200)

    for name, expected in (("map.tif", 0), ("conf.tif", 50)):
        with rasterio.open(tmp_path / name, overview_level=0) as overview:
            assert_array_equal(np.unique(overview.read()), [expected])


def test_a_confidence_layer_carries_its_scale_and_no_palette(tmp_path):
    layer = Layer(path=tmp_path / "conf.tif", scale=1 / 254, descriptions=("confidence",))
    values = noise(PLAIN)

    write(layer, PLAIN, values)

    with rasterio.open(layer.path) as source:
        assert source.scales == (1 / 254,)
        assert source.offsets == (0,)
        assert source.nodata == NODATA
        assert source.descriptions == ("confidence",)
        assert source.colorinterp == (ColorInterp.gray,)
        assert_array_equal(source.read(), values)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["conf.tif"]


@pytest.mark.parametrize("bands", [2, 3, 4, 5])
def test_bands_of_probabilities_are_not_taken_for_colours(tmp_path, bands):
    names = tuple(f"class {band}" for band in range(bands))
    values = noise(PLAIN, bands)

    write(Layer(path=tmp_path / "probs.tif", bands=bands, descriptions=names), PLAIN, values)

    with rasterio.open(tmp_path / "probs.tif") as source:
        assert not {ColorInterp.red, ColorInterp.alpha} & set(source.colorinterp)
        assert source.descriptions == names
        assert_array_equal(source.read(), values)


CRS_TEXTS = {
    "utm": UTM,
    "geographic": "EPSG:4326",
    "compound": "EPSG:7405",
    "esri": "ESRI:102039",
    "geostationary": "+proj=geos +h=35785831 +lon_0=-75 +sweep=y",
    "rotated pole": "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39 +lon_0=180",
    "perspective": "+proj=tpers +h=5500000 +lat_0=40",
    "engineering": 'LOCAL_CS["site",LOCAL_DATUM["x",32767],UNIT["metre",1],AXIS["Easting",EAST],'
    'AXIS["Northing",NORTH]]',
}
DEGREES = ("geographic", "rotated pole")
IN_DEGREES = Affine.translation(46 / 3, 52 / 7) @ Affine.rotation(30) @ Affine.scale(5e-6, -4e-6)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("utm", SOUTH_UP),
        ("utm", Affine(0.1, 0, 5e5 / 3, 0, -1 / 3, 52e5 / 7)),
        ("utm", Affine(-0.1, 0, 5e5 / 3, 0, -1 / 3, 52e5 / 7)),
        *((name, IN_DEGREES if name in DEGREES else ROTATED) for name in CRS_TEXTS),
    ],
)
def test_the_grid_of_a_map_is_the_scenes_to_the_last_bit(tmp_path, name, transform):
    grid = Grid(Size(60, 80), transform, CRS.from_string(CRS_TEXTS[name]))
    layer = Layer(path=tmp_path / "map.tif", classes=TABLE, descriptions=("class",))

    write(layer, grid, noise(grid, high=2))

    with open_scene(layer.path) as scene:
        assert scene.grid == grid
        assert tuple(scene.grid.transform) == tuple(transform)


def test_creation_options_replace_our_own(tmp_path):
    layer = Layer(path=tmp_path / "map.tif", classes=TABLE)

    write(layer, PLAIN, noise(PLAIN, high=2), creation={"compress": "zstd", "BLOCKSIZE": "128"})

    with rasterio.open(layer.path) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "ZSTD"
        assert source.block_shapes == [(128, 128)]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("COMPRESS=JPEG", "one of NONE, DEFLATE, ZSTD, LZW, LZMA"),
        ("BLOCKSIZE=0", "one of 128, 256, 512, 1024, 2048"),
        ("LEVEL=99", "one of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
        ("NBITS=1", "one of BIGTIFF, BLOCKSIZE, COMPRESS, LEVEL, NUM_THREADS, PREDICTOR"),
    ],
)
def test_a_creation_option_that_could_change_pixels_is_refused_at_once(tmp_path, option, expected):
    creation = dict([option.split("=")])

    with pytest.raises(InputError) as refusal:
        LayerWriter(Layer(path=tmp_path / "map.tif"), PLAIN, scratch=tmp_path, creation=creation)

    assert str(refusal.value) == f"--co {option}; expected {expected}."


def test_a_name_that_is_no_tiff_is_refused(tmp_path):
    with pytest.raises(InputError) as refusal:
        LayerWriter(Layer(path=tmp_path / "map.png"), PLAIN, scratch=tmp_path)

    assert str(refusal.value) == (
        f"{tmp_path / 'map.png'} as a raster to write; expected a name in .tif."
    )


def test_rows_out_of_order_are_refused(tmp_path):
    with LayerWriter(Layer(path=tmp_path / "map.tif"), PLAIN, scratch=tmp_path) as writer:
        writer.write_rows(0, noise(PLAIN)[:, :10])
        with pytest.raises(InputError) as refusal:
            writer.write_rows(20, noise(PLAIN)[:, 20:30])

    assert str(refusal.value) == (
        "rows 20 to 29, (1, 10, 80) of uint8; expected rows from 10 on, (1, n, 80) of uint8, "
        "60 rows in all."
    )


def test_a_map_with_missing_rows_is_not_finished(tmp_path):
    with LayerWriter(Layer(path=tmp_path / "map.tif"), PLAIN, scratch=tmp_path) as writer:
        writer.write_rows(0, noise(PLAIN)[:, :10])
        with pytest.raises(InputError) as refusal:
            writer.finish()

    assert str(refusal.value) == f"0 rows of {tmp_path / 'map.tif'}; expected all 60."
    assert list(tmp_path.iterdir()) == []


def test_publishing_replaces_an_older_map_and_its_sidecars(tmp_path):
    for name in ("map.tif", "map.tif.msk", "map.tif.ovr", "map.qml", "map.tif.aux.xml"):
        (tmp_path / name).write_text("old")

    write(Layer(path=tmp_path / "map.tif"), PLAIN, noise(PLAIN))

    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["map.tif"]


CHILD = """
    import signal, sys
    from pathlib import Path
    import numpy as np
    from affine import Affine
    from rasterio.crs import CRS
    from earthgate_geo.errors import StorageError
    from earthgate_geo.raster.cog import Layer, LayerWriter
    from earthgate_geo.raster.grid import Grid, Size

    folder, side, limit_bytes, high = Path(sys.argv[1]), *map(int, sys.argv[2:])
    if limit_bytes:
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    grid = Grid(Size(side, side), Affine(1, 0, 5, 0, -1, 5), CRS.from_epsg(32633))
    rows = np.random.default_rng(0).integers(0, high, (1, side, side), dtype=np.uint8)
    try:
        with LayerWriter(Layer(path=folder / "map.tif"), grid, scratch=folder) as writer:
            writer.write_rows(0, rows)
            writer.finish()
            writer.publish()
    except StorageError as error:
        sys.exit(str(error))
"""


def write_in_child(folder, *, side, limit_bytes=0, high=256):
    numbers = [str(number) for number in (side, limit_bytes, high)]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), *numbers],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits the size of files")
@pytest.mark.parametrize("share", [0.1, 0.99, 1.02, 1.2])
def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing(tmp_path, share):
    side = 1100

    run = write_in_child(tmp_path, side=side, limit_bytes=int(share * side * side))

    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith(str(tmp_path / "map.tif"))
    assert f"; expected up to 3.2 MB free in {tmp_path}, where " in last
    assert last.endswith(
        ". Free some space, check the quota or write to another disk, then run again."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_is_told_in_one_line_without_a_word_from_gdal(small_disk):
    run = write_in_child(small_disk, side=1500)

    assert run.stderr == (
        f"{small_disk / 'map.tif'} could not be written; expected up to 5.9 MB free in "
        f"{small_disk}, where 1.0 MB are. Free some space, check the quota or write to another "
        "disk, then run again.\n"
    )
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_the_cog_no_longer_fits_on_is_told_in_one_line(small_disk):
    run = write_in_child(small_disk, side=900)

    assert run.stderr.startswith(f"{small_disk / 'map.tif'} could not be written; expected up to ")
    assert run.stderr.count("\n") == 1
    assert list(small_disk.iterdir()) == []


def test_a_small_map_fits_on_a_small_disk(small_disk):
    run = write_in_child(small_disk, side=600, high=3)

    assert run.stderr == ""
    assert [path.name for path in small_disk.iterdir()] == ["map.tif"]
