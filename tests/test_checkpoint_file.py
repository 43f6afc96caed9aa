import argparse
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from earthgate_geo.checkpoint_file import read_checkpoint
from earthgate_geo.errors import InputError, ModelFileError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.half)}


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(found[key].dtype == expected[key].dtype for key in expected)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_plain_state_dict_is_read_as_it_was_saved(tmp_path, suffix):
    torch.save(STATE, tmp_path / f"a{suffix}")

    assert_same(read_checkpoint(tmp_path / f"a{suffix}"), STATE)


def test_a_safetensors_file_is_read_as_it_was_saved(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")

    found = read_checkpoint(str(tmp_path / "a.safetensors"))

    assert_same(dict(sorted(found.items())), dict(sorted(STATE.items())))


def test_nested_dictionaries_are_joined_by_dots_and_other_values_left_out(tmp_path):
    content = {
        "state_dict": torch.nn.Linear(2, 1).state_dict(),
        "meta": {"epoch": 3, "classes": ["road"]},
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}},
    }
    torch.save(content, tmp_path / "a.pth")

    found = read_checkpoint(tmp_path / "a.pth")

    assert list(found) == ["state_dict.weight", "state_dict.bias", "optimizer.state.0.step"]
    assert not found["state_dict.weight"].requires_grad


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path, zipped):
    payload, path = Payload(tmp_path / "trace"), tmp_path / "a.pth"
    torch.save(STATE | {"x": payload}, path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(ModelFileError) as refusal:
        read_checkpoint(path)

    assert str(refusal.value) == (
        f"{path} is damaged, or holds objects that could run code when opened; expected tensors "
        "by name and plain values. Where you trust it, save its state dict alone with torch.save "
        "and give that."
    )
    assert not payload.folder.exists()
    pickle.loads(pickle.dumps(payload))
    assert payload.folder.exists()  # the payload works where it may


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("suffix", "save"), [(".pth", torch.save), (".pth", save_legacy), (".safetensors", save_file)]
)
@pytest.mark.parametrize("share", [0.0, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, save, share):
    path = tmp_path / f"a{suffix}"
    save(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(ModelFileError) as refusal:
        read_checkpoint(path)

    assert str(refusal.value) == (
        f"{path} is damaged or no checkpoint; expected a complete safetensors file or "
        "torch.save's. Copy the file again."
    )


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(1)])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    torch.save(content, path)

    with pytest.raises(ModelFileError) as refusal:
        read_checkpoint(path)

    assert str(refusal.value) == (
        f"{path} holds no tensors by name; expected a state dict, plain or nested."
    )


@pytest.mark.parametrize("name", ["absent.pth", "folder.pth", "a.npz"])
def test_what_is_no_checkpoint_file_is_refused_by_name(tmp_path, name):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "a.npz").touch()

    with pytest.raises(InputError) as refusal:
        read_checkpoint(tmp_path / name)

    assert str(refusal.value) == (
        f"no checkpoint {tmp_path / name}; expected a file that ends in .safetensors, .pth, .pt, "
        ".bin."
    )


class HistoryBuffer:
    """Pickles as MMEngine's does: curves as arrays, and its own functions."""

    def __init__(self) -> None:
        self.curve, self.last = np.arange(3.0), np.float64(2)
        self.methods = {"mean": HistoryBuffer.mean}

    def mean(self) -> float:
        return float(self.curve.mean())


def test_the_curves_of_mmengine_are_left_out(tmp_path, monkeypatch):
    name = "mmengine.logging.history_buffer"
    module = ModuleType(name)
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    content = {
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
        "state_dict": STATE,
    }
    with monkeypatch.context() as installed:
        for package in ("mmengine", "mmengine.logging", name):
            installed.setitem(sys.modules, package, module)
        torch.save(content, tmp_path / "a.pth")

    found = read_checkpoint(tmp_path / "a.pth")

    assert_same(found, {f"state_dict.{key}": value for key, value in STATE.items()})
