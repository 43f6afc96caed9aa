import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
ABOUT = f"earthgate_geo-{VERSION}.dist-info"
WEIGHTS = "earthgate_geo/weights"
MOST_BYTES = 15_000_000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", place, ROOT],
        check=True,
    )
    (path,) = place.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_library_command_line_and_model_and_nothing_else(wheel):
    names = set(wheel.namelist())
    code = {name for name in names if name.endswith(".py")}

    assert code == {
        path.relative_to(above).as_posix()
        for above, package in ((ROOT, "earthgate_geo"), (ROOT / "cli", "earthgate_cli"))
        for path in (above / package).rglob("*.py")
    }
    assert names - code == {
        *(f"{WEIGHTS}/{name}" for name in ("earthgate-tiny.safetensors", "earthgate-tiny.md")),
        f"{WEIGHTS}/SHA256SUMS",
        *(f"{ABOUT}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")),
        f"{ABOUT}/licenses/LICENSE",
    }


def test_the_wheel_is_small_and_its_weights_are_those_on_the_list(wheel):
    weights = wheel.read(f"{WEIGHTS}/earthgate-tiny.safetensors")

    assert Path(wheel.filename).stat().st_size < MOST_BYTES
    assert wheel.read(f"{WEIGHTS}/SHA256SUMS").decode() == (
        f"{hashlib.sha256(weights).hexdigest()}  earthgate-tiny.safetensors\n"
    )


def test_the_wheel_asks_for_packages_by_name_alone(wheel):
    metadata = wheel.read(f"{ABOUT}/METADATA").decode()

    asked = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert asked
    assert not [line for line in asked if re.search(r"@|://", line)]
