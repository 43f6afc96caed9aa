import json
import os
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsField,
    QgsGeometry,
    QgsProcessingContext,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorFileWriter,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QVariant

from earthgate_qgis.plugin import EarthgatePlugin

pytestmark = pytest.mark.qgis
gdal.UseExceptions()

CANCEL_S = 2
FIELDS = "Polygon?crs=EPSG:32633&field=class:string&field=fid:integer"
SQUARE = QgsRectangle(500_000, 5_499_990, 500_010, 5_500_000)
XYZ = "type=xyz&url=http://127.0.0.1:9/{z}/{x}/{y}.png&zmin=0&zmax=1"

# Keeps its arguments and the labels that it got, writes what it is asked for, and says so.
FAKE = """
    import json, os, shutil, sys, time
    from pathlib import Path

    def say(event, **facts):
        print(json.dumps({"event": event, **facts}), file=sys.stderr, flush=True)

    words = sys.argv[1:]
    options = dict(zip(words, words[1:]))
    here = Path(__file__).parent
    (here / "words.json").write_text(json.dumps(words))
    if "--labels" in options:
        shutil.copy(options["--labels"], here / "labels.gpkg")
    if os.environ.get("FAKE_ERROR"):
        labels = options.get("--labels", "")
        say("error", code=2, message=os.environ["FAKE_ERROR"].format(labels=labels))
        sys.exit(2)
    if "--dst" in options:
        (Path(options["--dst"]).parent / f".{Path(options['--dst']).name}.earthgate").mkdir()
    say("progress", stage="map", done=1, total=2)
    say("log", level="info", message=f"begun {os.getpid()}")
    if os.environ.get("FAKE_HANG"):
        time.sleep(60)
    roles = {"--dst": "vector" if words[0] == "vectorize" else "map", "--vector": "vector"}
    roles.update({"--out": "adapter", "--report": "report"})
    outputs = {role: options[option] for option, role in roles.items() if option in options}
    if "--confidence" in words:
        outputs["confidence"] = outputs["map"].replace(".tif", "_conf.tif")
    for path in outputs.values():
        Path(path).write_text("made")
    scores = {"accuracy": 0.9, "mean_iou": 0.5, "mean_f1": 0.6}
    document = {"outputs": outputs, "decision": "adapted", "polygons": 7, **scores}
    document.pop(os.environ.get("FAKE_DROP"), None)
    say("result", **document)
"""


class Feedback(QgsProcessingFeedback):
    """Keeps what it is told, and cancels once the engine has begun if that is wished."""

    def __init__(self, *, cancel=False):
        super().__init__(False)
        self.told, self.errors, self.cancelled_s = [], [], None
        self.cancel_it = cancel

    def pushInfo(self, text):  # noqa: N802
        self.told.append(text)
        if self.cancel_it and text.startswith("begun"):
            self.cancelled_s = time.monotonic()
            self.cancel()

    def reportError(self, text, fatal=False):  # noqa: N802, FBT002
        self.errors.append(text)


@pytest.fixture(scope="module", autouse=True)
def _provider():
    plugin = EarthgatePlugin(None)
    plugin.initProcessing()
    yield
    plugin.unload()


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "engine"
    folder.mkdir()
    script = folder / "earthgate"
    script.write_text(f"#!{sys.executable}\n{textwrap.dedent(FAKE)}", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("EARTHGATE_EXECUTABLE", str(script))
    for name in ("scene.tif", "map.tif"):
        raster = gdal.GetDriverByName("GTiff").Create(str(tmp_path / name), 8, 8, 3)
        raster.SetGeoTransform((500_000, 1, 0, 5_500_000, 0, -1))
        raster.SetProjection(QgsCoordinateReferenceSystem("EPSG:32633").toWkt())
    return tmp_path


@pytest.fixture
def labels():
    layer = QgsVectorLayer(FIELDS, "places", "memory")
    for name in ("water", "road"):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromRect(SQUARE))
        feature.setAttributes([name, 1])
        layer.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    yield layer
    QgsProject.instance().clear()


def run(name, feedback=None, **parameters):
    algorithm = QgsApplication.processingRegistry().algorithmById(f"earthgate:{name}")
    context, feedback = QgsProcessingContext(), feedback or Feedback()
    context.setProject(QgsProject.instance())
    plain = {
        key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()
    }
    fits, sentence = algorithm.checkParameterValues(plain, context)
    if not fits:
        return sentence
    results, done = algorithm.run(plain, context, feedback)
    return results if done else feedback.errors[-1]


def words(place):
    return json.loads((place / "engine" / "words.json").read_text())


def options_of(place):
    return dict(pairwise(words(place)))


def required(name, place):
    """Return parameters with which an algorithm runs."""
    if name == "evaluate":
        return {"MAP": place / "map.tif", "LABELS": place / "scene.tif"}
    if name == "vectorize":
        return {"MAP": place / "map.tif", "OUTPUT": place / "out.gpkg"}
    return {"SCENE": place / "scene.tif", "OUTPUT": place / "out.tif"}


def made(place):
    names = {path.name for path in place.iterdir()} - {"engine", "scene.tif", "map.tif"}
    return {name for name in names if not name.endswith(".aux.xml")}  # QGIS's statistics


EVERY = pytest.mark.parametrize("name", ["adapt", "map", "vectorize", "evaluate"])


def test_map_asks_for_the_map_with_its_confidence(place):
    feedback = Feedback()

    results = run("map", feedback, **required("map", place))

    out, confidence = str(place / "out.tif"), str(place / "out_conf.tif")
    assert results == {"OUTPUT": out, "CONFIDENCE": confidence}
    assert words(place) == [
        *("map", "--src", str(place / "scene.tif"), "--dst", out, "--confidence", "--overwrite"),
        *("--progress", "json", "--watch-stdin"),
    ]
    assert feedback.progress() == 40  # half of mapping
    assert feedback.told[-1].startswith("begun")


def test_adapt_passes_everything_on(place, labels):
    results = run(
        "adapt",
        **required("adapt", place),
        MODEL="town",
        BANDS="red=3,green=2,blue=1",
        LABELS=labels.id(),
        LABEL_FIELD="class",
        MINUTES=0.5,
        VECTORS=place / "out.gpkg",
        ADAPTER=place / "out.safetensors",
        REPORT=place / "out.html",
    )

    options = options_of(place)
    assert {key: options[key] for key in ("--model", "--bands", "--minutes", "--label-field")} == {
        "--model": "town",
        "--bands": "red=3,green=2,blue=1",
        "--minutes": "0.5",
        "--label-field": "class",
    }
    assert results == {
        "OUTPUT": str(place / "out.tif"),
        "CONFIDENCE": str(place / "out_conf.tif"),
        "VECTORS": str(place / "out.gpkg"),
        "ADAPTER": str(place / "out.safetensors"),
        "REPORT": str(place / "out.html"),
        "DECISION": "adapted",
    }
    assert not Path(options["--labels"]).exists()  # temporary


@pytest.mark.parametrize("name", ["adapt", "map"])
def test_heights_are_passed_on(name, place):
    run(name, **required(name, place), DSM=place / "scene.tif", DTM=place / "map.tif")

    options = options_of(place)
    assert options["--dsm"] == str(place / "scene.tif")
    assert options["--dtm"] == str(place / "map.tif")


def test_the_ground_alone_is_refused(place):
    assert run("map", **required("map", place), DTM=place / "map.tif") == (
        "The ground is given without a surface model; choose one, too."
    )


def test_an_adapter_that_was_not_asked_for_is_not_left(place):
    results = run("adapt", **required("adapt", place))

    assert set(results) == {"OUTPUT", "CONFIDENCE", "DECISION"}
    assert not Path(options_of(place)["--out"]).exists()


def test_only_the_selection_becomes_labels_if_that_is_asked(place, labels):
    labels.selectByExpression("class = 'road'")

    run(
        "adapt",
        **required("adapt", place),
        LABELS=QgsProcessingFeatureSourceDefinition(labels.id(), True),
    )

    passed = QgsVectorLayer(str(place / "engine" / "labels.gpkg"), "", "ogr")
    assert [feature["class"] for feature in passed.getFeatures()] == ["road"]


def test_vectorize_gives_the_polygons_and_their_number(place):
    out = str(place / "out.gpkg")

    assert run("vectorize", **required("vectorize", place)) == {"OUTPUT": out, "POLYGONS": 7}
    assert words(place)[:6] == [
        "vectorize",
        "--map",
        str(place / "map.tif"),
        "--dst",
        out,
        "--overwrite",
    ]


def test_evaluate_gives_the_means(place, labels):
    scores = {"ACCURACY": 0.9, "MEAN_IOU": 0.5, "MEAN_F1": 0.6}

    assert run("evaluate", **required("evaluate", place)) == scores
    assert words(place)[3:5] == ["--labels", str(place / "scene.tif")]
    assert run("evaluate", MAP=place / "map.tif", LABELS=labels.id()) == scores
    assert words(place)[5:7] == ["--label-field", "class"]


@pytest.mark.usefixtures("qgis_processing")
def test_a_script_runs_a_command_like_any_other_algorithm(place):
    import processing  # noqa: PLC0415  # the fixture finds it among QGIS's plugins

    given = {key: str(path) for key, path in required("map", place).items()}

    assert processing.run("earthgate:map", given)["OUTPUT"] == given["OUTPUT"]
    assert options_of(place)["--src"] == given["SCENE"]


@EVERY
def test_what_the_engine_refuses_fails_with_its_sentence(name, place, monkeypatch):
    monkeypatch.setenv("FAKE_ERROR", "The scene is empty.")

    assert run(name, **required(name, place)) == "The scene is empty."
    assert made(place) == set()


@EVERY
def test_a_cancelled_run_fails_in_time_and_leaves_nothing(name, place, monkeypatch):
    monkeypatch.setenv("FAKE_HANG", "1")
    feedback = Feedback(cancel=True)

    told = run(name, feedback, **required(name, place))

    assert told == "The run was cancelled."
    assert time.monotonic() - feedback.cancelled_s < CANCEL_S
    with pytest.raises(ProcessLookupError):
        os.kill(int(feedback.told[-1].split()[1]), 0)
    assert made(place) == set()


@pytest.mark.parametrize(
    ("name", "key"),
    [("adapt", "decision"), ("map", "outputs"), ("vectorize", "polygons"), ("evaluate", "mean_f1")],
)
def test_a_result_of_another_version_fails_with_a_sentence(name, key, place, monkeypatch):
    monkeypatch.setenv("FAKE_DROP", key)

    assert run(name, **required(name, place)) == (
        f"The engine's answer does not fit this plugin (KeyError: '{key}'); install the engine of "
        "the plugin's version in Settings > Options > earthgate."
    )


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("map", {"SCENE": "/nope.tif"}, "SCENE is /nope.tif, which does not open"),
        ("map", {"BANDS": "nonsense"}, "The bands 'nonsense' are not written like"),
        ("adapt", {"LABELS": "/nope.gpkg"}, "LABELS is /nope.gpkg, which does not open"),
        ("evaluate", {"LABELS": "/nope.gpkg"}, "LABELS is /nope.gpkg, which does not open"),
    ],
)
def test_a_step_of_a_model_checks_its_parameters(place, name, given, told):
    step = QgsProcessingModelChildAlgorithm(f"earthgate:{name}")
    for key, value in {**required(name, place), **given}.items():
        source = QgsProcessingModelChildParameterSource.fromStaticValue(str(value))
        step.addParameterSources(key, [source])
    model, feedback = QgsProcessingModelAlgorithm("model"), Feedback()
    model.addChildAlgorithm(step)

    done = model.run({}, QgsProcessingContext(), feedback)[1]

    assert not done
    assert any(told in error for error in feedback.errors)
    assert not (place / "engine" / "words.json").exists()


def test_unsaved_edits_of_an_output_are_not_replaced(place, labels):
    path = place / "out.gpkg"
    options = QgsVectorFileWriter.SaveVectorOptions()
    context = QgsProject.instance().transformContext()
    QgsVectorFileWriter.writeAsVectorFormatV3(labels, str(path), context, options)
    polygons = QgsVectorLayer(str(path), "mine", "ogr")
    QgsProject.instance().addMapLayer(polygons)
    polygons.startEditing()
    polygons.deleteFeature(1)

    told = run("vectorize", **required("vectorize", place))

    assert told.startswith("mine has unsaved edits, and its file is about to be replaced")
    assert polygons.isModified()


def test_a_confidence_that_nobody_was_asked_about_is_not_replaced(place):
    (place / "out_conf.tif").write_text("the user's own")

    told = run("map", **required("map", place))

    assert told.startswith(f"{place / 'out_conf.tif'} exists, and the confidence of the map would")
    (place / "out.tif").touch()  # whose replacement Processing asks about
    assert run("map", **required("map", place))["OUTPUT"] == str(place / "out.tif")


def test_errors_name_the_layer_of_the_labels(place, labels, monkeypatch):
    monkeypatch.setenv("FAKE_ERROR", "{labels} names classes that the model lacks.")

    told = run("adapt", **required("adapt", place), LABELS=labels.id())

    assert told == "places names classes that the model lacks."


@pytest.mark.parametrize(("field", "value"), [("fid", 3), ("geom", "road")])
def test_any_name_will_do_for_the_field_with_the_class(place, labels, field, value):
    labels.dataProvider().addAttributes([QgsField("geom", QVariant.String)])
    labels.updateFields()
    column = labels.fields().lookupField(field)
    changes = {feature.id(): {column: value} for feature in labels.getFeatures()}
    labels.dataProvider().changeAttributeValues(changes)

    assert run("adapt", **required("adapt", place), LABELS=labels.id(), LABEL_FIELD=field)

    passed = QgsVectorLayer(str(place / "engine" / "labels.gpkg"), "", "ogr")
    assert options_of(place)["--label-field"] == field
    assert [feature[field] for feature in passed.getFeatures()] == [value] * 2


def test_a_temporary_folder_that_cannot_be_removed_is_no_failure(place, monkeypatch):
    remove = TemporaryDirectory.cleanup

    def stumble(folder):
        remove(folder)
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr(TemporaryDirectory, "cleanup", stumble)

    assert run("adapt", **required("adapt", place))["DECISION"] == "adapted"


def test_a_reference_system_that_the_user_gave_is_passed_on(place, labels):
    path = place / "map.tif"
    gdal.GetDriverByName("GTiff").Create(str(path), 8, 8, 3).SetGeoTransform((0, 1, 0, 0, 0, -1))
    layer = QgsRasterLayer(str(path), "bare")
    QgsProject.instance().addMapLayer(layer)
    given = {**required("map", place), "SCENE": layer.id()}

    refusal = run("map", **given)
    layer.setCrs(labels.crs())

    told = "bare has no coordinate reference system; set it with Layer > Set CRS of Layer(s)."
    assert refusal == told
    assert run("map", **given)
    assert options_of(place)["--assume-crs"] == "EPSG:32633"
    assert run("map", **given, DSM=layer.id())
    assert options_of(place)["--assume-crs"] == "EPSG:32633"


def test_heights_in_another_reference_system_that_the_user_gave_are_refused(place, labels):
    ids = {}
    for name, crs in (("SCENE", "EPSG:32633"), ("DSM", "EPSG:32632")):
        path = str(place / f"{name}.tif")
        gdal.GetDriverByName("GTiff").Create(path, 8, 8).SetGeoTransform((0, 1, 0, 0, 0, -1))
        layer = QgsRasterLayer(path, name)
        layer.setCrs(QgsCoordinateReferenceSystem(crs))
        QgsProject.instance().addMapLayer(layer)
        ids[name] = layer.id()

    assert run("map", **{**required("map", place), **ids}) == (
        "The files of the scene and its heights name no reference system, and in the project "
        "theirs differ; save one of them as a GeoTIFF first."
    )


@EVERY
def test_a_missing_engine_is_told_before_anything_starts(name, place, monkeypatch):
    monkeypatch.setenv("EARTHGATE_EXECUTABLE", "/nowhere")

    assert run(name, **required(name, place)).startswith("/nowhere is not a program")


@EVERY
def test_a_web_layer_is_refused_with_advice(name, place):
    layer = QgsRasterLayer(XYZ, "tiles", "wms")
    QgsProject.instance().addMapLayer(layer)
    raster = "SCENE" if name in ("adapt", "map") else "MAP"

    told = run(name, **{**required(name, place), raster: layer.id()})

    QgsProject.instance().clear()
    assert told.startswith("tiles is no file on this machine; save ")


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"BANDS": "3,2,1"}, "The bands '3,2,1' are not written like red=3,green=2,blue=1."),
        (
            {"LABEL_FIELD": "class"},
            "A field with the class is given without labels; choose the labels.",
        ),
    ],
)
def test_parameters_that_cannot_work_are_refused_early(place, parameters, told):
    assert run("adapt", **required("adapt", place), **parameters) == told


def test_labels_without_such_a_field_are_refused(place, labels):
    told = run("adapt", **required("adapt", place), LABELS=labels.id(), LABEL_FIELD="kind")

    assert told == (
        "The labels have the fields class, fid, and none of them is kind; choose the one that "
        "holds the class."
    )


def test_outputs_of_other_formats_are_refused(place):
    told = run("map", **{**required("map", place), "OUTPUT": place / "out.png"})

    assert "png" in told
    assert made(place) == set()


@EVERY
def test_an_algorithm_explains_itself(name):
    algorithm = QgsApplication.processingRegistry().algorithmById(f"earthgate:{name}")

    assert len(algorithm.shortHelpString()) > 80
    assert not algorithm.icon().isNull()
    assert all(each.description() for each in algorithm.parameterDefinitions())
