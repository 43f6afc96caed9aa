from pathlib import Path

import pytest
import workplace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a furnished folder."""
    monkeypatch.chdir(workplace.furnish(tmp_path))
    return tmp_path
