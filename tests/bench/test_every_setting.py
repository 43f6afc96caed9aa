import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import write_benchmarks
from networks import write_model
from rasters import RasterSpec, write_raster

from earthgate_geo.bench.check import check_settings
from earthgate_geo.bench.run import run_bench
from earthgate_geo.bench.settings import SETTINGS
from earthgate_geo.errors import InputError
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.training_request import BenchRequest

UNPLACED = RasterSpec(crs=None, transform=None)
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


@pytest.mark.parametrize("policy", ["mmadapter", "mmlora", "separate", "gate"])
@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith("fuse-")])
def test_fusion_trains_its_kinds_and_the_paper_s_head_on_images_with_heights(root, name, policy):
    model = str(root / "small.safetensors")
    request = BenchRequest(
        setting=name, data=root, model=model, policy=policy, head="mfnet", **SMALL
    )

    document = run_bench(request, SilentMonitor())

    chosen = {slot.partition(".")[2] for slots in document["history"] for slot in slots}
    assert document["model"]["head"] == "mfnet"
    assert document["recipe"]["optimiser"] == "sgd"
    assert document["trained_parameters"] > 0
    assert chosen <= {"image", "height", "fusion"}
    assert bool(chosen) == (policy == "gate")


def test_heights_change_what_fusion_learns(root, tmp_path):
    model = str(root / "small.safetensors")
    request = BenchRequest(setting="fuse-vaihingen", data=root, model=model, head="mfnet", **SMALL)
    flat = shutil.copytree(root, tmp_path / "flat")
    for path in (flat / "Vaihingen" / "dsm").iterdir():
        write_raster(path, UNPLACED, values=np.full((1, 8, 8), 5, np.float32))

    sloping = run_bench(request, SilentMonitor())["losses"]

    assert run_bench(replace(request, data=flat), SilentMonitor())["losses"] != sloping


@pytest.mark.parametrize("policy", ["mmadapter", "mmlora", "separate"])
def test_policies_of_fusion_need_a_setting_with_heights(root, policy):
    model = str(root / "small.safetensors")
    request = BenchRequest(
        setting="places-zanzibar-kampala", data=root, model=model, policy=policy, **SMALL
    )

    with pytest.raises(InputError) as refusal:
        run_bench(request, SilentMonitor())

    assert str(refusal.value) == (
        f"--policy {policy} for places-zanzibar-kampala, whose images have no heights; expected a "
        "setting with heights, such as fuse-vaihingen."
    )


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
