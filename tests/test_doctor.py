import re
from pathlib import Path

import pytest

from earthgate_geo import __version__, doctor

NAMES = [
    *("torch", "torchvision", "torchgeo", "timm", "rasterio", "pyproj", "pyogrio"),
    *("devices", "OpenVINO", "GDAL", "PROJ", "GeoPackage", "default model"),
    *("current folder", "temporary folder"),
]


def test_every_check_has_a_finding_and_a_fix(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    document = doctor.diagnose()

    assert document["version"] == __version__
    assert [check["name"] for check in document["checks"]] == NAMES
    assert all(check["found"] and check["fix"] for check in document["checks"])
    assert document["healthy"] == all(check["ok"] for check in document["checks"])


def test_libraries_work_and_agree_here() -> None:
    checks = {check["name"]: check for check in doctor.diagnose()["checks"]}

    wanted = ("GDAL", "PROJ", "GeoPackage", "devices", "OpenVINO")
    assert {name: checks[name]["ok"] for name in wanted} == dict.fromkeys(wanted, True)
    found = checks["OpenVINO"]["found"]
    assert re.fullmatch(r"\d{4}\.\d+\.\d+, computes in (fp32|bf16)", found)


def test_a_missing_temporary_folder_is_found_and_makes_it_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    monkeypatch.setattr("tempfile.tempdir", str(gone))

    document = doctor.diagnose()

    check = document["checks"][-1]
    assert not document["healthy"]
    assert check["name"] == "temporary folder"
    assert check["found"].startswith("FileNotFoundError: ")
    assert check["fix"] == "set TMPDIR (TEMP on Windows) to a writable folder with room"
