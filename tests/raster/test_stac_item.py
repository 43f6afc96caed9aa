import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasters import NORTH_UP, RasterSpec, write_raster

from earthgate_geo.errors import DataError, EarthgateError, MissingDependencyError
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import SceneOptions, open_scene
from earthgate_geo.raster.stac_item import is_item

ONE = RasterSpec(bands=1)


def asset(name, *bands, listed="bands", **fields):
    """Describe the asset ``name.tif`` whose bands have these common names."""
    key = "eo:common_name" if listed == "bands" else "common_name"
    shown = {listed: [{"name": f"B{i}", key: band} for i, band in enumerate(bands)]}
    return {"href": f"./data/{name}.tif", "roles": ["data"], **(shown if bands else {}), **fields}


def write_item(path, assets, version="1.1.0", **fields):
    document = {
        "type": "Feature",
        "stac_version": version,
        "stac_extensions": [],
        "id": path.stem,
        "geometry": None,
        "properties": {"datetime": "2024-05-01T10:20:30Z"},
        "links": [{"rel": "self", "href": "https://example.com/items/a.json"}],
        "assets": assets,
    }
    path.write_text(json.dumps(document | fields))
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path


def single_bands(folder, *names, spec=ONE):
    """Write one raster for each name; return their pixels (band, row, col)."""
    return np.concatenate(
        [
            write_raster(folder / "data" / f"{name}.tif", RasterSpec(**vars(spec) | {"seed": seed}))
            for seed, name in enumerate(names)
        ]
    )


def refusal(path, **options):
    with pytest.raises(EarthgateError) as found:
        open_scene(path, SceneOptions(**options))
    return str(found.value)


def image(path, wanted=("red", "green", "blue"), **options):
    with open_scene(path, SceneOptions(**options)) as scene:
        bands = scene.choose_bands(wanted)
        return scene.read(Window(0, 0, scene.grid.size), bands)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("a/item.json", True),
        ("a.geojson", True),
        ("https://x.org/v1/collections/s2/items/S2A_1", True),
        ("https://x.org/S2A_1.json?key=1", True),
        ("https://x.org/collections/s2/items/a.tif/b.tif", False),
        ("scene.tif", False),
        ("s3://bucket/a.json", False),
    ],
)
def test_an_item_is_told_by_its_name(address, expected) -> None:
    assert is_item(address) is expected


@pytest.mark.parametrize("listed", ["bands", "eo:bands", "raster:bands"])
def test_three_files_of_one_band_are_the_image_in_the_models_order(folder, listed) -> None:
    pixels = single_bands(folder, "b4", "b3", "b2", "b8")
    names = {"b4": "red", "b3": "green", "b2": "blue", "b8": "nir"}
    assets = {key: asset(key, name, listed=listed) for key, name in names.items()}
    item = write_item(folder / "item.json", assets, version="1.0.0")

    found = image(item, wanted=("blue", "green", "red"))

    assert np.array_equal(found.values, pixels[[2, 1, 0]])
    assert found.valid.all()


def test_assets_that_are_chosen_give_bands_beyond_the_colours(folder) -> None:
    pixels = single_bands(folder, "b4", "b3", "b8")
    names = {"b4": "red", "b3": "green", "b8": "nir"}
    item = write_item(folder / "item.json", {key: asset(key, n) for key, n in names.items()})

    found = image(item, wanted=("nir", "red", "green"), assets=("b8", "b3", "b4"))

    assert np.array_equal(found.values, pixels[[2, 0, 1]])


def test_the_item_knows_better_than_the_file_what_its_bands_show(folder) -> None:
    pixels = write_raster(folder / "data" / "a.tif")  # GDAL calls its bands red, green, blue
    item = write_item(folder / "item.json", {"a": asset("a", "blue", "green", "red")})

    assert np.array_equal(image(item).values, pixels[::-1])


def test_bands_that_nobody_names_keep_the_files_own_meaning(folder) -> None:
    pixels = write_raster(folder / "data" / "a.tif")
    item = write_item(folder / "item.json", {"a": asset("a")})

    assert np.array_equal(image(item).values, pixels)


def test_data_wins_over_pictures_and_geotiffs_over_other_formats(folder) -> None:
    pixels = single_bands(folder, "b4", "b3", "b2")
    jp2 = {"type": "image/jp2"}
    tiff = {"type": "image/tiff; application=geotiff; profile=cloud-optimized"}
    colours = {"b4": "red", "b3": "green", "b2": "blue"}
    assets = {
        "visual": asset("visual", "red", "green", "blue", roles=["visual"], **tiff),
        "thumbnail": asset("small", "red", "green", "blue", roles=["thumbnail"], **tiff),
        **{f"{key}-jp2": asset(f"{key}-jp2", name, **jp2) for key, name in colours.items()},
        **{key: asset(key, name, **tiff) for key, name in colours.items()},
    }

    assert np.array_equal(image(write_item(folder / "item.json", assets)).values, pixels)


def test_a_key_that_is_a_colour_says_what_a_band_shows(folder) -> None:
    pixels = single_bands(folder, "red", "green", "blue")
    keys = ("red", "green", "blue")
    item = write_item(folder / "item.json", {key: asset(key) for key in keys})

    assert np.array_equal(image(item).values, pixels)


def test_the_nodata_value_of_single_bands_counts_as_in_one_file(folder) -> None:
    spec = RasterSpec(bands=1, nodata=0, dtype="uint16")
    pixels = single_bands(folder, "red", "green", "blue", spec=spec) // 60000 * 60000
    for name, band in zip(("red", "green", "blue"), pixels, strict=True):
        write_raster(folder / "data" / f"{name}.tif", spec, values=band[None])
    write_raster(folder / "one.tif", RasterSpec(nodata=0), values=pixels)
    item = write_item(
        folder / "item.json", {key: asset(key, key) for key in ("red", "green", "blue")}
    )

    with rasterio.open(folder / "one.tif") as reference:
        expected = reference.dataset_mask() != 0
    found = image(item)

    assert 0 < expected.mean() < 1
    assert np.array_equal(found.valid, expected)
    assert np.array_equal(found.values, pixels)


def test_an_item_scene_can_be_sent_to_another_process(folder, monkeypatch) -> None:
    pixels = single_bands(folder, "red", "green", "blue")
    write_item(folder / "item.json", {key: asset(key) for key in ("red", "green", "blue")})
    monkeypatch.chdir(folder)

    with open_scene("item.json") as scene:
        sent = pickle.dumps(scene)
    monkeypatch.chdir("/")

    with pickle.loads(sent) as scene:
        assert np.array_equal(scene.read(Window(0, 0, Size(60, 80)), (1, 2, 3)).values, pixels)


def test_an_item_of_the_web_is_read_with_its_files(folder) -> None:
    pixels = single_bands(folder, "red", "green", "blue")
    write_item(folder / "item.json", {key: asset(key) for key in ("red", "green", "blue")})

    # Not in a thread: GDAL waits for an answer with the interpreter locked.
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            port = re.search(r"port (\d+)", server.stdout.readline())[1]
            address = f"http://127.0.0.1:{port}"
            found = image(f"{address}/item.json")
            missing = refusal(f"{address}/none.json")
        finally:
            server.kill()

    assert np.array_equal(found.values, pixels)
    assert missing.startswith(f"{address}/none.json cannot be read as a STAC Item (")


def test_the_digest_changes_with_the_meaning_of_bands(folder) -> None:
    write_raster(folder / "data" / "a.tif")
    path = folder / "item.json"

    digests = []
    for bands in (("red", "green", "blue"), ("blue", "green", "red")):
        with open_scene(write_item(path, {"a": asset("a", *bands)})) as scene:
            digests.append(scene.digest())

    assert digests[0] != digests[1]


def test_what_an_item_does_not_say_is_asked_for(folder) -> None:
    single_bands(folder, "x", "y")
    item = write_item(folder / "item.json", {"x": asset("x"), "y": asset("y")})

    assert refusal(item) == (
        f"{item} has the images x, y; expected one that shows red, green and blue, or one for "
        "each. Name it with --asset NAME, or give --asset once for each band."
    )
    assert refusal(item, assets=("z",)) == f"--asset z for {item}; expected one of x, y."


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            RasterSpec(bands=1, rows=30),
            (
                "the assets red (60 x 80 px of 0.5) and blue (30 x 80 px of 0.5) lie on different "
                "grids; expected one grid. Give one with --asset, or put them into one file "
                "first, e.g. with gdalbuildvrt -separate."
            ),
        ),
        (
            RasterSpec(bands=3),
            (
                "the asset blue has 3 bands; expected one band in each of several assets. Give "
                "it alone with --asset."
            ),
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(folder, spec, sentence) -> None:
    single_bands(folder, "red", "green")
    write_raster(folder / "data" / "blue.tif", spec)
    item = write_item(folder / "item.json", {k: asset(k, k) for k in ("red", "green", "blue")})

    assert refusal(item) == sentence


def test_single_bands_with_masks_of_their_own_are_refused(folder) -> None:
    single_bands(folder, "red", "green")
    write_raster(folder / "data" / "blue.tif", ONE, mask=np.eye(60, 80))
    item = write_item(folder / "item.json", {k: asset(k, k) for k in ("red", "green", "blue")})

    assert refusal(item).startswith("the asset blue has a mask of its own; expected a nodata value")


def test_more_bands_than_the_file_has_are_refused(folder) -> None:
    write_raster(folder / "data" / "a.tif")
    item = write_item(folder / "item.json", {"a": asset("a", "red", "green", "blue", "nir")})

    assert refusal(item) == (
        f"{item} lists 4 bands of the asset a, whose file has 3; expected as many. Give the file "
        f"itself and --bands: --src {folder / 'data' / 'a.tif'}."
    )


@pytest.mark.parametrize("text", ["{", '{"type": "Feature"}', '{"type": "Catalog"}'])
def test_other_json_is_refused(folder, text) -> None:
    path = folder / "a.json"
    path.write_text(text)

    with pytest.raises(DataError, match="cannot be read as a STAC Item"):
        open_scene(path)


def test_a_missing_item_and_an_asset_of_no_item_are_refused(folder) -> None:
    scene = folder / "a.tif"
    write_raster(scene)

    assert refusal("none.json") == "none.json does not exist; expected a STAC Item."
    assert refusal(scene, assets=("red",)) == (
        f"--asset red for {scene}; expected a STAC Item, whose name ends in .json."
    )


def test_without_pystac_the_extra_is_named(folder, monkeypatch) -> None:
    item = write_item(folder / "item.json", {})
    monkeypatch.setitem(sys.modules, "pystac", None)

    with pytest.raises(MissingDependencyError) as found:
        open_scene(item)

    assert str(found.value) == (
        "a STAC Item needs the library pystac, which is not installed. Install it with: pip "
        "install 'earthgate-geo[stac]'."
    )


def test_a_rotated_grid_survives_the_stacking(folder) -> None:
    turned = NORTH_UP @ rasterio.Affine.rotation(20)
    spec = RasterSpec(bands=1, transform=turned, dtype="float32")
    single_bands(folder, "red", "green", "blue", spec=spec)
    item = write_item(folder / "item.json", {k: asset(k, k) for k in ("red", "green", "blue")})

    with open_scene(item) as scene, open_scene(Path(folder / "data" / "red.tif")) as one:
        assert scene.grid == one.grid
        assert scene.grid.transform == turned


@pytest.mark.parametrize("listed", ["bands", "raster:bands"])
def test_a_value_without_data_that_an_item_names_counts_where_the_file_names_none(folder, listed):
    pixels = np.full((3, 40, 50), 9, np.uint8)
    pixels[:, :10] = 0
    for name, nodata in (("bare", None), ("told", 9)):
        write_raster(folder / "data" / f"{name}.tif", RasterSpec(nodata=nodata), values=pixels)
    valid = {}
    for name in ("bare", "told"):
        entry = asset(name, "red", "green", "blue")
        entry[listed] = [band | {"nodata": 0} for band in entry.get(listed, entry["bands"])]
        valid[name] = image(write_item(folder / f"{name}.json", {"image": entry})).valid

    assert not valid["bare"][:10].any()
    assert valid["bare"][10:].all()
    assert not valid["told"][10:].any()


@pytest.mark.parametrize("nodata", ["nan", -9999, None])
def test_a_value_without_data_that_no_pixel_can_be_hides_nothing(folder, nodata):
    write_raster(folder / "data" / "a.tif")
    item = write_item(folder / "a.json", {"a": asset("a", "red", "green", "blue", nodata=nodata)})

    assert image(item).valid.all()


def test_hrefs_may_be_written_as_in_urls(folder):
    pixels = write_raster(folder / "data" / "ä nir.tif")
    written = ["./data/%C3%A4%20nir.tif", (folder / "data" / "ä nir.tif").as_uri()]

    for href in [*written, "./data/ä nir.tif"]:
        item = write_item(
            folder / "a.json", {"a": asset("a", "red", "green", "blue") | {"href": href}}
        )
        assert np.array_equal(image(item).values, pixels)
