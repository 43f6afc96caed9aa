import ast
import re
import runpy
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "qgis_plugin" / "earthgate_qgis"
SOURCES = sorted(PLUGIN.rglob("*.py"))
REQUIRED = {"name", "description", "version", "qgisMinimumVersion", "author", "email", "about"}
REQUIRED |= {"tracker", "repository"}
MOST_BYTES = 25_000_000

# Nested classes, and an enum that is called; every other name like these is a member of an enum.
CLASSES = {"SaveVectorOptions", "Flag"}


def nodes():
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        yield from ((source.name, node) for node in ast.walk(ast.parse(text)))


def imported():
    for name, node in nodes():
        if isinstance(node, ast.ImportFrom):
            yield name, node.module
        elif isinstance(node, ast.Import):
            yield from ((name, entry.name) for entry in node.names)


@pytest.fixture(scope="module")
def metadata():
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(PLUGIN / "metadata.txt", encoding="utf-8")
    return parser["general"]


@pytest.fixture(scope="module")
def build():
    return runpy.run_path(str(ROOT / "qgis_plugin" / "package.py"))["build"]


def test_the_metadata_has_what_the_portal_asks_for(metadata):
    assert {key for key in REQUIRED if not metadata.get(key)} == set()
    assert metadata["hasProcessingProvider"] == "yes"
    assert (metadata["qgisMinimumVersion"], metadata["qgisMaximumVersion"]) == ("3.22", "4.99")
    assert "plugin" not in metadata["name"].lower()
    assert "earthgate-geo" in metadata["about"]
    assert (PLUGIN / metadata["icon"]).is_file()
    assert all(metadata[key].startswith("https://") for key in ("tracker", "repository"))


def test_the_plugin_has_the_version_of_the_distribution(metadata):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert metadata["version"] == project["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])


def test_the_zip_holds_sources_licence_icon_and_nothing_else(build, tmp_path):
    (PLUGIN / "__pycache__").mkdir(exist_ok=True)

    path = build(tmp_path)

    names = zipfile.ZipFile(path).namelist()
    expected = {path.relative_to(PLUGIN.parent).as_posix() for path in SOURCES}
    others = {f"earthgate_qgis/{name}" for name in ("metadata.txt", "LICENSE", "icon.svg")}
    assert set(names) == expected | others
    assert len(names) == len(set(names))
    assert path.stat().st_size < MOST_BYTES


def test_the_same_sources_give_the_same_zip(build, tmp_path):
    once, again = (build(tmp_path / name).read_bytes() for name in ("once", "again"))

    assert once == again


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_sources_are_python_3_9(source):
    ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_the_sources_import_the_standard_library_and_qgis_alone():
    known = {*sys.stdlib_module_names, "qgis", "earthgate_qgis"}

    assert [
        (name, module) for name, module in imported() if module.split(".")[0] not in known
    ] == []


def test_qt_comes_through_qgis():
    assert [entry for entry in imported() if re.match(r"PyQt\d|PySide|sip$", entry[1])] == []


def short_enums(tree):
    """Return what is like Qt.AlignLeft, which Qt6 knows as Qt.AlignmentFlag.AlignLeft alone."""
    pairs = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    spelled_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return [
        ast.unparse(node)
        for node in pairs
        if re.fullmatch(r"Q[A-Za-z]\w*", node.value.id)
        and re.fullmatch(r"[A-Z]\w*[a-z]\w*", node.attr)
        and id(node) not in spelled_out
        and node.attr not in CLASSES
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_enums_are_spelled_out_for_qt6(source):
    assert short_enums(ast.parse(source.read_text(encoding="utf-8"))) == []


def test_a_short_enum_is_found():
    text = "f(Qt.AlignLeft, QgsProcessing.TypeRaster, Qt.AlignmentFlag.AlignTop, QgsSettings())"

    assert short_enums(ast.parse(text)) == ["Qt.AlignLeft", "QgsProcessing.TypeRaster"]


def test_nothing_calls_what_qt6_has_dropped():
    dropped = {"exec_", "print_"}

    assert [
        (name, node.attr)
        for name, node in nodes()
        if isinstance(node, ast.Attribute) and node.attr in dropped
    ] == []


def test_processing_loads_no_window_code():
    loaded, waiting = set(), {"plugin", "provider"}
    while waiting:
        module = waiting.pop()
        loaded.add(module)
        source = PLUGIN / f"{module.replace('.', '/')}.py"
        path = source if source.is_file() else source.with_suffix("") / "__init__.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # not inside functions
            if isinstance(node, ast.ImportFrom):
                assert not re.match(r"qgis\.(gui|utils|PyQt\.QtWidgets)", node.module), module
                names = [node.module, *(f"{node.module}.{entry.name}" for entry in node.names)]
                ours = {name.partition("earthgate_qgis.")[2] for name in names}
                there = {
                    name for name in ours if (PLUGIN / name.replace(".", "/")).is_dir() and name
                }
                there |= {n for n in ours if (PLUGIN / f"{n.replace('.', '/')}.py").is_file()}
                waiting |= there - loaded

    assert {"algorithms.adapt", "engine", "layers"} <= loaded
    assert "dock" not in loaded
