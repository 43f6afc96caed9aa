import json
import os
import signal
import sys

import pytest
from rasters import RasterSpec, write_raster
from workplace import files

# A shell starts background jobs with SIGINT ignored, and children inherit that.
ENGINE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from earthgate_cli.main import main; sys.exit(main(sys.argv[1:]))"
)
ADAPT = [
    *("adapt", "--src", "scene.tif", "--dst", "map.tif", "--model", "closed.safetensors"),
    *("--vector", "map.gpkg", "--steps", "100000", "--progress", "json"),
]


def begun(child, stage: str) -> None:
    """Wait until the engine is in a stage and has locked its outputs."""
    for line in child.stderr:
        if json.loads(line).get("stage") == stage:
            return
    pytest.fail(f"the engine never came to the stage {stage}")


def assert_it_ended_well(child, place, before) -> None:
    errors = child.communicate(timeout=60)[1].splitlines()
    assert child.returncode == 130
    assert json.loads(errors[-1]) == {
        "event": "error",
        "code": 130,
        "message": "interrupted. Run the same command again to start over.",
    }
    assert files(place) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
def test_ctrl_c_ends_the_engine_and_leaves_nothing(place, start) -> None:
    before = files(place)
    child = start(ENGINE, *ADAPT)
    begun(child, "adapt")
    assert (place / ".map.tif.earthgate").is_dir()

    os.kill(child.pid, signal.SIGINT)

    assert_it_ended_well(child, place, before)


@pytest.mark.slow
def test_a_closed_stdin_ends_the_engine_and_leaves_nothing(place, start) -> None:
    before = files(place)
    child = start(ENGINE, *ADAPT, "--watch-stdin")
    begun(child, "adapt")

    child.stdin.close()
    child.stdin = None

    assert_it_ended_well(child, place, before)


@pytest.mark.slow
def test_a_batch_that_is_interrupted_keeps_its_manifest_and_goes_on(place, start) -> None:
    write_raster(place / "large.tif", RasterSpec(rows=2000, cols=2000))
    batch = [
        *("map", "--src", "scene.tif", "--src", "large.tif", "--out-dir", "out"),
        *("--model", "closed.safetensors", "--runtime", "torch", "--progress", "json"),
    ]
    child = start(ENGINE, *batch, "--watch-stdin")
    for line in child.stderr:
        if json.loads(line).get("message") == "scene 2 of 2: large.tif":
            break
    begun(child, "map")

    child.stdin.close()
    child.stdin = None

    errors = child.communicate(timeout=60)[1].splitlines()
    assert child.returncode == 130
    assert json.loads(errors[-1])["message"] == (
        "interrupted. Run the same command again to go on with the scenes that are left."
    )
    (record,) = map(json.loads, (place / "out/manifest.jsonl").read_text("utf-8").splitlines())
    assert (record["src"], record["state"]) == ("scene.tif", "done")
