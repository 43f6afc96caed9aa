import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsFeature,
    QgsGeometry,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsMessageBar
from qgis.PyQt.QtCore import QObject, QThread, pyqtSignal
from qgis.PyQt.QtGui import QImage
from qgis.PyQt.QtWidgets import QAction, QMainWindow, QMessageBox
from screenshot import in_qgis

from earthgate_qgis import layers
from earthgate_qgis.dock import EarthgateDock
from earthgate_qgis.options_page import OptionsPage
from earthgate_qgis.task import EngineTask

pytestmark = pytest.mark.qgis
gdal.UseExceptions()

HERE = Path(__file__).parent
FAKE = HERE / "fake_engine.py"
RGB = ["red", "green", "blue"]
XYZ = "type=xyz&url=http://127.0.0.1:9/{z}/{x}/{y}.png&zmin=0&zmax=1"
MEANT = {
    "red": gdal.GCI_RedBand,
    "green": gdal.GCI_GreenBand,
    "blue": gdal.GCI_BlueBand,
    "alpha": gdal.GCI_AlphaBand,
    "gray": gdal.GCI_GrayIndex,
    "undefined": gdal.GCI_Undefined,
}
PATIENCE_S = 30
CANCEL_S = 2
QGIS_STATISTICS = "town.tif.aux.xml"  # QGIS writes them beside what it draws
PRESSED_PX = 256
PRESSED_PATIENCE_S = 400  # adapting takes a minute of them


class Clicks(QObject):
    layer = pyqtSignal(object)


def interface(layer):
    """As much of QGIS's interface as the panel uses."""
    clicks, window, bar, action = Clicks(), QMainWindow(), QgsMessageBar(), QAction()
    return SimpleNamespace(
        currentLayerChanged=clicks.layer,
        setActiveLayer=clicks.layer.emit,
        activeLayer=lambda: layer,
        mainWindow=lambda: window,
        messageBar=lambda: bar,
        actionAddFeature=lambda: action,
        clicks=clicks,
    )


def wait_for(condition):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        QgsApplication.processEvents()
        time.sleep(0.005)


@pytest.fixture
def project():
    yield QgsProject.instance()
    QgsProject.instance().clear()


@pytest.fixture
def engine(monkeypatch, outputs, tmp_path):
    result = tmp_path / "result.json"
    result.write_text(json.dumps(outputs.document))
    monkeypatch.setenv("EARTHGATE_EXECUTABLE", str(FAKE))
    monkeypatch.setenv("FAKE_RESULT", str(result))
    return [str(FAKE)]


@pytest.fixture
def scene(project, outputs, tmp_path):
    path = tmp_path / "scenes" / "town.tif"
    path.parent.mkdir()
    shutil.copy(outputs.scene, path)
    layer = QgsRasterLayer(str(path), "town")
    project.addMapLayer(layer)
    return layer


@contextmanager
def opened(layer):
    dock = EarthgateDock(interface(layer))
    dock.show()
    dock.ask_for_models()
    wait_for(lambda: "Asking" not in dock.problem.text())
    yield dock
    dock.unload()


@pytest.fixture
def dock(engine, scene):
    with opened(scene) as dock:
        yield dock


def run(dock):
    dock.start.click()
    wait_for(lambda: dock.task is None)


def results(project):
    return [layer for layer in project.mapLayers().values() if layers.is_result(layer)]


def labels(project, crs="EPSG:32737"):
    layer = QgsVectorLayer(f"Polygon?crs={crs}&field=class:string(20)", "known", "memory")
    project.addMapLayer(layer)
    return layer


def digitise(layer, name):
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(0, 0, 9, 9)))
    feature["class"] = name
    layer.startEditing()
    layer.addFeature(feature)


def heard(task):
    said = []
    for name in ("result", "failed", "cancelled", "told"):
        getattr(task, name).connect(
            lambda *facts, name=name: said.append((name, *facts, QThread.currentThread()))
        )
    return said


def ended(task):
    said = heard(task)
    QgsApplication.taskManager().addTask(task)
    wait_for(lambda: {"result", "failed", "cancelled"} & {name for name, *_ in said})
    return said


def adapt_line(folder):
    names = {"--dst": "a_map.tif", "--vector": "a.gpkg", "--out": "a.adapter", "--report": "a.html"}
    return ["adapt", *(word for key, name in names.items() for word in (key, str(folder / name)))]


def test_a_task_tells_its_stages_and_its_result_in_the_main_thread(engine, tmp_path):
    task = EngineTask("town", adapt_line(tmp_path), engine, adapt_s=60)

    said = ended(task)

    stages = [text for name, text, _ in said if name == "told"]
    name, document, _ = said[-1]
    assert {thread for *_, thread in said} == {QgsApplication.instance().thread()}
    assert stages[0] == "Adapting to the scene..."
    assert stages[-1] == "Drawing polygons..."
    assert (name, document["decision"]) == ("result", "adapted")


def test_a_task_tells_the_time_left_once_it_is_known(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    monkeypatch.setattr("earthgate_qgis.task._ETA_AFTER_S", 0.01)

    said = ended(EngineTask("town", adapt_line(tmp_path), engine, adapt_s=60))

    assert "Adapting to the scene, about 1 s left" in [facts[0] for _, *facts in said]


def test_the_time_left_keeps_to_the_limit(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    monkeypatch.setattr("earthgate_qgis.task._ETA_AFTER_S", 0.01)

    said = ended(EngineTask("town", adapt_line(tmp_path), engine, adapt_s=0.1))

    adapting = [text for name, text, _ in said if name == "told" and text.startswith("Adapting")]
    assert set(adapting) == {"Adapting to the scene..."}


def test_a_failed_task_passes_on_the_engines_sentence(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_ERROR", "town.tif has no CRS; pass --assume-crs.")

    said = ended(EngineTask("town", adapt_line(tmp_path), engine, adapt_s=60))

    assert said[-1][:2] == ("failed", "town.tif has no CRS; pass --assume-crs.")


def test_a_cancelled_run_ends_in_time_and_leaves_nothing(dock, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    dock.start.click()
    wait_for(lambda: "Adapting" in dock.stage.text())

    began = time.monotonic()
    dock.cancel.click()
    wait_for(lambda: dock.task is None)

    assert time.monotonic() - began < CANCEL_S
    assert dock.summary.text() == "Cancelled."
    assert dock.start.isEnabled()
    assert {path.name for path in (tmp_path / "scenes").iterdir()} <= {"town.tif", QGIS_STATISTICS}


def test_unloading_the_plugin_ends_a_run(engine, scene, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    with opened(scene) as dock:
        dock.start.click()
        wait_for(lambda: "Adapting" in dock.stage.text())
        began = time.monotonic()

    dock.deleteLater()
    wait_for(lambda: QgsApplication.taskManager().countActiveTasks() == 0)
    assert time.monotonic() - began < CANCEL_S
    assert not (tmp_path / "scenes" / "town_map.tif").exists()


def test_results_come_as_a_group_with_confidence_off(dock, project):
    run(dock)

    group = project.layerTreeRoot().children()[0]
    nodes = group.children()
    entries = nodes[1].layer().renderer().classes()
    assert group.name() == "town"
    assert [layers.is_result(node.layer()) for node in nodes] == [True] * 3
    assert [node.name() for node in nodes] == ["Polygons", "Map", "Confidence"]
    assert [node.isVisible() for node in nodes] == [True, True, False]
    assert [entry.label for entry in entries] == dock.form.classes
    assert nodes[0].layer().renderer().type() == "categorizedSymbol"


def test_results_lie_under_labels_and_over_the_scene(dock, project):
    labels(project)

    run(dock)

    known, group, scene = project.layerTreeRoot().children()
    assert (known.name(), group.name()) == ("known", "town")
    assert len(group.children()) == 3
    assert scene.layer() is dock.form.scene.currentLayer()


def test_the_summary_says_decision_time_and_shares(dock):
    run(dock)

    told = dock.summary.text()
    assert "Adapted: 2 of 12 modules. Took " in told
    assert "bare ground" in told
    assert "town_report.html" in told
    wait_for(lambda: len(dock._iface.messageBar().items()) == 1)
    assert dock._iface.messageBar().items()[0].text() == "town is mapped: the model was adapted."


def test_a_second_run_replaces_the_layers_in_their_group(dock, project, monkeypatch):
    run(dock)
    before = {layer.id() for layer in project.mapLayers().values()}
    group = project.layerTreeRoot().children()[0]
    group.setName("my town")
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)

    run(dock)

    after = {layer.id() for layer in project.mapLayers().values()}
    assert [node.name() for node in project.layerTreeRoot().children()] == ["my town", "town"]
    assert [node.name() for node in group.children()] == ["Polygons", "Map", "Confidence"]
    assert all(node.layer().isValid() for node in group.children())
    assert len(after) == len(before) == 4
    assert len(after & before) == 1


def test_nothing_is_replaced_without_consent(dock, monkeypatch):
    run(dock)
    asked = []
    monkeypatch.setattr(
        QMessageBox,
        "question",
        lambda *words: asked.append(words[-1]) or QMessageBox.StandardButton.No,
    )

    dock.start.click()

    assert dock.task is None
    assert asked[0].splitlines()[2:] == [
        "town_map.tif",
        "town_map.gpkg",
        "town_map_conf.tif",
        "town.adapter.safetensors",
        "town_report.html",
    ]


def test_overwrite_is_passed_only_after_consent(dock, monkeypatch):
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    passed = []

    for _ in range(2):
        dock.start.click()
        passed.append("--overwrite" in dock.task.arguments)
        wait_for(lambda: dock.task is None)

    assert passed == [False, True]


def test_earlier_layers_come_back_when_a_run_fails(dock, project, monkeypatch):
    run(dock)
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    monkeypatch.setenv("FAKE_ERROR", "The disk is full; make room.")

    run(dock)

    polygons = project.mapLayersByName("Polygons")[0]
    assert dock.summary.text() == "The disk is full; make room."
    assert polygons.isValid()
    assert polygons.featureCount() > 0
    assert polygons.renderer().type() == "categorizedSymbol"


@pytest.mark.parametrize("rasters", [False, True])
def test_files_to_be_replaced_are_closed(dock, project, rasters):
    run(dock)
    files = list(dock.form.job().outputs().values())

    open_again = layers.let_go(project, files, rasters=rasters)

    shown = {layer.name(): layer for layer in results(project)}
    assert not shown["Polygons"].isValid()
    assert shown["Map"].isValid() is not rasters
    open_again()
    assert all(layer.isValid() for layer in shown.values())


def test_labels_go_to_the_engine_with_their_unsaved_edits(dock, project):
    layer = labels(project)
    digitise(layer, "road")
    dock.form.labels.setLayer(layer)
    seen = []
    dock.start.click()
    words = dock.task.arguments
    dock.task.result.connect(lambda document: seen.append(document["words"]))
    written = QgsVectorLayer(words[words.index("--labels") + 1], "", "ogr")
    classes = [feature["class"] for feature in written.getFeatures()]
    wait_for(lambda: dock.task is None)

    assert classes == ["road"]
    assert layer.isEditable()
    assert seen[0][seen[0].index("--label-field") + 1] == "class"
    assert not Path(words[words.index("--labels") + 1]).exists()


def test_the_button_offers_to_improve_a_map_with_labels(dock, project):
    before = dock.start.text()
    run(dock)
    dock.form.labels.setLayer(labels(project))

    assert before == "Adapt and map"
    assert dock.start.text() == "Improve with my labels"


def test_labels_without_polygons_are_refused(dock, project):
    dock.form.labels.setLayer(labels(project))

    dock.start.click()

    sentence = "known has no polygons yet; digitise some, or choose no labels."
    assert dock.task is None
    assert dock.summary.text() == sentence
    assert dock._iface.messageBar().items()[0].text() == sentence


def test_new_labels_offer_the_models_classes(dock):
    dock.form.new_labels.click()

    layer = dock.form.labels.currentLayer()
    setup = layer.editorWidgetSetup(layer.fields().lookupField("class"))
    assert Path(layer.source().split("|")[0]).name == "town_labels.gpkg"
    assert layer.isEditable()
    assert layer.crs().authid() == "EPSG:32737"
    assert [next(iter(choice)) for choice in setup.config()["map"]] == dock.form.classes


def test_labels_of_an_earlier_day_are_not_written_over(dock, project):
    dock.form.new_labels.click()
    layer = dock.form.labels.currentLayer()
    digitise(layer, "water")
    layer.commitChanges()
    project.removeMapLayer(layer.id())

    dock.form.new_labels.click()

    again = dock.form.labels.currentLayer()
    assert [feature["class"] for feature in again.getFeatures()] == ["water"]


def test_a_layer_without_a_file_is_refused_with_advice(dock, project):
    tiles = QgsRasterLayer(XYZ, "street tiles", "wms")
    project.addMapLayer(tiles)

    dock._iface.setActiveLayer(tiles)

    assert not dock.start.isEnabled()
    assert dock.problem.text() == (
        "street tiles is no file on this machine; save the part to map with Layer &gt; Save As... "
        "and choose the saved layer."
    )


def test_results_are_offered_neither_as_scene_nor_as_labels(dock):
    run(dock)

    offered = [
        [combo.layer(index).name() for index in range(combo.count()) if combo.layer(index)]
        for combo in (dock.form.scene, dock.form.labels)
    ]
    assert offered == [["town"], []]


def test_a_missing_engine_is_said_with_the_way_to_the_settings(scene, monkeypatch):
    monkeypatch.setenv("EARTHGATE_EXECUTABLE", "/nowhere/earthgate")

    with opened(scene) as dock:
        assert not dock.start.isEnabled()
        assert dock.problem.text().startswith("/nowhere/earthgate is not a program")
        assert dock.problem.text().endswith('<a href="earthgate:settings">Settings</a>')


@pytest.mark.parametrize(
    ("interpretations", "descriptions", "expected"),
    [
        ("red green blue", ["", "", ""], [1, 2, 3]),
        ("blue green red", ["", "", ""], [3, 2, 1]),
        ("red green blue", ["nir", "red", "green"], [1, 2, 3]),
        ("gray", [""], [1, 1, 1]),
        ("gray alpha", ["", ""], [1, 1, 1]),
        ("gray undefined undefined", ["", "", ""], [1, 2, 3]),
        ("gray undefined undefined undefined", ["", "", "", ""], [0, 0, 0]),
        ("gray undefined undefined undefined", ["B", "G", "R", "Near infrared"], [3, 2, 1]),
    ],
)
def test_bands_are_guessed_as_the_engine_reads_them(
    tmp_path, interpretations, descriptions, expected
):
    path = tmp_path / "bands.tif"
    raster = gdal.GetDriverByName("GTiff").Create(str(path), 4, 4, len(descriptions))
    for band, name in enumerate(interpretations.split(), 1):
        raster.GetRasterBand(band).SetColorInterpretation(MEANT[name])
        raster.GetRasterBand(band).SetDescription(descriptions[band - 1])
    raster = None

    assert layers.guess_bands(QgsRasterLayer(str(path), ""), RGB) == expected


def test_bands_that_nothing_names_must_be_chosen(dock, project, tmp_path):
    path = tmp_path / "five.tif"
    gdal.GetDriverByName("GTiff").Create(str(path), 4, 4, 5, options=["PHOTOMETRIC=MINISBLACK"])
    project.addMapLayer(QgsRasterLayer(str(path), "five"))
    dock.form.scene.setLayer(project.mapLayersByName("five")[0])
    before = dock.start.isEnabled(), dock.problem.text()

    for band, choice in enumerate(dock.form.bands.choices.values(), 2):
        choice.setCurrentIndex(band)

    assert before == (False, "Say which band is which.")
    assert dock.start.isEnabled()
    assert dock.form.job().bands == "red=2,green=3,blue=4"


def test_the_tabulator_goes_from_top_to_bottom(dock):
    form = dock.form
    stops = [form.scene, *form.bands.choices.values(), form.model, form.labels, form.new_labels]
    stops += [form.label_field, form.minutes]

    chain, widget = [], form.scene
    for _ in range(60):
        chain.append(widget)
        widget = widget.nextInFocusChain()

    assert [widget for widget in chain if widget in stops][: len(stops)] == stops


def test_the_options_page_says_what_is_broken_and_how_to_mend_it(engine):
    page = OptionsPage(None, "0.1.0", lambda: None)

    page.test.click()
    wait_for(page.test.isEnabled)

    assert page.findings.toPlainText().splitlines()[0] == (
        "earthgate 0.1.0, Python 3.11.2: something is broken."
    )
    assert "no database. To mend it, unset PROJ_LIB." in page.findings.toPlainText()


def test_the_options_page_keeps_the_choice_and_tells_the_panel(monkeypatch):
    kept, told = [], []
    monkeypatch.setattr("earthgate_qgis.settings.set_engine_path", kept.append)
    page = OptionsPage(None, "0.1.0", lambda: told.append("asked again"))
    page.apply()
    page.engine.setFilePath("/opt/earthgate")

    page.apply()

    assert (kept, told) == (["/opt/earthgate"], ["asked again"])


def test_a_failed_installation_says_why(tmp_path):
    page = OptionsPage(None, "0.1.0", lambda: None)
    page.source.setText(str(tmp_path / "missing.whl"))

    page.install.click()
    wait_for(page.install.isEnabled)

    assert "missing.whl" in page.log.toPlainText()


def test_the_button_adapts_and_maps_in_the_real_qgis(outputs, tmp_path):
    scene, folder = tmp_path / "town.tif", Path(os.environ.get("EARTHGATE_PICTURES", tmp_path))
    gdal.Translate(str(scene), str(outputs.scene), srcWin=[40, 0, PRESSED_PX, PRESSED_PX])
    variables = {
        "EARTHGATE_SCENE": str(scene),
        "EARTHGATE_FOLDER": str(folder),
        "EARTHGATE_EXECUTABLE": outputs.engine,
    }

    code = in_qgis(HERE / "press.py", variables, plugin=True, patience_s=PRESSED_PATIENCE_S)

    seen = json.loads((folder / "seen.json").read_text())
    classes = [[entry["name"], entry["color"]] for entry in outputs.document["classes"]]
    polygons, shown, confidence = seen["layers"]
    assert code == 0
    assert seen["groups"] == ["town"]
    assert any(text.startswith("town is mapped: the ") for text in seen["messages"])
    assert shown == {"name": "Map", "visible": True, "renderer": "paletted", "classes": classes}
    assert polygons["name"] == "Polygons"
    assert polygons["classes"] == classes
    assert (confidence["name"], confidence["visible"]) == ("Confidence", False)
    for name in ("dock", "running", "result"):
        assert QImage(str(folder / f"{name}.png")).width() > 1000
