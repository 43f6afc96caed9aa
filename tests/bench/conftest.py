import shutil
from pathlib import Path

import pytest
from benchmark_files import write_places
from networks import write_model

PLACES = ("zanzibar_tz", "kampala_ug")


def furnish(root: Path) -> Path:
    """Write tiles of two places and the model ``small.safetensors``, which knows buildings."""
    for place in PLACES:
        write_places(root, ["a", "b", "c", "d"], place=place)
    write_model(root / "small.safetensors")
    return root


@pytest.fixture(scope="session")
def _furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def root(_furnished: Path, tmp_path: Path) -> Path:
    """A folder of datasets for one test."""
    return Path(shutil.copytree(_furnished, tmp_path / "data"))
