import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from networks import small_segmenter, write_model

from earthgate_geo import __version__, doctor
from earthgate_geo.doctor import geodata, machine, models, packages
from earthgate_geo.doctor.check import Doubt
from earthgate_geo.model_file import AdapterRecord, load_model, save_adapter, save_model

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {k: v for k, v in PROJECT["optional-dependencies"].items() if k not in {"dev", "docs"}}
REQUIRED = [
    *PROJECT["dependencies"],
    *(f"{line}; extra == '{name}'" for name, lines in EXTRAS.items() for line in lines),
]
NAMES = [
    *("packages", "torch", "torchvision", "torchgeo", "timm", "rasterio", "pyproj", "pyogrio"),
    *("extra dask", "extra stac", "extra onnx", "extra xarray", "extra mask2former"),
    *("GDAL", "PROJ", "GeoPackage", "environment", "processor"),
    *("default model", "OpenVINO", "mapping", "model folder"),
    *("memory", "current folder", "temporary folder", "cache folder"),
]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """What the doctor says where all that this version asks for is installed."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "requires", lambda _: REQUIRED)
        patch.chdir(place)
        return doctor.diagnose(model_folder=place / "models", cache_folder=place / "cache")


@pytest.fixture
def required(monkeypatch):
    """Let earthgate-geo ask for other packages."""
    return lambda *lines: monkeypatch.setattr(metadata, "requires", lambda _: list(lines))


def test_every_check_has_a_finding_and_a_fix(document):
    checks = document["checks"]

    assert document["version"] == __version__
    assert [c["name"] for c in checks if not re.match("cuda|mps", c["name"])] == NAMES
    assert all(check["found"] and check["fix"] for check in checks)
    assert document["healthy"] == all(check["ok"] for check in checks)


def test_libraries_work_and_agree_here(document):
    checks = {check["name"]: check for check in document["checks"]}

    wanted = ("GDAL", "PROJ", "GeoPackage", "processor", "OpenVINO", "default model", "mapping")
    assert {name: checks[name]["state"] for name in wanted} == dict.fromkeys(wanted, "ok")
    found = checks["OpenVINO"]["found"]
    openvino = re.fullmatch(r"\d{4}\.\d+\.\d+, computes in (fp32|bf16)", found)
    if "cuda:0" not in checks:
        assert checks["mapping"]["found"] == f"runs openvino in {openvino[1]} on cpu"


def test_all_that_the_project_declares_is_looked_at(document):
    declared = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]

    assert list(packages.EXTRAS) == list(EXTRAS)
    assert document["packages"].keys() == {re.match(r"[\w-]+", line)[0] for line in declared}
    assert document["packages"]["numpy"] == metadata.version("numpy")


def test_packages_that_are_missing_or_of_another_version_are_named(required):
    required("numpy>=99", "no-such-package>=1", "click", "no-such-extra; extra == 'onnx'")

    with pytest.raises(ImportError) as refusal:
        packages.needed()

    assert str(refusal.value) == (
        f"numpy {metadata.version('numpy')} where >=99 is asked for; "
        "no-such-package is missing where >=1 is asked for"
    )


def test_an_extra_is_absent_there_or_unfit(required):
    lines = {"dask": "no-such-package", "stac": "click", "onnx": "click<1"}
    required(*(f"{line}; extra == '{name}'" for name, line in lines.items()))
    click = metadata.version("click")

    assert packages.extra("dask") == Doubt(
        "not installed; needed to map on a cluster",
        "pip install 'earthgate-geo[dask]'",
        state="absent",
    )
    assert packages.extra("stac") == f"click {click}"
    assert packages.extra("onnx").found == f"click {click} where <1 is asked for"


def test_a_foreign_proj_is_found_and_the_variable_named(tmp_path):
    with sqlite3.connect(tmp_path / "proj.db") as database:
        database.execute("create table metadata (key text, value text)")
        rows = [("DATABASE.LAYOUT.VERSION.MAJOR", "1"), ("DATABASE.LAYOUT.VERSION.MINOR", "0")]
        database.executemany("insert into metadata values (?, ?)", rows)
    database.close()

    program = (
        "import os; from earthgate_geo.doctor import check, geodata;"
        "found = check.look('PROJ', geodata.proj, geodata.mend(geodata.leaders(os.environ)));"
        "print(found.state, found.fix)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PROJ_LIB": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )

    assert told.stdout == "broken unset PROJ_LIB, which another program set\n"


def test_only_variables_that_lead_out_of_the_environment_are_foreign(tmp_path):
    own = str(Path(sys.prefix) / "share" / "proj")

    assert geodata.foreign({"PROJ_DATA": own, "PROJ_LIB": "", "HOME": str(tmp_path)}) == {}
    assert geodata.mend(geodata.leaders({"PROJ_LIB": "", "HOME": own})) == (
        "unset PROJ_LIB, which another program set"
    )
    assert geodata.environment({"GDAL_DATA": "/usr/share/gdal"}) == Doubt(
        "GDAL_DATA=/usr/share/gdal: files of another installation",
        "unset GDAL_DATA, which another program set",
    )


def test_a_graphics_card_is_described_by_what_it_multiplies_fast():
    facts = {"name": "A card", "total_memory": 8e9}

    told = "A card, 8 GB, compute capability"
    new, old = (SimpleNamespace(**facts, major=m, minor=n) for m, n in ((9, 0), (6, 1)))
    assert machine.card(new) == f"{told} 9.0, fast in fp32, bf16, fp16 and int8"
    assert machine.card(old) == f"{told} 6.1, fast in fp32"


def test_little_room_and_little_memory_are_doubts(tmp_path, monkeypatch):
    memory = SimpleNamespace(total=8e9, available=1.9e9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0.9e9))

    assert machine.memory() == Doubt("8.0 GB, 1.9 GB of it free", "free 2 GB: close other programs")
    assert machine.room(lambda: tmp_path, fix="elsewhere") == Doubt(
        f"{tmp_path}, 0.9 GB free", "elsewhere"
    )


def test_a_cache_that_cannot_be_made_is_a_doubt(tmp_path):
    (tmp_path / "file").touch()

    assert machine.cache(tmp_path / "new" / "cache", fix="") == str(tmp_path / "new" / "cache")
    assert not (tmp_path / "new").exists()
    refused = machine.cache(tmp_path / "file" / "cache", fix="choose another")
    assert refused.fix == "choose another"
    assert refused.found.endswith(": each map converts its model")


def test_local_files_that_are_broken_or_without_their_base_are_named(tmp_path):
    base = write_model(tmp_path / "base.safetensors")
    record = AdapterRecord(
        decision="gate-closed",
        evidence={},
        slots=(),
        scores={},
        trained_parameters=0,
        steps=1,
        seed=0,
        scene="town",
    )
    model = load_model(base)
    save_adapter(tmp_path / "a.adapter.safetensors", model, record=record)
    assert models.model_folder(tmp_path) == f"{tmp_path}, 2 files, all of them readable"
    assert models.model_folder(base) == Doubt(
        f"{base} is a file", "set EARTHGATE_MODELS to a folder"
    )

    save_model(base, small_segmenter(seed=1), card={})
    (tmp_path / "b.safetensors").write_bytes(b"x" * 99)
    told = models.model_folder(tmp_path)

    assert isinstance(told, Doubt)
    assert told.found == (
        f"{tmp_path / 'b.safetensors'} cannot be read as a model file; "
        f"{tmp_path / 'a.adapter.safetensors'} needs the model {model.name} "
        f"({model.digest[:12]}), which is not at hand"
    )
