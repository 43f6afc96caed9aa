import shutil
from pathlib import Path

import pytest
from benchmark_files import write_places
from networks import write_model

PLACES = ("zanzibar_tz", "kampala_ug")


def furnish(root: Path) -> Path:
    """Write tiles of two places and the model ``small.safetensors``, which knows buildings."""
    lines = []
    for place in PLACES:
        write_places(root, ["a", "b", "c", "d"], place=place)
        manifest = root / "fair_buildings" / "manifest.csv"
        lines += manifest.read_text(encoding="utf-8").splitlines()[bool(lines) :]
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_model(root / "small.safetensors")
    return root


@pytest.fixture(scope="session")
def _furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def root(_furnished: Path, tmp_path: Path) -> Path:
    """A folder of datasets for one test."""
    return Path(shutil.copytree(_furnished, tmp_path / "data"))
