import os
import time

import pytest


@pytest.fixture
def assert_gone():
    """Wait until a process has ended, and fail if it does not."""

    def check(pid: int) -> None:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
        pytest.fail(f"process {pid} is still there")

    return check
