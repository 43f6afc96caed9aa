import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import workplace
from jsonschema import Draft7Validator
from pystac import Catalog, Collection, Item, STACObjectType
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasters import RasterSpec, write_raster
from shapely.geometry import shape

from earthgate_cli.main import main
from earthgate_cli.summary import batch_lines

MODEL = ("--model", "open.safetensors", "--runtime", "torch")

NUMBER, TEXT = {"type": "number"}, {"type": "string"}


def listed(least, schema):
    return {"type": "array", "minItems": least, "items": schema}


def fields(required, **properties):
    return {"type": "object", "required": required, "properties": properties}


CLASSES = listed(
    1,
    fields(
        ["value", "name"],
        value={"type": "integer"},
        name={"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
        color_hint={"type": "string", "pattern": "^[0-9A-Fa-f]{6}$"},
    ),
)


def tensor(what):
    shapes = listed(1, {"type": "integer", "minimum": -1})
    return fields(
        ["shape", "dim_order", "data_type"],
        shape=shapes,
        dim_order=listed(1, {"type": "string", "pattern": "^[a-z-_]+$"}) | {"contains": what},
        data_type={"enum": ["float32"]},
    )


# What the extensions ask of an Item, in our words: pystac brings the schemas of the core alone.
RULES = {
    "projection/v2.0.0": fields(
        ["properties"],
        properties=fields(
            ["proj:code", "proj:shape", "proj:transform"],
            **{
                "proj:code": {"type": ["string", "null"], "pattern": "^[A-Z]+:[0-9]+$"},
                "proj:shape": listed(2, {"type": "integer"}) | {"maxItems": 2},
                "proj:transform": listed(6, NUMBER) | {"maxItems": 6},
            },
        ),
    ),
    "raster/v2.0.0": fields(
        ["assets"],
        assets=fields(
            ["map"],
            map=fields(["raster:spatial_resolution", "data_type", "nodata"], nodata=NUMBER),
        ),
    ),
    "classification/v2.0.0": fields(
        ["assets"],
        assets=fields(
            ["map"],
            map=fields(["classification:classes"], **{"classification:classes": CLASSES}),
        ),
    ),
    "processing/v1.2.0": fields(
        ["properties"],
        properties=fields(
            ["processing:software", "processing:lineage"],
            **{
                "processing:software": {"type": "object", "additionalProperties": TEXT},
                "processing:lineage": TEXT,
            },
        ),
    ),
    "file/v2.1.0": fields(
        ["assets"],
        assets=fields(
            ["model"],
            model=fields(
                ["file:size", "file:checksum"],
                **{"file:checksum": {"type": "string", "pattern": "^1220[0-9a-f]{64}$"}},
            ),
        ),
    ),
    "mlm/v1.5.0": fields(
        ["properties", "assets"],
        properties=fields(
            ["bands", "mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"],
            **{
                "bands": listed(1, fields(["name"], name=TEXT)),
                "mlm:name": {
                    "type": "string",
                    "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$",
                },
                "mlm:architecture": TEXT,
                "mlm:tasks": listed(1, {"enum": ["semantic-segmentation"]}),
                "mlm:input": listed(
                    1,
                    fields(
                        ["name", "bands", "input"],
                        bands=listed(1, TEXT),
                        input=tensor({"const": "bands"}),
                    ),
                ),
                "mlm:output": listed(
                    1,
                    fields(
                        ["name", "tasks", "result"],
                        result=tensor({"const": "class"}),
                        **{"classification:classes": CLASSES},
                    ),
                ),
                "mlm:hyperparameters": {"type": "object", "minProperties": 1},
            },
        )
        | {"not": {"required": ["mlm:artifact_type"]}},
        assets=fields(
            ["model"],
            model=fields(
                ["roles", "mlm:artifact_type", "bands"], roles={"contains": {"const": "mlm:model"}}
            ),
        ),
    ),
}


def valid(path, kind=STACObjectType.ITEM):
    """Read a document; refuse one that breaks the core's schema, or our rules of its extensions."""
    document = json.loads(path.read_text(encoding="utf-8"))
    JsonSchemaSTACValidator().validate_core(document, kind, document["stac_version"])
    for address in document.get("stac_extensions", ()):
        name = re.fullmatch(r"https://stac-extensions\.github\.io/(.+)/schema\.json", address)[1]
        Draft7Validator(RULES[name]).validate(document)
    return document


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("converted")


@pytest.fixture
def place(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("EARTHGATE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("EARTHGATE_CACHE", str(cache))
    monkeypatch.chdir(workplace.furnish(tmp_path))
    return tmp_path


def run(capsys, *arguments):
    code = main(arguments)
    return code, *capsys.readouterr()


def source_item(path, *, href="scene.tif", **properties):
    """Describe the scene; its first three bands are red, green and blue."""
    bands = [{"name": name, "eo:common_name": name} for name in ("red", "green", "blue")]
    document = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": "source",
        "geometry": None,
        "properties": properties or {"datetime": "2024-05-01T10:20:30Z"},
        "links": [],
        "assets": {"image": {"href": href, "roles": ["data"], "bands": bands}},
    }
    path.write_text(json.dumps(document))


def test_a_map_of_an_item_is_an_item_derived_from_it(place, capsys) -> None:
    Path("in").mkdir()
    Path("out").mkdir()
    source_item(Path("in/s.json"), href="../scene.tif")

    outputs = ("--dst", "out/m.tif", "--confidence", "--probs", "--vector", "m.gpkg", "--stac")
    code, _, err = run(capsys, "map", "--src", "in/s.json", *MODEL, *outputs, "--json")

    assert code == 0, err
    found = valid(Path("out/m.json"))
    assert found["id"] == "m"
    assert found["properties"]["datetime"] == "2024-05-01T10:20:30Z"
    assert found["properties"]["proj:code"] == "EPSG:32633"
    assert found["links"] == [
        {"rel": "derived_from", "href": "../in/s.json", "type": "application/geo+json"}
    ]
    assert {key: (each["href"], each["roles"]) for key, each in found["assets"].items()} == {
        "map": ("./m.tif", ["data"]),
        "confidence": ("./m_conf.tif", ["confidence"]),
        "probs": ("./m_probs.tif", ["probability"]),
        "vector": ("../m.gpkg", ["data"]),
    }
    for each in Item.from_file("out/m.json").assets.values():
        assert Path(each.get_absolute_href()).exists()
    assert shape(found["geometry"]).bounds == tuple(found["bbox"])
    assert found["bbox"][0] == pytest.approx(15)  # the central meridian, where the scene begins


def test_gdal_places_a_map_by_its_item(place, capsys) -> None:
    run(capsys, "map", "--src", "scene.tif", "--dst", "m.tif", "--stac", *MODEL)

    with rasterio.open('STACIT:"m.json":asset=map') as found, rasterio.open("m.tif") as written:
        assert (found.crs, found.transform) == (written.crs, written.transform)
        assert np.array_equal(found.read(), written.read())


def test_a_map_of_an_item_is_that_of_its_file(place, capsys) -> None:
    source_item(Path("s.json"))

    run(capsys, "map", "--src", "s.json", "--dst", "a.tif", *MODEL)
    run(capsys, "map", "--src", "scene.tif", "--dst", "b.tif", *MODEL)

    assert Path("a.tif").read_bytes() == Path("b.tif").read_bytes()


def test_a_range_of_time_is_kept(place, capsys) -> None:
    times = {"start_datetime": "2024-05-01T00:00:00Z", "end_datetime": "2024-06-01T00:00:00Z"}
    source_item(Path("s.json"), datetime=None, **times)

    run(capsys, "map", "--src", "s.json", "--dst", "m.tif", "--stac", *MODEL)

    found = valid(Path("m.json"))["properties"]
    assert found["datetime"] is None
    assert {key: found[key] for key in times} == times


@pytest.mark.parametrize(
    ("tags", "when", "note"),
    [
        ({"TIFFTAG_DATETIME": "2020:02:03 04:05:06"}, "2020-02-03T04:05:06Z", "the TIFF tag's"),
        ({}, "2021-01-01T00:00:00Z", "that of the scene's file"),
        ({"TIFFTAG_DATETIME": "yesterday"}, "2021-01-01T00:00:00Z", "that of the scene's file"),
    ],
)
def test_without_an_item_the_tag_or_the_file_tells_the_time(
    place, capsys, tags, when, note
) -> None:
    write_raster(Path("t.tif"), RasterSpec(tags=tags))
    os.utime("t.tif", (1_609_459_200, 1_609_459_200))

    run(capsys, "map", "--src", "t.tif", "--dst", "m.tif", "--stac", *MODEL)

    found = valid(Path("m.json"))["properties"]
    assert found["datetime"] == when
    assert f"The datetime is {note}" in found["description"]


def test_a_time_without_a_zone_is_taken_as_utc(place, capsys) -> None:
    times = {"start_datetime": "2024-05-01T00:00:00", "end_datetime": "2024-06-01T02:00:00+02:00"}
    source_item(Path("s.json"), datetime=None, **times)
    write_raster(Path("t.tif"))

    scenes = ("--src", "s.json", "--src", "t.tif", "--out-dir", "maps")
    code, _, err = run(capsys, "map", *scenes, "--stac", *MODEL)

    assert code == 0, err
    found = valid(Path("maps/collection.json"), STACObjectType.COLLECTION)
    (interval,) = found["extent"]["temporal"]["interval"]
    assert interval[0] == "2024-05-01T00:00:00Z"


def test_a_crs_without_a_code_is_written_out(place, capsys) -> None:
    own = "+proj=tmerc +lon_0=15.1 +x_0=500000 +ellps=WGS84"
    write_raster(Path("t.tif"), RasterSpec(crs=own))

    run(capsys, "map", "--src", "t.tif", "--dst", "m.tif", "--stac", *MODEL)

    found = valid(Path("m.json"))["properties"]
    assert found["proj:code"] is None
    assert found["proj:wkt2"].startswith("PROJCRS[")


def test_a_batch_is_a_collection_that_grows(place, capsys) -> None:
    write_raster(Path("t.tif"), RasterSpec(tags={"TIFFTAG_DATETIME": "2020:02:03 04:05:06"}))
    source_item(Path("s.json"))
    out = ("--out-dir", "maps", "--stac", "--json", *MODEL)

    run(capsys, "map", "--src", "s.json", *out)
    code, text, err = run(capsys, "map", "--src", "s.json", "--src", "t.tif", *out)

    assert code == 0, err
    assert json.loads(text)["collection"] == str(Path("maps/collection.json"))
    assert [*batch_lines(json.loads(text))][-1] == f"wrote {Path('maps/collection.json')}"
    found = valid(Path("maps/collection.json"), STACObjectType.COLLECTION)
    assert found["extent"]["temporal"]["interval"] == [
        ["2020-02-03T04:05:06Z", "2024-05-01T10:20:30Z"]
    ]
    collection = Collection.from_file("maps/collection.json")
    items = {item.id: item for item in collection.get_items()}
    assert set(items) == {"s_map", "t_map"}
    for item in items.values():
        assert item.get_collection().id == collection.id == "maps"
        assert valid(Path("maps") / f"{item.id}.json")["collection"] == "maps"
        west, south, east, north = collection.extent.spatial.bboxes[0]
        assert west <= item.bbox[0] <= item.bbox[2] <= east
        assert south <= item.bbox[1] <= item.bbox[3] <= north


def test_what_a_batch_wrote_is_no_scene_of_the_next(place, capsys) -> None:
    Path("maps").mkdir()
    source_item(Path("maps/s.json"), href="../scene.tif")
    command = ("map", "--src", "maps/*.json", "--out-dir", "maps", "--stac", "--json", *MODEL)

    run(capsys, *command)
    code, text, err = run(capsys, *command)

    assert code == 0, err
    (scene,) = json.loads(text)["scenes"]
    assert (scene["src"], scene["earlier"]) == (str(Path("maps/s.json")), True)


@pytest.mark.parametrize("changed", ["scene.tif", "s.json"])
def test_a_map_of_another_asset_does_not_pass_for_done(place, capsys, changed) -> None:
    source_item(Path("s.json"))
    command = ("map", "--src", "s.json", "--asset", "image", "--out-dir", "maps", *MODEL)

    assert run(capsys, *command)[0] == 0
    if changed == "s.json":
        text = Path("s.json").read_text()
        Path("s.json").write_text(text.replace("blue", "pan").replace("red", "blue"))
    else:
        write_raster(Path("scene.tif"), RasterSpec(seed=5))
    code, _, err = run(capsys, *command)

    assert (code, err.split(" exists")[0]) == (2, f"Error: {Path('maps/s_map.tif')}")


def test_adapt_describes_its_map_with_the_report(place, capsys) -> None:
    outputs = ("--dst", "m.tif", "--report", "r.html", "--stac")
    code, _, err = run(capsys, "adapt", "--src", "scene.tif", "--steps", "1", *MODEL, *outputs)

    assert code == 0, err
    found = valid(Path("m.json"))
    assert found["assets"]["report"] == {
        "href": "./r.html",
        "type": "text/html",
        "title": "Report of the adaptation",
        "roles": ["metadata"],
    }
    with rasterio.open("m.tif") as written:
        tags = written.tags()
    told = f"Mapped with the model {tags['EARTHGATE_MODEL']}"
    if "EARTHGATE_ADAPTER" in tags:
        told += f" and the adapter {tags['EARTHGATE_ADAPTER']}"
    assert found["properties"]["processing:lineage"] == f"{told}."


def test_adapt_describes_a_folder_of_maps(place, capsys) -> None:
    source_item(Path("s.json"))
    command = ("adapt", "--src", "s.json", "--steps", "1", "--out-dir", "maps", "--stac", "--json")

    code, text, err = run(capsys, *command, *MODEL)

    assert code == 0, err
    assert json.loads(text)["collection"] == str(Path("maps/collection.json"))
    (item,) = Collection.from_file("maps/collection.json").get_items()
    assert item.id == "s_map"


def test_models_and_adapters_are_items_of_mlm(place, capsys, monkeypatch) -> None:
    run(capsys, "adapt", "--src", "scene.tif", "--steps", "1", "--out", "a.safetensors", *MODEL)
    Path("closed.safetensors").rename("1 closed.safetensors")
    monkeypatch.setenv("EARTHGATE_MODELS", str(place))

    code, out, err = run(capsys, "models", "--stac", "cards")

    assert code == 0, err
    assert f"wrote {Path('cards/a.json')}" in out.splitlines()
    found = {path.stem: valid(path) for path in Path("cards").iterdir()}
    assert set(found) == {"earthgate-tiny", "open", "1 closed", "a"}
    assert found["1 closed"]["properties"]["mlm:name"] == "model-1-closed"
    assert found["1 closed"]["properties"]["license"] == "CC0"
    adapter = found["a"]
    assert adapter["geometry"] is None
    assert adapter["properties"]["mlm:hyperparameters"]["steps"] == 1
    assert adapter["links"][0]["href"] == "./open.json"
    for name in found:
        (model,) = Item.from_file(f"cards/{name}.json").assets.values()
        assert Path(model.get_absolute_href()).stat().st_size == model.extra_fields["file:size"]


def test_an_adapter_without_its_base_is_named_and_left_out(place, capsys, monkeypatch) -> None:
    Path("alone").mkdir()
    adapter = ("--out", "alone/a.safetensors")
    run(capsys, "adapt", "--src", "scene.tif", "--steps", "1", *adapter, *MODEL)
    monkeypatch.setenv("EARTHGATE_MODELS", "alone")

    code, out, _ = run(capsys, "models", "--stac", "cards")

    assert code == 0
    lost = Path("alone/a.safetensors")
    assert f"unreadable: {lost} needs the model open, which is not at hand." in out.splitlines()
    assert [path.name for path in Path("cards").iterdir()] == ["earthgate-tiny.json"]


def test_items_of_models_make_a_catalog_in_pystac(place, capsys) -> None:
    run(capsys, "models", "--stac", "cards")
    catalog = Catalog("models", "What there is.")

    catalog.add_item(Item.from_file("cards/earthgate-tiny.json"))
    catalog.normalize_and_save("catalog", "SELF_CONTAINED")

    (item,) = Catalog.from_file("catalog/catalog.json").get_items()
    assert item.properties["mlm:tasks"] == ["semantic-segmentation"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("map", "--src", "scene.tif", "--dst", "open.tif", "--stac"),
            "open.json exists. Pass --overwrite to replace it, or give another name.",
        ),
        (
            ("map", "--src", "open.json", "--dst", "open.tif", "--stac", "--overwrite"),
            "open.json is an input of this run; expected another file for the output.",
        ),
        (
            ("map", "--src", "open.json", "--dst", "scene.tif", "--overwrite"),
            "scene.tif is an input of this run; expected another file for the output.",
        ),
        (
            ("adapt", "--src", "scene.tif", "--stac"),
            (
                "--vector, --confidence, --probs or --stac without --dst; expected a map that "
                "they are made from. Add --dst map.tif."
            ),
        ),
        (
            ("map", "--src", "scene.tif", "--out-dir", ".", "--name", "collection.tif", "--stac"),
            (
                "the map of scene.tif named collection.tif; expected another name: "
                "collection.json is the Collection's."
            ),
        ),
        (
            ("models", "--stac", "."),
            "earthgate-tiny.json exists. Pass --overwrite to replace it, or give another name.",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_first(place, capsys, arguments, sentence) -> None:
    source_item(Path("open.json"))
    Path("earthgate-tiny.json").touch()

    assert run(capsys, *arguments) == (2, "", f"Error: {sentence}\n")


def test_an_alien_collection_is_not_replaced(place, capsys) -> None:
    Path("maps").mkdir()
    Path("maps/collection.json").write_text("{}")
    command = ("map", "--src", "scene.tif", "--out-dir", "maps", "--stac", *MODEL)

    code, _, err = run(capsys, *command)

    there = Path("maps/collection.json")
    assert (code, there.read_text()) == (2, "{}")
    assert err.startswith(f"Error: {there} exists.")


def test_without_pystac_the_extra_is_named(place, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pystac", None)

    code, _, err = run(capsys, "map", "--src", "scene.tif", "--dst", "m.tif", "--stac")

    assert code == 1
    assert err == (
        "Error: --stac needs the library pystac, which is not installed. Install it with: pip "
        "install 'earthgate-geo[stac]'.\n"
    )
