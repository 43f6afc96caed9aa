import doctest
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import geopandas
import numpy as np
import pytest
import rasterio
import workplace
from affine import Affine
from rasterio.windows import Window
from rasters import RasterSpec, write_raster

import earthgate_geo
from earthgate_cli.commands import adapt as adapt_command
from earthgate_cli.commands import map as map_command
from earthgate_geo import api
from earthgate_geo.errors import CancelledError, EarthgateWarning, MissingDependencyError
from earthgate_geo.jobs import run as run_jobs
from earthgate_geo.monitor import SilentMonitor

# rioxarray 0.19, the newest for Python 3.11, multiplies as affine 3.1 will not like one day.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

ROOT = Path(__file__).parents[1]

OF_A_CONSOLE = {"progress", "json", "quiet", "verbose", "watch_stdin", "dry_run"}
OF_MANY_SCENES = {"src", "out_dir", "name", "vector_format", "retry_failed"}
OF_AN_ENVIRONMENT = {"model_folder", "cache"}


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with ``town.tif``, a corner of a sample tile."""
    monkeypatch.chdir(tmp_path)
    corner = Window(0, 0, 256, 256)
    with rasterio.open(ROOT / "sample_tiles" / "town_rgb.tif") as whole:
        place = {"crs": whole.crs, "transform": whole.transform}
        profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 256, "width": 256}
        with rasterio.open("town.tif", "w", **profile, **place) as part:
            part.write(whole.read(window=corner))
    return tmp_path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a small scene and models."""
    monkeypatch.chdir(workplace.furnish(tmp_path))
    return tmp_path


def options_of(command: click.Command) -> set[str]:
    """The long names of a command's options, as Python writes them."""
    names = [max(parameter.opts, key=len) for parameter in command.params]
    return {name.removeprefix("--").replace("-", "_") for name in names}


@contextmanager
def without(monkeypatch: pytest.MonkeyPatch, package: str) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, package, None)
        yield


def small_map(dst: str = "map.tif", **options: object) -> api.SceneMap:
    usual = {"model": Path("open.safetensors"), "runtime": "torch"}
    return earthgate_geo.map_scene(Path("scene.tif"), dst, **usual | options)


@pytest.mark.slow
def test_the_examples_of_the_docstrings_run(town: Path) -> None:
    results = [doctest.testmod(module) for module in (api, run_jobs)]

    assert [result.failed for result in results] == [0, 0]
    assert all(result.attempted for result in results)


@pytest.mark.slow
def test_the_examples_of_the_page_run(town: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    if sys.platform == "win32":
        blocks = blocks.replace("PosixPath", "WindowsPath")
    examples = doctest.DocTestParser().get_doctest(blocks, {}, "api.md", None, None)

    result = doctest.DocTestRunner().run(examples)

    assert result.failed == 0
    assert result.attempted > 10


@pytest.mark.slow
def test_the_notebook_runs(town: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "first_map.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}

    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)

    assert names["picture"].size == (256, 256)
    assert {path.name for path in town.glob("*.tif")} >= {"before.tif", "after.tif"}
    assert all(not cell.get("outputs") for cell in notebook["cells"])


def test_keywords_are_the_options_of_the_commands() -> None:
    of_map = set(api.MapOptions.__annotations__) - OF_AN_ENVIRONMENT
    of_adapt = set(api.AdaptOptions.__annotations__) - OF_AN_ENVIRONMENT

    shown = OF_A_CONSOLE | OF_MANY_SCENES
    assert of_map | {"dst"} == options_of(map_command.command) - shown
    assert of_adapt == options_of(adapt_command.command) - shown


def test_polygons_are_those_of_the_file_or_traced_from_the_map(place: Path) -> None:
    asked = small_map("a.tif", vector="a.parquet")
    traced = small_map("b.tif", confidence=True)

    assert asked.outputs["vector"] == Path("a.parquet")
    with rasterio.open("b.tif") as raster:
        pixels = np.unique(raster.read(1), return_counts=True)
        metres = raster.res[0] * raster.res[1]
    for found in (asked.polygons(), traced.polygons()):
        assert isinstance(found, geopandas.GeoDataFrame)
        assert found.crs == "EPSG:32633"
        assert found.confidence.between(0, 1).all()
        areas = found.dissolve("class_id").area / metres
        assert dict(areas) == pytest.approx(dict(zip(*pixels, strict=True)))
    assert {path.name for path in Path().glob("b*")} >= {"b.tif", "b_conf.tif"}
    assert not Path("b.gpkg").exists()


def test_options_reach_the_job_under_their_own_names(place: Path) -> None:
    whole = small_map(
        "a.tif",
        co={"COMPRESS": "LZW"},
        vector=Path("a.gpkg"),
        bands={"red": 3, "green": 2, "blue": 1},
    )
    large = small_map(
        "b.tif", vector="b.gpkg", min_area=1e9, bands={"red": 3, "green": 2, "blue": 1}
    )

    with rasterio.open("a.tif") as raster:
        assert raster.compression.name == "lzw"
    assert len(whole.polygons()) > 0
    assert len(large.polygons()) == 0


def test_a_map_opens_in_xarray_as_it_is(place: Path) -> None:
    mapped = small_map()

    array = mapped.to_xarray()

    with rasterio.open(mapped.path) as raster:
        assert np.array_equal(array, raster.read())
        assert array.rio.transform() == raster.transform
    assert array.rio.nodata == 255


def test_a_scene_is_adapted_with_labels_and_mapped(place: Path) -> None:
    found = earthgate_geo.adapt(
        "scene.tif",
        model="open.safetensors",
        labels="truth.tif",
        label_map={"0": "building", "4": "water"},
        steps=2,
        dst="map.tif",
        out=Path("a.safetensors"),
        runtime="torch",
    )

    assert found.adapter == Path("a.safetensors")
    assert found.map is not None
    assert found.map.path == Path("map.tif")
    assert found.document["steps"] == 2
    mapped = small_map("again.tif", model=found.adapter)
    with rasterio.open("map.tif") as first, rasterio.open(mapped.path) as second:
        assert np.array_equal(first.read(), second.read())


def test_without_a_destination_nothing_is_mapped(place: Path) -> None:
    found = earthgate_geo.adapt("scene.tif", model="closed.safetensors", steps=1)

    assert (found.map, found.decision) == (None, "gate-closed")
    assert found.adapter == Path("scene.adapter.safetensors")


@pytest.mark.parametrize("name", ["creations", "vectors", "src", "steps"])
def test_an_unknown_keyword_is_refused(place: Path, name: str) -> None:
    with pytest.raises(TypeError, match=f"no option '{name}'"):
        small_map(**{name: {}})


def test_what_the_user_should_check_is_a_warning(place: Path) -> None:
    pixels_of_10_m = Affine(10, 0, 500000, 0, -10, 5200000)
    write_raster(Path("coarse.tif"), RasterSpec(rows=64, cols=64, transform=pixels_of_10_m))

    with pytest.warns(EarthgateWarning, match="10 m"):
        earthgate_geo.map_scene("coarse.tif", "map.tif", model="open.safetensors", runtime="torch")


def test_a_monitor_cancels(place: Path) -> None:
    class Stopper(SilentMonitor):
        def update(self, done: int) -> None:
            raise CancelledError

    with pytest.raises(CancelledError):
        small_map(monitor=Stopper())

    assert not Path("map.tif").exists()


def test_a_missing_library_names_its_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = small_map()

    with without(monkeypatch, "rioxarray"), pytest.raises(MissingDependencyError) as refusal:
        mapped.to_xarray()

    assert str(refusal.value) == (
        "xarray needs rioxarray, which is not installed. "
        "Install it with: pip install 'earthgate-geo[xarray]'."
    )
