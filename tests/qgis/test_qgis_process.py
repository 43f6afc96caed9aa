import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from osgeo import gdal

pytestmark = pytest.mark.qgis
gdal.UseExceptions()

PLUGIN = Path(__file__).parents[2] / "qgis_plugin" / "earthgate_qgis"
PATIENCE_S = 120
CANCEL_S = 2
SIZE_PX = 256


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
        given = {"SCENE": tmp_path / "scene.tif", "OUTPUT": tmp_path / "map.tif", **parameters}
        pairs = [f"{key}={value}" for key, value in given.items()]
        return {
            "args": ["qgis_process.bin", "--json", "run", f"earthgate:{name}", "--", *pairs],
            "env": {**environment, "EARTHGATE_EXECUTABLE": outputs.engine},
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "encoding": "utf-8",
        }

    return words


def engines(word):
    """Return the processes whose command line has the word, but not those of qgis_process."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if word in words and "--watch-stdin" in words:
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


@pytest.mark.parametrize(
    ("ending", "code", "seconds"),
    [
        pytest.param(signal.SIGINT, 1, CANCEL_S, id="cancelled"),
        # Nobody is left to kill the engine, which finishes its step before it looks up.
        pytest.param(signal.SIGTERM, -15, PATIENCE_S, id="killed"),
    ],
)
def test_ending_qgis_process_ends_the_engine(command, tmp_path, ending, code, seconds):
    scene = str(tmp_path / "scene.tif")
    process = subprocess.Popen(**command("adapt", MINUTES=5))
    try:
        begun = tmp_path / ".map.tif.earthgate"
        assert wait_for(begun.is_dir, PATIENCE_S)
        assert engines(scene)

        process.send_signal(ending)

        assert wait_for(lambda: not engines(scene), seconds)
        assert process.wait(PATIENCE_S) == code
        assert made(tmp_path) == set()
    finally:
        process.kill()
        process.communicate()
        for pid in engines(scene):
            os.kill(pid, signal.SIGKILL)


def test_a_refusal_is_a_failure(command, tmp_path):
    done = subprocess.run(**command("map", BANDS="red=9"), timeout=PATIENCE_S, check=False)

    assert done.returncode == 1
    assert "--bands red=9, but " in done.stderr
    assert made(tmp_path) == set()
