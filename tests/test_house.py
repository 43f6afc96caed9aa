import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = [
    *(ROOT / "earthgate_geo").rglob("*.py"),
    *(ROOT / "cli" / "earthgate_cli").rglob("*.py"),
]
MOST_BYTES = 15_000_000

# One import that breaks each contract of pyproject.toml.
TRESPASSES = {
    "Imports point down": ("raster/grid.py", "earthgate_geo.toolbox.base"),
    "The library knows no front end": ("mapping/blend.py", "rich"),
    "The foundation runs without torch": ("metrics.py", "torch"),
    "One door to timm": ("models/heads.py", "timm"),
    "One door to TorchGeo": ("training/loop.py", "torchgeo"),
    "One door to safetensors": ("gate.py", "safetensors"),
    "One door to transformers": ("models/segmenter.py", "transformers"),
    "One door to Lightning": ("training/loop.py", "lightning"),
    "One door to OpenVINO": ("model_file.py", "openvino"),
    "One door to Dask": ("mapping/scene.py", "distributed"),
    "One door to ONNX": ("mapping/scene.py", "onnx"),
    "Doors to pystac": ("request.py", "pystac"),
    "Rasters are opened in three places": ("toolbox/attach.py", "rasterio"),
}

POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
POSIX_CALLS = {
    *("os.fork", "os.kill", "os.killpg", "os.setsid", "os.statvfs", "os.getuid"),
    *("os.sched_getaffinity", "signal.SIGKILL", "signal.SIGALRM", "signal.alarm"),
    "os.rename",  # refuses to replace a file on Windows; os.replace does not
}

# A machine's own folders, and options and addresses of private package indexes.
PRIVATE = re.compile(
    r"(?<![\w.])/(?:home|root|work|opt|tmp|Users)/\w|[A-Z]:\\Users|(?:index|trusted)-(?:url|host)\b"
    r"|https?://(?:[\w.-]*\.(?:internal|local|lan)|(?!127\.)[\d.]+)\b"
)


def lint_imports(tree):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "cli")])}
    command = "from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=tree,
        env=environment | {"COLUMNS": "200"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def names_of(source):
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{entry.name}" for entry in node.names)
        elif isinstance(node, ast.Import):
            yield from (entry.name for entry in node.names)


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_the_layers_hold():
    found = lint_imports(ROOT)

    assert found.returncode == 0, found.stdout


def test_every_contract_breaks_when_it_is_broken(tmp_path):
    for name in ("earthgate_geo", "cli"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("weights"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, module in TRESPASSES.values():
        with (tmp_path / "earthgate_geo" / file).open("a", encoding="utf-8") as source:
            source.write(f"\nimport {module}\n")

    found = lint_imports(tmp_path)

    contracts = [entry["name"] for entry in PROJECT["tool"]["importlinter"]["contracts"]]
    assert list(TRESPASSES) == contracts
    assert found.returncode == 1
    assert [name for name in contracts if f"{name} BROKEN" not in found.stdout] == []


def test_no_source_needs_posix():
    needed = {source: (POSIX_MODULES | POSIX_CALLS) & set(names_of(source)) for source in SOURCES}

    assert {source: names for source, names in needed.items() if names} == {}


def test_no_text_names_a_machine_or_a_private_index(tracked):
    found = []
    for path in tracked:
        content = path.read_bytes()
        if b"\0" not in content:
            found += [(path.name, hit[0]) for hit in PRIVATE.finditer(content.decode("utf-8"))]

    assert found == []


def test_no_file_is_too_big_for_a_clone(tracked):
    assert [path for path in tracked if path.stat().st_size > MOST_BYTES] == []


def test_the_extras_exist():
    extras = PROJECT["project"]["optional-dependencies"]

    assert {"dask", "stac", "onnx", "mask2former", "dev"} <= set(extras)
