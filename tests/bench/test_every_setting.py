import json
from pathlib import Path

import pytest
from benchmark_files import write_benchmarks
from networks import write_model

from earthgate_geo.bench.check import check_settings
from earthgate_geo.bench.run import run_bench
from earthgate_geo.bench.settings import SETTINGS
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.training_request import BenchRequest

SMALL = {"steps": 2, "batch": 1, "crop_px": 16, "interval": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few pixels of every dataset, and a small model."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder)
    write_model(folder / "small.safetensors")
    return folder


def test_the_files_made_here_are_all_that_the_settings_ask_for(root):
    found = {entry["name"]: entry["found"] for entry in check_settings(root)["settings"]}

    assert found == dict.fromkeys(SETTINGS, True)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_runs_from_its_files_to_its_result(root, tmp_path, name):
    model = str(root / "small.safetensors")
    request = BenchRequest(setting=name, data=root, model=model, out=tmp_path, **SMALL)

    run_bench(request, SilentMonitor())

    result = json.loads((tmp_path / f"{name}.gate.s0.json").read_text(encoding="utf-8"))
    scored = [entry["name"] for entry in result["classes"]]
    assert scored == list(SETTINGS[name].classes)
    assert 0 <= result["miou_last"] <= 1
    assert len(result["losses"]) == 2
    assert all(loss > 0 for loss in result["losses"])
    assert (result["images"]["target"] > 0) == (SETTINGS[name].protocol == "adapt")
