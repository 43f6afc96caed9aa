import pytest
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasters import ROTATED, RasterSpec, write_raster

from earthgate_geo.errors import DataError, InputError, MissingCrsError
from earthgate_geo.raster.read import SceneOptions, open_scene

CORNERS = [
    GroundControlPoint(row=row, col=col, x=36.7 + col / 1e5, y=-1.3 - row / 1e5)
    for row in (0, 60)
    for col in (0, 80)
]
RATIONAL = RPC(
    line_off=30,
    line_scale=30,
    samp_off=40,
    samp_scale=40,
    lat_off=47.4,
    lat_scale=0.01,
    long_off=8.5,
    long_scale=0.01,
    height_off=400,
    height_scale=100,
    line_num_coeff=[0, 0, -1] + 17 * [0],
    line_den_coeff=[1] + 19 * [0],
    samp_num_coeff=[0, 1] + 18 * [0],
    samp_den_coeff=[1] + 19 * [0],
)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(kind, name, **options):
    with pytest.raises(kind) as refusal:
        open_scene(name, SceneOptions(**options))
    return str(refusal.value)


def test_a_scene_without_crs_is_refused_unless_one_is_assumed(in_folder):
    write_raster(in_folder / "scene.tif", RasterSpec(crs=None, transform=ROTATED))

    assert refused(MissingCrsError, "scene.tif") == (
        "scene.tif has no coordinate reference system; expected one that says where its "
        "coordinates lie. Pass --assume-crs, e.g. --assume-crs EPSG:32633, if you know it."
    )
    with open_scene("scene.tif", SceneOptions(assume_crs="EPSG:2056")) as scene:
        assert scene.grid.crs == CRS.from_epsg(2056)
        assert scene.grid.transform == ROTATED


def test_a_crs_that_the_file_has_is_not_replaced(in_folder):
    write_raster(in_folder / "scene.tif")

    with open_scene("scene.tif", SceneOptions(assume_crs="EPSG:2056")) as scene:
        assert scene.grid.crs == CRS.from_epsg(32633)


def test_an_assumed_crs_must_be_one(in_folder):
    write_raster(in_folder / "scene.tif", RasterSpec(crs=None))

    assert refused(InputError, "scene.tif", assume_crs="EPSG:1") == (
        "--assume-crs EPSG:1; expected a coordinate reference system that PROJ knows, "
        "e.g. EPSG:32633."
    )


def test_ground_control_points_ask_for_the_exact_warp(in_folder):
    write_raster(in_folder / "scene.tif", RasterSpec(crs="EPSG:4326", transform=None), gcps=CORNERS)

    assert refused(DataError, "scene.tif") == (
        "scene.tif is placed by 4 ground control points only; expected an affine transform. Run "
        "gdalwarp -r bilinear -t_srs EPSG:32737 scene.tif scene_warped.tif first, then use its "
        "result."
    )


def test_ground_control_points_keep_their_projected_crs(in_folder):
    points = [
        GroundControlPoint(row=p.row, col=p.col, x=500000 + p.col, y=0 - p.row) for p in CORNERS
    ]
    write_raster(in_folder / "my scene.tif", RasterSpec(transform=None), gcps=points)

    assert refused(DataError, "my scene.tif") == (
        "my scene.tif is placed by 4 ground control points only; expected an affine transform. "
        'Run gdalwarp -r bilinear -t_srs EPSG:32633 "my scene.tif" "my scene_warped.tif" first, '
        "then use its result."
    )


def test_ground_control_points_without_crs_take_the_assumed_one(in_folder):
    spec = RasterSpec(transform=None)
    write_raster(in_folder / "scene.tif", spec, gcps=CORNERS, crs=CRS())

    assert refused(DataError, "scene.tif", assume_crs="EPSG:4326") == (
        "scene.tif is placed by 4 ground control points only; expected an affine transform. Run "
        "gdalwarp -r bilinear -s_srs EPSG:4326 -t_srs EPSG:32737 scene.tif scene_warped.tif "
        "first, then use its result."
    )


def test_rational_polynomials_ask_for_the_exact_warp(in_folder):
    write_raster(in_folder / "scene.tif", RasterSpec(crs=None, transform=None), rpcs=RATIONAL)

    assert refused(DataError, "scene.tif") == (
        "scene.tif is placed by rational polynomials (RPC) only; expected an affine transform. "
        "Run gdalwarp -r bilinear -rpc -t_srs EPSG:32632 scene.tif scene_warped.tif first, then "
        "use its result."
    )


@pytest.mark.parametrize(
    ("crs", "assume_crs", "found", "code"),
    [
        (None, None, "has neither a transform nor a CRS", "EPSG:CODE"),
        (
            None,
            "EPSG:2056",
            "has no transform, which --assume-crs cannot stand in for",
            "EPSG:2056",
        ),
        ("EPSG:32633", None, "has a CRS but no transform", "EPSG:32633"),
    ],
)
def test_a_picture_without_place_is_refused(in_folder, crs, assume_crs, found, code):
    spec = RasterSpec(crs=crs, transform=None, interpretation=3 * [ColorInterp.undefined])
    write_raster(in_folder / "picture.tif", spec)

    assert refused(DataError, "picture.tif", assume_crs=assume_crs) == (
        f"picture.tif {found}; expected a georeferenced raster. Write its corners with "
        f"gdal_translate -a_srs {code} -a_ullr LEFT TOP RIGHT BOTTOM picture.tif "
        "picture_placed.tif."
    )


def test_a_world_file_and_an_assumed_crs_place_a_picture(in_folder):
    write_raster(in_folder / "picture.png", RasterSpec(crs=None, transform=None), driver="PNG")
    (in_folder / "picture.pgw").write_text("0.5\n0\n0\n-0.5\n2600000.25\n1199999.75\n")

    with open_scene("picture.png", SceneOptions(assume_crs="EPSG:2056")) as scene:
        assert scene.grid.transform == Affine(0.5, 0, 2600000, 0, -0.5, 1200000)


@pytest.mark.parametrize(
    ("crs", "transform", "sentence"),
    [
        (
            "EPSG:4326",
            Affine(0.5, 0, 500000, 0, -0.5, 5200000),
            "lies at 500020, 5199985 in a CRS of degrees; expected longitude and latitude",
        ),
        (
            "EPSG:32633",
            Affine(1e-5, 0, 15, 0, -1e-5, 47),
            "has pixels of 1e-05 m; expected a millimetre or more",
        ),
    ],
)
def test_a_crs_that_makes_no_sense_is_refused(in_folder, crs, transform, sentence):
    write_raster(in_folder / "named.tif", RasterSpec(crs=crs, transform=transform))
    write_raster(in_folder / "bare.tif", RasterSpec(crs=None, transform=transform))

    with pytest.raises(DataError) as named:
        open_scene("named.tif")
    with pytest.raises(DataError) as assumed:
        open_scene("bare.tif", SceneOptions(assume_crs=crs))

    assert str(named.value) == (
        f"named.tif {sentence}. "
        "Its CRS is wrong: write the right one, e.g. with gdal_edit.py -a_srs EPSG:32633."
    )
    assert str(assumed.value) == f"bare.tif {sentence}. Pass another --assume-crs."


def test_a_transform_without_area_is_refused(in_folder):
    flat = Affine(0.5, 0, 500000, 0.5, 0, 5200000)
    write_raster(in_folder / "scene.tif", RasterSpec(transform=flat))

    assert refused(DataError, "scene.tif") == (
        "scene.tif has the degenerate transform (0.5, 0.0, 500000.0, 0.5, 0.0, 5200000.0); "
        "expected one that spans an area. Write a right one with gdal_translate -a_srs "
        "EPSG:32633 -a_ullr LEFT TOP RIGHT BOTTOM scene.tif scene_placed.tif."
    )
