import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def shared_data() -> Path:
    folder = Path(os.environ.get("EARTHGATE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real rasters at {folder}; EARTHGATE_TEST_DATA says where they are")
    return folder
