from pathlib import Path

import pytest

from earthgate_geo import __version__, doctor

NAMES = [
    *("torch", "torchvision", "torchgeo", "timm", "rasterio", "pyproj", "pyogrio"),
    *("devices", "GDAL", "PROJ", "GeoPackage", "default model"),
    *("current folder", "temporary folder"),
]


def test_every_check_has_a_finding_and_a_fix(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    document = doctor.diagnose()

    assert document["version"] == __version__
    assert [check["name"] for check in document["checks"]] == NAMES
    assert all(check["found"] and check["fix"] for check in document["checks"])
    assert document["healthy"] == all(check["ok"] for check in document["checks"])


def test_raster_libraries_agree_here() -> None:
    checks = {check["name"]: check for check in doctor.diagnose()["checks"]}

    assert {name: checks[name]["ok"] for name in ("GDAL", "PROJ", "GeoPackage", "devices")} == {
        "GDAL": True,
        "PROJ": True,
        "GeoPackage": True,
        "devices": True,
    }


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
