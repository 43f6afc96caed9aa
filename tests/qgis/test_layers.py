import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from osgeo import gdal
from qgis.core import (
    QgsLayerTree,
    QgsLayerTreeModel,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize, Qt
from qgis.PyQt.QtGui import QColor, QImage

pytestmark = pytest.mark.qgis
gdal.UseExceptions()

SCREENSHOT = Path(__file__).with_name("screenshot.py")


@pytest.fixture(scope="session")
def classes(outputs):
    tag = gdal.Open(str(outputs.map)).GetMetadataItem("EARTHGATE_CLASSES")
    return [(entry["name"], entry["color"]) for entry in json.loads(tag)]


def legend(layer):
    tree = QgsLayerTree()
    entry = tree.addLayer(layer)
    model = QgsLayerTreeModel(tree)
    return [node.data(Qt.DisplayRole) for node in model.layerLegendNodes(entry)]


def drawn(layer):
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setExtent(layer.extent())
    settings.setOutputSize(QSize(layer.width(), layer.height()))
    settings.setBackgroundColor(QColor(0, 0, 0, 0))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def test_a_map_opens_with_exactly_its_classes(outputs, classes):
    layer = QgsRasterLayer(str(outputs.map), "map")

    renderer = layer.renderer()
    shown = [(c.value, c.label, c.color.name(), c.color.alpha()) for c in renderer.classes()]
    assert [name for name, _ in classes] == [
        "building",
        "road",
        "bare ground",
        "vegetation",
        "water",
    ]
    assert len({color for _, color in classes}) == len(classes)
    assert renderer.type() == "paletted"
    assert shown == [(value, *entry, 255) for value, entry in enumerate(classes)]
    assert [text for text in legend(layer) if not text.startswith("Band")] == [
        name for name, _ in classes
    ]


def test_a_map_is_drawn_in_its_colours_and_transparent_without_data(outputs, classes):
    layer = QgsRasterLayer(str(outputs.map), "map")

    picture = drawn(layer)

    colors = {value: QColor(color).getRgb() for value, (_, color) in enumerate(classes)}
    colors[255] = (0, 0, 0, 0)
    values = gdal.Open(str(outputs.map)).ReadAsArray()[::7, ::7]
    assert 255 in values
    assert len(set(values.flat)) > 2
    assert [
        [picture.pixelColor(7 * col, 7 * row).getRgb() for col in range(values.shape[1])]
        for row in range(values.shape[0])
    ] == [[colors[value] for value in line] for line in values]


def test_a_map_parted_from_its_style_file_keeps_names_and_colours(outputs, classes, tmp_path):
    for path in (outputs.map, Path(f"{outputs.map}.aux.xml")):
        shutil.copy(path, tmp_path)

    layer = QgsRasterLayer(str(tmp_path / outputs.map.name), "map")

    shown = [(entry.label, entry.color.name()) for entry in layer.renderer().classes()]
    assert shown[: len(classes)] == classes


def test_polygons_open_with_their_classes(outputs, classes):
    layer = QgsVectorLayer(str(outputs.polygons), "polygons", "ogr")

    renderer = layer.renderer()
    shown = [(entry.label(), entry.symbol().color().name()) for entry in renderer.categories()]
    used = layer.uniqueValues(layer.fields().indexFromName(renderer.classAttribute()))
    assert renderer.type() == "categorizedSymbol"
    assert shown == classes
    assert legend(layer) == [name for name, _ in classes]
    assert used
    assert used <= {entry.value() for entry in renderer.categories()}


def test_the_window_of_qgis_shows_every_class_without_a_click(outputs, classes, tmp_path):
    path = tmp_path / "window.png"

    subprocess.run(
        [sys.executable, SCREENSHOT, path, outputs.map, outputs.polygons], check=True, timeout=120
    )

    picture = QImage(str(path))
    colors = {
        picture.pixelColor(col, row).name()
        for col in range(picture.width() // 4)  # the panel with the layer tree
        for row in range(picture.height())
    }
    assert {color for _, color in classes} <= colors
