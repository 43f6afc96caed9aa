import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import workplace

Child = subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of converted networks that all tests share, so that each is converted once."""
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARTHGATE_CACHE", str(converted))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a furnished folder, with a model folder of its own."""
    monkeypatch.setenv("EARTHGATE_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(workplace.furnish(tmp_path))
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Start Python programs with our import path; end them with the test."""
    children: list[Child] = []

    def start_one(
        program: str, *arguments: str, option: str = "-c", stdout: int = subprocess.PIPE
    ) -> Child:
        child = subprocess.Popen(
            [sys.executable, option, program, *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        children.append(child)
        return child

    yield start_one
    for child in children:
        child.kill()
        child.communicate()
