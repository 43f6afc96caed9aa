import json
import os
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFillSymbol,
    QgsGeometry,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsSingleSymbolRenderer,
    QgsVectorLayer,
)
from qgis.gui import QgsMessageBar
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, Qt, QThread, pyqtSignal
from qgis.PyQt.QtGui import QImage, QTextDocument
from qgis.PyQt.QtWidgets import QAction, QMainWindow, QMessageBox, QTextBrowser
from screenshot import in_qgis

from earthgate_qgis import layers
from earthgate_qgis.dock import EarthgateDock
from earthgate_qgis.options_page import OptionsPage
from earthgate_qgis.process import locked
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
PRESSED_PATIENCE_S = 400
QUICK = "--minutes 0.2"


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
    take_away(dock)


def take_away(dock):
    # Left to Python, it goes when its collector runs, even in the middle of a signal.
    dock.unload()
    sip.delete(dock)


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


def shown(label):
    """Return what a label shows, be it rich text or plain."""
    told, form = label.text(), label.textFormat()
    if form == Qt.TextFormat.RichText or (
        form == Qt.TextFormat.AutoText and Qt.mightBeRichText(told)
    ):
        document = QTextDocument()
        document.setHtml(told)
        return document.toPlainText()
    return told


def digitise(layer, name, field="class"):
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(0, 0, 9, 9)))
    feature[field] = name
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
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    monkeypatch.setattr("earthgate_qgis.task._ETA_AFTER_S", 0.01)

    said = ended(EngineTask("town", adapt_line(tmp_path), engine, adapt_s=0.05))

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


def test_corrected_bands_and_the_chosen_field_stay(dock, project, monkeypatch):
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    known = QgsVectorLayer(
        "Polygon?crs=EPSG:32737&field=class:string&field=kind:string", "", "memory"
    )
    project.addMapLayer(known)
    digitise(known, "road", field="kind")
    dock.form.labels.setLayer(known)
    dock.form.label_field.setField("kind")
    for choice, band in zip(dock.form.bands.choices.values(), (3, 2, 1), strict=True):
        choice.setCurrentIndex(band)
    passed = []

    for _ in range(2):
        dock.start.click()
        words = dict(pairwise(dock.task.arguments))
        passed.append((words["--bands"], words["--label-field"]))
        wait_for(lambda: dock.task is None)
        dock.ask_for_models()
        wait_for(lambda: not dock.problem.text())

    assert passed == [("red=3,green=2,blue=1", "kind")] * 2


def test_bands_are_guessed_anew_for_another_image(dock, project, outputs, tmp_path):
    path = tmp_path / "bgr.tif"
    swapped = gdal.Translate(str(path), str(outputs.scene), bandList=[3, 2, 1])
    for band, name in enumerate(("blue", "green", "red"), 1):
        swapped.GetRasterBand(band).SetColorInterpretation(MEANT[name])
    swapped = None
    project.addMapLayer(QgsRasterLayer(str(path), "bgr"))
    before = dock.form.job().bands

    dock.form.scene.setLayer(project.mapLayersByName("bgr")[0])

    assert (before, dock.form.job().bands) == ("red=1,green=2,blue=3", "red=3,green=2,blue=1")


def test_the_chosen_model_stays_when_models_are_listed_again(dock):
    models = [{"name": name, "file": name, "bands": RGB} for name in ("first", "second")]
    dock.form.set_models(models)
    dock.form.model.setCurrentIndex(1)

    dock.form.set_models([*reversed(models)])

    assert dock.form.model.currentText() == "second"


@pytest.mark.parametrize("key", ["classes", "seconds", "decision", "outputs"])
def test_a_result_of_another_version_ends_the_run_with_a_sentence(dock, monkeypatch, key):
    monkeypatch.setenv("FAKE_DROP", key)

    run(dock)

    assert dock.start.isEnabled()
    assert dock.summary.text() == (
        f"The engine's answer does not fit this plugin (KeyError: '{key}'); install the engine of "
        "the plugin's version in Settings &gt; Options &gt; earthgate."
    ).replace("'", "&#x27;")


def test_models_of_another_version_are_told(scene, engine, monkeypatch):
    monkeypatch.setenv("FAKE_DROP", "models")

    with opened(scene) as dock:
        assert "does not fit this plugin" in dock.problem.text()
        assert not dock.start.isEnabled()


@pytest.mark.parametrize("sentence", ["The band 'red' is A & B.", "a < b, <b>c</b>"])
def test_an_error_is_shown_as_the_engine_says_it(dock, monkeypatch, sentence):
    monkeypatch.setenv("FAKE_ERROR", sentence)

    run(dock)

    assert shown(dock.summary) == sentence
    barred = dock._iface.messageBar().items()[0].findChild(QTextBrowser)
    assert barred.toPlainText().strip() == f"earthgate: {sentence}"


def test_a_sidecar_that_was_left_can_be_replaced(dock, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        QMessageBox,
        "question",
        lambda *words: asked.append(words[-1]) or QMessageBox.StandardButton.Yes,
    )
    (tmp_path / "scenes" / "town_map.qml").touch()

    dock.start.click()

    assert asked[0].splitlines()[2:] == ["town_map.qml"]
    assert "--overwrite" in dock.task.arguments
    wait_for(lambda: dock.task is None)


def test_a_cancelled_run_leaves_alone_what_another_one_writes(dock, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    dock.start.click()
    wait_for(lambda: "Adapting" in dock.stage.text())
    theirs = tmp_path / "scenes" / ".town_map.tif.earthgate"
    finished = tmp_path / "scenes" / "town_map.gpkg"
    finished.touch()

    with locked(theirs / "lock") as is_theirs:
        dock.cancel.click()
        wait_for(lambda: dock.task is None)

    assert is_theirs
    assert theirs.is_dir()
    assert finished.exists()


def test_results_do_not_go_into_another_project(dock, project, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    dock.start.click()
    project.clear()
    wait_for(lambda: dock.task is None)

    assert project.mapLayers() == {}
    assert (
        f"Another project is open; the files are in {tmp_path / 'scenes'}." in dock.summary.text()
    )


def test_a_result_that_does_not_open_is_told(dock, project, monkeypatch, tmp_path):
    broken = json.loads((tmp_path / "result.json").read_text())
    broken["outputs"]["vector"] = str(tmp_path / "result.json")
    (tmp_path / "result.json").write_text(json.dumps(broken))

    run(dock)

    assert {layer.name() for layer in results(project)} == {"Map", "Confidence"}
    assert "QGIS cannot open " in dock.summary.text()


@pytest.mark.parametrize("crs", ["EPSG:32737", "PROJ:+proj=utm +zone=37 +south +ellps=intl"])
def test_a_reference_system_that_the_user_gave_is_passed_on(dock, project, tmp_path, crs):
    path = tmp_path / "bare.tif"
    gdal.GetDriverByName("GTiff").Create(str(path), 4, 4, 3).SetGeoTransform((0, 1, 0, 0, 0, -1))
    bare = QgsRasterLayer(str(path), "bare")
    project.addMapLayer(bare)
    dock.form.scene.setLayer(bare)
    before = dock.problem.text()

    bare.setCrs(QgsCoordinateReferenceSystem(crs))

    words = dict(pairwise(dock.form.job().arguments()))
    assert before == (
        "bare has no coordinate reference system; set it with Layer &gt; Set CRS of Layer(s)."
    )
    assert dock.start.isEnabled()
    passed = QgsCoordinateReferenceSystem()
    passed.createFromUserInput(words["--assume-crs"])
    assert passed.toProj() == bare.crs().toProj()
    assert words["--assume-crs"].startswith("EPSG:") is crs.startswith("EPSG:")


def test_a_reference_system_of_the_file_is_left_to_the_engine(dock):
    assert "--assume-crs" not in dock.form.job().arguments()


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


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_earlier_layers_stay_as_they_are_when_a_run_fails(dock, project, monkeypatch, platform):
    run(dock)
    monkeypatch.setattr("earthgate_qgis.dock.sys", SimpleNamespace(platform=platform))
    styled = project.mapLayersByName("Polygons")[0]
    styled.setRenderer(QgsSingleSymbolRenderer(QgsFillSymbol()))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    monkeypatch.setenv("FAKE_ERROR", "The disk is full; make room.")

    run(dock)

    polygons = project.mapLayersByName("Polygons")[0]
    assert dock.summary.text() == "The disk is full; make room."
    assert polygons.isValid()
    assert polygons.featureCount() > 0
    assert polygons.renderer().type() == "singleSymbol"


def test_files_to_be_replaced_can_be_closed_and_opened_as_they_were(dock, project):
    run(dock)
    shown = {layer.name(): layer for layer in results(project)}
    shown["Polygons"].setRenderer(QgsSingleSymbolRenderer(QgsFillSymbol()))

    closed = layers.LetGo(project, list(dock.form.job().outputs().values()))

    assert not any(layer.isValid() for layer in shown.values())
    closed.open_again()
    assert all(layer.isValid() for layer in shown.values())
    assert shown["Polygons"].renderer().type() == "singleSymbol"
    assert [entry.label for entry in shown["Map"].renderer().classes()] == dock.form.classes


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_a_project_saved_during_a_run_keeps_its_layers(
    dock, project, monkeypatch, tmp_path, platform
):
    run(dock)
    monkeypatch.setattr("earthgate_qgis.dock.sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    monkeypatch.setenv("FAKE_SECONDS", "60")
    dock.start.click()
    wait_for(lambda: "Adapting" in dock.stage.text())

    project.write(str(tmp_path / "town.qgs"))

    is_closed = platform == "win32"  # where the engine could not replace an open file
    wait_for(lambda: {layer.isValid() for layer in results(project)} == {not is_closed})
    dock.cancel.click()
    wait_for(lambda: dock.task is None)
    saved = QgsProject()
    saved.read(str(tmp_path / "town.qgs"))
    assert {layer.source().split("|")[0] for layer in saved.mapLayers().values()} == {
        str(tmp_path / "scenes" / f"town{end}")
        for end in (".tif", "_map.tif", "_map.gpkg", "_map_conf.tif")
    }
    assert all(layer.isValid() for layer in results(project))


def test_polygons_being_edited_are_replaced_soundly(dock, project, monkeypatch):
    run(dock)
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    before = project.mapLayersByName("Polygons")[0]
    count = before.featureCount()
    before.startEditing()
    before.deleteFeature(next(before.getFeatures()).id())
    before.commitChanges(False)  # the edits are saved, and SQLite's log of them is open

    run(dock)

    after = project.mapLayersByName("Polygons")[0]
    assert after.featureCount() == count
    with closing(sqlite3.connect(after.source())) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_unsaved_edits_of_results_are_not_replaced(dock, project):
    run(dock)
    polygons = project.mapLayersByName("Polygons")[0]
    polygons.startEditing()
    polygons.deleteFeature(next(polygons.getFeatures()).id())

    dock.start.click()

    assert dock.task is None
    assert polygons.isModified()
    assert dock.summary.text() == (
        "Polygons has unsaved edits, and its file is about to be replaced; save or discard them "
        "first."
    )


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


@pytest.fixture
def surface(project, outputs, tmp_path):
    path = tmp_path / "surface.tif"
    gdal.Translate(str(path), str(outputs.scene), bandList=[1], outputSRS="EPSG:3857")
    layer = QgsRasterLayer(str(path), "surface")
    project.addMapLayer(layer)
    return layer


def test_heights_go_to_the_engine_where_they_are_chosen(dock, surface, monkeypatch):
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)
    seen = []

    for layer in (None, surface):
        dock.form.heights.setLayer(layer)
        dock.start.click()
        seen.append(dock.task.arguments)
        wait_for(lambda: dock.task is None)

    assert "--dsm" not in seen[0]
    assert dict(pairwise(seen[1]))["--dsm"] == surface.source()


def test_heights_that_are_no_file_are_refused(dock, project):
    tiles = QgsRasterLayer("type=xyz&url=http://localhost/{z}/{x}/{y}.png", "tiles", "wms")
    project.addMapLayer(tiles)

    dock.form.heights.setLayer(tiles)

    assert not dock.start.isEnabled()
    assert dock.problem.text().startswith("tiles is no file on this machine;")


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


@pytest.mark.parametrize(
    ("name", "crs", "told"),
    [
        (
            " Road",
            "EPSG:32737",
            (
                "known has ' Road' in its field class; expected the model's classes building, "
                "road, bare ground, vegetation, water, or other; change them there."
            ),
        ),
        (
            "road",
            "",
            "known has no coordinate reference system; set it with Layer > Set CRS of Layer(s).",
        ),
    ],
)
def test_labels_that_the_engine_would_refuse_are_refused_by_name(dock, project, name, crs, told):
    layer = labels(project, crs)
    digitise(layer, name)
    dock.form.labels.setLayer(layer)

    dock.start.click()

    assert dock.task is None
    assert shown(dock.summary) == told


@pytest.mark.parametrize("name", ["other", "4", None, "", " "])
def test_labels_may_say_other_a_value_or_nothing(dock, project, name):
    layer = labels(project)
    digitise(layer, name)
    dock.form.labels.setLayer(layer)

    run(dock)

    assert "Adapted" in dock.summary.text()


def test_a_label_file_that_does_not_open_is_refused(dock, tmp_path):
    path = tmp_path / "scenes" / "town_labels.gpkg"
    path.write_text("no database")

    dock.form.new_labels.click()

    assert dock.summary.text() == f"{path} is there, but does not open; rename it, and try again."


def test_an_image_that_is_gone_is_told(dock, tmp_path):
    (tmp_path / "scenes" / "town.tif").unlink()

    dock.start.click()

    assert dock.task is None
    assert shown(dock.summary).startswith("town is no file on this machine")


def test_no_place_for_temporary_files_is_told(dock, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")

    dock.start.click()

    assert dock.task is None
    assert "/nowhere/" in dock.summary.text()


def test_unloading_the_plugin_ends_the_question_for_models(scene, tmp_path, monkeypatch):
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("EARTHGATE_EXECUTABLE", str(slow))
    dock = EarthgateDock(interface(scene))
    dock.ask_for_models()
    wait_for((tmp_path / "begun").exists)
    began = time.monotonic()

    take_away(dock)

    assert time.monotonic() - began < CANCEL_S


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


def test_results_are_offered_neither_as_scene_nor_beside_it(dock):
    run(dock)

    offered = [
        [combo.layer(index).name() for index in range(combo.count()) if combo.layer(index)]
        for combo in (dock.form.scene, dock.form.heights, dock.form.labels)
    ]
    assert offered == [["town"], ["town"], []]


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
    project.mapLayersByName("five")[0].setCrs(QgsCoordinateReferenceSystem("EPSG:32737"))
    dock.form.scene.setLayer(project.mapLayersByName("five")[0])
    before = dock.start.isEnabled(), dock.problem.text()

    for band, choice in enumerate(dock.form.bands.choices.values(), 2):
        choice.setCurrentIndex(band)

    assert before == (False, "Say which band is which.")
    assert dock.start.isEnabled()
    assert dock.form.job().bands == "red=2,green=3,blue=4"


def test_the_tabulator_goes_from_top_to_bottom(dock):
    form = dock.form
    stops = [form.scene, *form.bands.choices.values(), form.model, form.heights]
    stops += [form.labels, form.new_labels, form.label_field, form.minutes]

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
    page.engine.setFilePath("/elsewhere/earthgate")

    page.apply()

    assert (kept, told) == (["/elsewhere/earthgate"], ["asked again"])


def test_a_failed_installation_says_why(tmp_path):
    page = OptionsPage(None, "0.1.0", lambda: None)
    page.source.setText(str(tmp_path / "missing.whl"))

    page.install.click()
    wait_for(page.install.isEnabled)

    assert "missing.whl" in page.log.toPlainText()


def test_the_button_adapts_and_maps_in_the_real_qgis(outputs, tmp_path):
    scene, folder = tmp_path / "town.tif", Path(os.environ.get("EARTHGATE_PICTURES", tmp_path))
    gdal.Translate(str(scene), str(outputs.scene), srcWin=[40, 0, PRESSED_PX, PRESSED_PX])
    # The shortest time that the panel offers is long for a test.
    quick = tmp_path / "earthgate"
    quick.write_text(
        f"""#!/bin/sh\n[ "$1" = adapt ] && set -- "$@" {QUICK}\nexec '{outputs.engine}' "$@"\n"""
    )
    quick.chmod(0o755)
    variables = {
        "EARTHGATE_SCENE": str(scene),
        "EARTHGATE_FOLDER": str(folder),
        "EARTHGATE_EXECUTABLE": str(quick),
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
