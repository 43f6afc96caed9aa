import json
import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

# The engine's environment has no QGIS, and its run of all tests passes by here. We look for
# QGIS's osgeo because `qgis` is this very folder where `tests` is on the path.
collect_ignore_glob = [] if find_spec("osgeo") else ["test_*.py"]

ROOT = Path(__file__).parents[2]
MARGIN_PX = 40  # without data, left of the scene
SIZE_PX = 300


@dataclass(frozen=True)
class Outputs:
    engine: str
    scene: Path
    map: Path
    polygons: Path
    document: dict


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory):
    """Keep what the engine caches, and an engine that is installed there, out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    from osgeo import gdal  # noqa: PLC0415  # the engine's environment has none

    gdal.UseExceptions()
    folder = tmp_path_factory.mktemp("engine")
    scene, made, polygons = (folder / f"town{end}" for end in (".tif", "_map.tif", "_map.gpkg"))
    sample = gdal.Open(str(ROOT / "sample_tiles" / "town_rgb.tif"))
    gdal.Translate(str(scene), sample, srcWin=[-MARGIN_PX, 0, SIZE_PX, SIZE_PX], noData=0)

    # A process of its own: numpy 2, which the engine brings, breaks the osgeo of Debian's QGIS.
    engine = os.environ.get("EARTHGATE_EXECUTABLE", str(ROOT / ".venv" / "bin" / "earthgate"))
    command = [engine, "map", "--src", scene, "--dst", made, "--vector", polygons]
    command += ["--confidence", "--json"]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    document = json.loads(said.stdout)
    return Outputs(engine=engine, scene=scene, map=made, polygons=polygons, document=document)
