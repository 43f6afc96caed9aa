import xml.etree.ElementTree as ET

import pytest
import rasterio
from rasters import RasterSpec, write_raster

from earthgate_geo.errors import ClassNameError, InputError
from earthgate_geo.raster.classes import (
    NODATA,
    ClassTable,
    LandClass,
    aux_xml,
    qml,
    vector_qml,
)

TABLE = ClassTable(
    (
        LandClass(0, "building", "#d7301f"),
        LandClass(1, 'road <&> "track"', "#888888"),
        LandClass(2, "Gewässer", "#1f78b4"),
    )
)


def test_a_table_survives_json():
    assert ClassTable.from_json(TABLE.to_json()) == TABLE


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[]", '[{"value": 0, "name": "a"}]'])
def test_what_is_no_table_is_refused(text):
    with pytest.raises(InputError):
        ClassTable.from_json(text)


def test_values_run_from_zero_without_gaps():
    with pytest.raises(InputError) as refusal:
        ClassTable((LandClass(0, "a", "#000000"), LandClass(2, "b", "#000000")))

    assert str(refusal.value) == "class values [0, 2]; expected 0, 1, 2, ... without gaps."


@pytest.mark.parametrize(
    ("value", "color", "sentence"),
    [
        (255, "#000000", "class 'a' with value 255; expected 0..254."),
        (0, "red", "class 'a' with colour 'red'; expected #rrggbb."),
    ],
)
def test_a_class_has_a_value_below_nodata_and_a_hex_colour(value, color, sentence):
    with pytest.raises(InputError) as refusal:
        LandClass(value, "a", color)

    assert str(refusal.value) == sentence


def test_an_unknown_name_is_refused_with_the_known_ones():
    assert TABLE.value("Gewässer") == 2
    with pytest.raises(ClassNameError) as refusal:
        TABLE.value("forest")

    assert str(refusal.value) == (
        "class 'forest'; expected one of building, road <&> \"track\", Gewässer. Rename it with "
        "--label-map, e.g. --label-map forest=building."
    )


def test_the_palette_hides_nodata():
    palette = TABLE.colormap()

    assert palette[2] == (0x1F, 0x78, 0xB4, 255)
    assert palette[NODATA] == (0, 0, 0, 0)


def test_the_raster_style_names_exactly_the_classes():
    renderer = ET.fromstring(qml(TABLE)).find("pipe/rasterrenderer")

    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    shown = [
        (entry.get("value"), entry.get("label"), entry.get("color"), entry.get("alpha"))
        for entry in renderer.findall("colorPalette/paletteEntry")
    ]
    assert shown == [(str(c.value), c.name, c.color, "255") for c in TABLE]


def test_the_vector_style_fills_every_class_with_a_darker_outline():
    renderer = ET.fromstring(vector_qml(TABLE, "kind")).find("renderer-v2")

    assert renderer is not None
    assert renderer.get("attr") == "kind"
    shown = [(c.get("value"), c.get("symbol")) for c in renderer.findall("categories/category")]
    assert shown == [(c.name, str(c.value)) for c in TABLE]
    roads = renderer.find("symbols/symbol[@name='1']/layer")
    assert roads is not None
    properties = {prop.get("k"): prop.get("v") for prop in roads.findall("prop")}
    assert properties["color"] == "136,136,136,178"
    assert properties["outline_color"] == "81,81,81,255"


def test_gdal_reads_the_category_names_from_the_side_file(tmp_path):
    path = tmp_path / "map.tif"
    write_raster(path, RasterSpec(bands=1))
    (tmp_path / "map.tif.aux.xml").write_text(aux_xml(TABLE), encoding="utf-8")

    # rasterio has no call for category names; GDAL's VRT driver writes out what it read.
    rasterio.shutil.copy(path, tmp_path / "map.vrt", driver="VRT")

    names = ET.parse(tmp_path / "map.vrt").iterfind(".//CategoryNames/Category")
    assert [name.text for name in names] == list(TABLE.names)


def test_the_attribute_table_counts_pixels_where_known():
    counted = ET.fromstring(aux_xml(TABLE, [7, 8, 2**33]))
    plain = ET.fromstring(aux_xml(TABLE))

    columns = [name.text for name in counted.iterfind(".//FieldDefn/Name")]
    assert columns == ["Value", "Class", "Red", "Green", "Blue", "Count"]
    last = [cell.text for cell in counted.findall(".//Row")[2]]
    assert last == ["2", "Gewässer", "31", "120", "180", str(2**33)]
    assert [cell.text for cell in plain.findall(".//Row")[0]] == [
        "0",
        "building",
        "215",
        "48",
        "31",
    ]
