"""One class table: it makes palette, tags, QGIS style, categories and GeoPackage style."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from earthgate_geo.errors import ClassNameError, InputError

NODATA = 255
"""Value of a class raster where there is no class; never equal to a class."""

_COLUMNS = (
    # Name, GDAL's type (0 integer, 1 real, 2 text), GDAL's usage
    ("Value", "0", "5"),
    ("Class", "2", "2"),
    ("Red", "0", "6"),
    ("Green", "0", "7"),
    ("Blue", "0", "8"),
    ("Count", "1", "1"),  # real: a large scene has more pixels than GDAL's 32-bit integer holds
)
"""Of the attribute table that GDAL reads beside a class raster."""

FULL_SCALE = 254
"""Value of probability 1 in confidence and probability layers."""


@dataclass(frozen=True, slots=True)
class LandClass:
    """One class of a map."""

    value: int
    """Value in the class raster, 0..254."""

    name: str
    """Name shown in legends."""

    color: str
    """Fill colour as ``#rrggbb``."""

    def __post_init__(self) -> None:
        if not 0 <= self.value < NODATA:
            raise InputError(
                found=f"class {self.name!r} with value {self.value}", expected="0..254"
            )
        if not re.fullmatch(r"#[0-9a-f]{6}", self.color):
            raise InputError(
                found=f"class {self.name!r} with colour {self.color!r}", expected="#rrggbb"
            )

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, each 0..255."""
        packed = int(self.color[1:], 16)
        return packed >> 16, packed >> 8 & 255, packed & 255


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes of a model or map, ordered by value from 0 without gaps."""

    classes: tuple[LandClass, ...]
    """At least one class."""

    def __post_init__(self) -> None:
        if [c.value for c in self.classes] != list(range(len(self.classes))) or not self.classes:
            raise InputError(
                found=f"class values {[c.value for c in self.classes]}",
                expected="0, 1, 2, ... without gaps",
            )

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[LandClass]:
        return iter(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names by value."""
        return tuple(c.name for c in self.classes)

    def value(self, name: str) -> int:
        """Return the value of the class ``name``.

        Raises:
            ClassNameError: There is no such class.
        """
        if name not in self.names:
            raise ClassNameError(
                found=f"class {name!r}",
                expected=f"one of {', '.join(self.names)}",
                fix=f"Rename it with --label-map, e.g. --label-map {name}={self.names[0]}",
            )
        return self.names.index(name)

    def colormap(self) -> dict[int, tuple[int, int, int, int]]:
        """Return the GDAL palette, nodata transparent."""
        palette = {c.value: (*c.rgb, 255) for c in self.classes}
        return palette | {NODATA: (0, 0, 0, 0)}

    def to_json(self) -> str:
        """Return the JSON of the dataset tag ``EARTHGATE_CLASSES``."""
        return json.dumps([asdict(c) for c in self.classes])

    @classmethod
    def from_json(cls, text: str) -> "ClassTable":
        """Read what ``to_json`` wrote.

        Raises:
            InputError: The text is not such a list.
        """
        try:
            return cls(tuple(LandClass(**entry) for entry in json.loads(text)))
        except (ValueError, TypeError) as error:
            raise InputError(
                found=f"class table {text[:60]!r}",
                expected='a JSON list of {"value":0,"name":"building","color":"#rrggbb"}',
            ) from error


def qml(table: ClassTable) -> str:
    """Return the QGIS style of a class raster: exactly the named classes, nodata transparent."""
    root = ET.Element("qgis", version="3.22.0", styleCategories="AllStyleCategories")
    renderer = ET.SubElement(
        ET.SubElement(root, "pipe"),
        "rasterrenderer",
        {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""},
    )
    ET.SubElement(renderer, "rasterTransparency")
    palette = ET.SubElement(renderer, "colorPalette")
    for entry in table:
        shown = {"value": str(entry.value), "color": entry.color, "alpha": "255"}
        ET.SubElement(palette, "paletteEntry", shown | {"label": entry.name})
    return _text(root)


def aux_xml(table: ClassTable, counts: Sequence[int] | None = None) -> str:
    """Return GDAL's side file of a class raster: category names and attribute table.

    Args:
        table: The classes.
        counts: Pixels by value; without them the table has no Count column.
    """
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    names = ET.SubElement(band, "CategoryNames")
    for entry in table:
        ET.SubElement(names, "Category").text = entry.name
    attributes = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_COLUMNS if counts is not None else _COLUMNS[:-1]):
        column = ET.SubElement(attributes, "FieldDefn", index=str(index))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            ET.SubElement(column, key).text = value
    for entry in table:
        row = ET.SubElement(attributes, "Row", index=str(entry.value))
        count = () if counts is None else (int(counts[entry.value]),)
        for value in (entry.value, entry.name, *entry.rgb, *count):
            ET.SubElement(row, "F").text = str(value)
    return _text(root)


def vector_qml(table: ClassTable, field: str = "class_name") -> str:
    """Return the QGIS style of polygons by class: see-through fill, thin darker outline.

    Args:
        table: The classes.
        field: Field that holds the name of the class.
    """
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr=field)
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for entry in table:
        key = str(entry.value)
        shown = {"value": entry.name, "label": entry.name, "symbol": key, "render": "true"}
        ET.SubElement(categories, "category", shown)
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=key, alpha="1")
        fill = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1"})
        outline = tuple(channel * 3 // 5 for channel in entry.rgb)
        options = {
            "color": _rgba(entry.rgb, 178),
            "outline_color": _rgba(outline, 255),
            "outline_style": "solid",
            "outline_width": "0.2",
            "outline_width_unit": "MM",
            "style": "solid",
        }
        for name, value in options.items():
            ET.SubElement(fill, "prop", k=name, v=value)
    return _text(root)


def _rgba(rgb: tuple[int, ...], alpha: int) -> str:
    return ",".join(map(str, (*rgb, alpha)))


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")
