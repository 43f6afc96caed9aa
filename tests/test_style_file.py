import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from style_images import smooth_noise

from earthgate_geo.data.style import StatisticsStyle, build_bank
from earthgate_geo.errors import DataError, InputError, StorageError
from earthgate_geo.style_file import is_bank, load_bank, save_bank


def write_bank(path, *, mean=None, **about):
    facts = {"version": 1, "kind": "statistics", "bands": 1, "count": 2} | about
    tensors = {"mean": torch.zeros(18) if mean is None else mean, "covariance": torch.eye(18)}
    save_file(tensors, path, {"earthgate-styles": json.dumps(facts)})


def test_a_bank_comes_back_from_its_file_as_it_was(tmp_path):
    bank = replace(
        build_bank(StatisticsStyle(), smooth_noise(4, bands=2)),
        provenance={"data": "noise", "files": 4},
    )

    save_bank(bank, tmp_path / "styles.safetensors")

    again = load_bank(tmp_path / "styles.safetensors")
    assert (again.kind, again.bands, again.count) == ("statistics", 2, 4)
    assert again.provenance == {"data": "noise", "files": 4}
    assert torch.equal(again.mean, bank.mean)
    assert torch.equal(again.covariance, bank.covariance)
    assert isinstance(again.style(), StatisticsStyle)


def test_no_file_and_a_foreign_one_are_no_banks(tmp_path):
    path, expected = tmp_path / "bank.safetensors", "a file that 'earthgate styles build' wrote"

    with pytest.raises(InputError) as missing:
        load_bank(path)
    sentences = []
    for write in (
        lambda: path.write_bytes(b"text"),
        lambda: save_file({"mean": torch.zeros(3)}, path),
        lambda: save_file({"mean": torch.zeros(3)}, path, {"earthgate-styles": "{}"}),
        lambda: write_bank(path, mean=torch.zeros(7)),
        lambda: write_bank(path, kind="baroque"),
    ):
        write()
        with pytest.raises(DataError) as foreign:
            load_bank(path)
        sentences.append(str(foreign.value))

    assert str(missing.value) == f"{path} does not exist; expected {expected}."
    assert set(sentences) == {f"{path} is damaged or no bank of styles; expected {expected}."}


def test_a_bank_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "bank.safetensors"
    sentences = set()

    for other in ({}, {"kind": "impressionist"}, {"bands": None}, {"mean": torch.zeros(2, 9)}):
        write_bank(path, version=2, **other)
        with pytest.raises(DataError) as later:
            load_bank(path)
        sentences.add(str(later.value))

    assert sentences == {f"{path} has format version 2; expected version 1. Build it again."}


def test_a_bank_is_known_by_its_header_even_where_it_is_of_another_version(tmp_path):
    write_bank(tmp_path / "bank", version=2)
    save_file({"mean": torch.zeros(3)}, tmp_path / "foreign", {"format": "earthgate"})
    (tmp_path / "text").write_bytes(b"text")

    known = [is_bank(tmp_path / name) for name in ("bank", "foreign", "text", "none")]

    assert known == [True, False, False, False]


def test_a_bank_that_cannot_be_written_says_where(tmp_path):
    path = tmp_path / "none" / "bank.safetensors"

    with pytest.raises(StorageError) as refused:
        save_bank(build_bank(StatisticsStyle(), smooth_noise(2)), path)

    assert str(refused.value).startswith(f"{path} could not be written (")
    assert str(refused.value).endswith("; expected a writable folder with room for it.")
