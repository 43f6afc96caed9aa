import sys
import zipfile
from pathlib import Path

import pytest

from earthgate_qgis.engine import EngineCancelled, EngineError, find_engine
from earthgate_qgis.install import install_engine, install_folder, installed_python
from earthgate_qgis.process import locked

MAIN = "import sys\nsys.exit('broken' if {broken} else print('earthgate 9.9'))\n"


def wheel(folder, *, broken=False, version="9.9"):
    """Write a wheel as small as one can be."""
    folder.mkdir(exist_ok=True)
    path = folder / f"earthgate_geo-{version}-py3-none-any.whl"
    info = f"earthgate_geo-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: earthgate-geo\nVersion: {version}\n"
    contents = {
        "earthgate_cli/__init__.py": "",
        "earthgate_cli/__main__.py": MAIN.format(broken=broken),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    records = "".join(f"{name},,\n" for name in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**contents, f"{info}/RECORD": records}.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": ""}


def install(source, place, *, version="0.1.0", cancelled=lambda: False):
    log = []
    python = install_engine(
        source, version=version, environ=place, on_log=log.append, is_cancelled=cancelled
    )
    return python, log


@pytest.mark.slow
def test_a_wheel_is_installed_found_and_kept_until_a_newer_one(tmp_path, place):
    old = wheel(tmp_path / "old")
    first, log = install(old, place)

    assert find_engine("", place) == [str(first), "-m", "earthgate_cli"]
    assert log[-1] == "earthgate 9.9"
    assert install(old, place) == (first, ["This engine is installed already."])

    with pytest.raises(EngineError, match=r"^The installation failed \(exit code 1\).*broken$"):
        install(wheel(tmp_path / "new", broken=True), place)

    assert installed_python(place) == first
    assert first.is_file()
    assert [each.name for each in install_folder(place).iterdir() if each.is_dir()] == [
        first.parents[1].name
    ]


def test_the_engine_before_stays_because_it_may_run(tmp_path, place, monkeypatch):
    def make(command, *_):
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").touch()

    monkeypatch.setattr("earthgate_qgis.install._run", make)
    monkeypatch.setattr("earthgate_qgis.install._find_python", lambda _: ["python3"])
    pythons = [
        install(wheel(tmp_path / version, version=version), place)[0]
        for version in ("9.7", "9.8", "9.9")
    ]

    assert installed_python(place) == pythons[2]
    assert [python.exists() for python in pythons] == [False, True, True]


def test_cancelling_leaves_nothing_installed(tmp_path, place):
    with pytest.raises(EngineCancelled):
        install(wheel(tmp_path / "old"), place, cancelled=lambda: True)

    assert installed_python(place) is None
    assert [each for each in install_folder(place).iterdir() if each.is_dir()] == []


def test_a_second_qgis_waits(tmp_path, place):
    install_folder(place).mkdir(parents=True)

    with (
        locked(install_folder(place) / "install.lock") as is_ours,
        pytest.raises(EngineError) as caught,
    ):
        install(wheel(tmp_path / "old"), place)

    assert is_ours
    told = "Another QGIS is installing the engine; wait until it has finished."
    assert str(caught.value) == told


def test_a_folder_without_the_engine_is_refused(tmp_path, place):
    with pytest.raises(EngineError) as caught:
        install(tmp_path, place)

    assert str(caught.value) == (
        f"{tmp_path} is not the engine; choose a file earthgate_geo-*.whl, a folder with it, or a "
        "folder with the source of earthgate."
    )


def test_without_a_fitting_python_one_is_asked_for(tmp_path, place, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))

    with pytest.raises(EngineError, match=r"^No Python 3\.11 or newer with venv was found"):
        install(wheel(tmp_path / "old"), place)


def test_a_damaged_stamp_is_no_installation(place):
    install_folder(place).mkdir(parents=True)
    (install_folder(place) / "engine.json").write_text('{"environment": 1}', encoding="utf-8")

    assert installed_python(place) is None
