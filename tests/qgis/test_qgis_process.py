import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from osgeo import gdal

pytestmark = pytest.mark.qgis
gdal.UseExceptions()

PLUGIN = Path(__file__).parents[2] / "qgis_plugin" / "earthgate_qgis"
PATIENCE_S = 120
CANCEL_S = 2
UNLOADING_S = 1  # the engine ends itself after 1.5 s; the system then takes back its memory
SIZE_PX = 256
MAGNIFIED_PX = 6000  # what takes seconds to map, and to turn into polygons


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A user who has nothing but our plugin."""
    home = tmp_path_factory.mktemp("home")
    plugins = home / ".local/share/QGIS/QGIS3/profiles/default/python/plugins"
    plugins.mkdir(parents=True)
    (plugins / PLUGIN.name).symlink_to(PLUGIN)
    home.chmod(0o700)
    found = {
        "PATH": "/usr/bin:/bin",  # QGIS takes the first python3 on the path for its own
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "QT_QPA_PLATFORM": "offscreen",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run(
        ["qgis_process.bin", "plugins", "enable", PLUGIN.name],
        env=found,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return found


@pytest.fixture
def command(environment, outputs, tmp_path):
    """Return the words and the environment of a run on a small scene."""
    scene = gdal.Open(str(outputs.scene))
    gdal.Translate(str(tmp_path / "scene.tif"), scene, srcWin=[40, 0, SIZE_PX, SIZE_PX])

    def words(name, **parameters):
        raster = "MAP" if name == "vectorize" else "SCENE"
        given = {raster: tmp_path / "scene.tif", "OUTPUT": tmp_path / "map.tif", **parameters}
        pairs = [f"{key}={value}" for key, value in given.items()]
        return {
            "args": ["qgis_process.bin", "--json", "run", f"earthgate:{name}", "--", *pairs],
            "env": {**environment, "EARTHGATE_EXECUTABLE": outputs.engine},
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "encoding": "utf-8",
        }

    return words


def magnify(source, target):
    """Repeat pixels; they keep their size on the ground."""
    raster = gdal.Open(str(source))
    left, width, _, top, _, height = raster.GetGeoTransform()
    bounds = [left, top, left + MAGNIFIED_PX * width, top + MAGNIFIED_PX * height]
    gdal.Translate(
        str(target), raster, width=MAGNIFIED_PX, height=MAGNIFIED_PX, outputBounds=bounds
    )


def engines(folder):
    """Return the processes of the engine that work in a folder."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if "--watch-stdin" in words and str(folder / "scene.tif") in words:
            found.add(int(entry.parent.name))
    return found


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def made(folder):
    return {path.name for path in folder.iterdir()} - {"scene.tif", "scene.tif.aux.xml"}


def test_map_runs_with_the_real_engine(command, tmp_path):
    done = subprocess.run(
        **command("map", VECTORS=tmp_path / "map.gpkg"), timeout=PATIENCE_S, check=False
    )

    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert results == {
        "OUTPUT": str(tmp_path / "map.tif"),
        "VECTORS": str(tmp_path / "map.gpkg"),
        "CONFIDENCE": str(tmp_path / "map_conf.tif"),
    }
    assert gdal.Open(results["OUTPUT"]).RasterXSize == SIZE_PX
    assert gdal.Open(results["OUTPUT"]).GetMetadataItem("EARTHGATE_CLASSES")


def test_adapt_runs_with_the_real_engine(command, tmp_path):
    asked = {"MINUTES": 0.05, "REPORT": tmp_path / "report.html"}

    done = subprocess.run(**command("adapt", **asked), timeout=PATIENCE_S, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert results["DECISION"] in {"adapted", "gate-closed"}
    assert gdal.Open(results["OUTPUT"]).RasterXSize == SIZE_PX
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert not [name for name in made(tmp_path) if "adapter" in name]


@contextmanager
def running(line, begun, folder):
    """Run qgis_process until the engine works; give it, and end what it leaves."""
    process = subprocess.Popen(**line)
    try:
        assert wait_for(lambda: any(folder.glob(begun)), PATIENCE_S)
        assert engines(folder)
        yield process
    finally:
        process.kill()
        process.communicate()
        for pid in engines(folder):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("name", ["adapt", "map", "vectorize"])
def test_ctrl_c_ends_the_engine_and_fails(command, name, outputs, tmp_path):
    given, begun = {
        "adapt": ({"MINUTES": 5}, ".map.tif.earthgate"),
        "map": ({}, ".map.tif.earthgate/**/*.cell"),
        "vectorize": ({"OUTPUT": tmp_path / "map.gpkg"}, ".map.gpkg.earthgate"),
    }[name]
    if name != "adapt":  # which takes its time
        magnify(outputs.map if name == "vectorize" else outputs.scene, tmp_path / "scene.tif")

    with running(command(name, **given), begun, tmp_path) as process:
        process.send_signal(signal.SIGINT)

        assert wait_for(lambda: not engines(tmp_path), CANCEL_S)
        assert process.wait(PATIENCE_S) == 1
        assert made(tmp_path) == set()


def test_the_engine_does_not_outlive_a_killed_qgis_process(command, tmp_path):
    line = command("adapt", MINUTES=5)

    with running(line, ".map.tif.earthgate", tmp_path) as process:
        process.terminate()

        assert process.wait(PATIENCE_S) == -signal.SIGTERM
        assert wait_for(lambda: not engines(tmp_path), CANCEL_S + UNLOADING_S)
        assert {name for name in made(tmp_path) if not name.startswith(".")} == set()


def test_a_refusal_is_a_failure(command, tmp_path):
    done = subprocess.run(**command("map", BANDS="red=9"), timeout=PATIENCE_S, check=False)

    assert done.returncode == 1
    assert "--bands red=9, but " in done.stderr
    assert made(tmp_path) == set()
