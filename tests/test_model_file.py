import copy
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from networks import small_replay, small_segmenter, write_model
from safetensors import safe_open
from safetensors.torch import save_file

from earthgate_geo import model_file
from earthgate_geo.errors import EarthgateError, InputError
from earthgate_geo.model_file import (
    PACKAGED,
    AdapterRecord,
    file_digest,
    find_model,
    load_model,
    read_header,
    released_digests,
    save_adapter,
    save_model,
)
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.models.statistics import FeatureStatistics
from earthgate_geo.models.view import View
from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import Policy, Selection
from earthgate_geo.toolbox.attach import attach, settle
from earthgate_geo.toolbox.base import GATED, Kind, Slot, ToolboxConfig

SIZES = ToolboxConfig(
    rank=8, bottleneck=8, frequency_bottleneck=8, rein_tokens=6, rein_rank=2, kinds=tuple(Kind)
)

RECORD = AdapterRecord(
    decision="adapted",
    evidence={"share_shift": 0.1},
    slots=("1.spatial", "2.semantic"),
    scores={"1.spatial": 0.7},
    trained_parameters=12,
    steps=3,
    seed=0,
    scene="town",
    temperature=1.5,
)


def _rewrite(path, *, drop=None, reshape=None, metadata=None):
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
        written = file.metadata()
    if drop:
        del tensors[drop]
    if reshape:
        tensors[reshape] = torch.zeros(2, 2)
    save_file(tensors, path, written | (metadata or {}))


def _sentence(path, **options):
    with pytest.raises(EarthgateError) as refusal:
        load_model(path, **options)
    assert refusal.value.exit_code == 2
    return str(refusal.value)


def test_a_saved_model_loads_bit_for_bit_with_its_card_and_replay(tmp_path):
    model = small_segmenter()
    path, replay = tmp_path / "m.safetensors", small_replay()

    digest = save_model(path, model, card={"name": "m"}, replay=replay, dtype=torch.float32)
    loaded = load_model(path)

    wanted = model.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in loaded.segmenter.state_dict().items())
    assert loaded.segmenter.config == model.config
    assert not loaded.segmenter.training
    assert not any(p.requires_grad for p in loaded.segmenter.parameters())
    assert (loaded.digest, loaded.name) == (digest, "m")
    assert np.array_equal(loaded.replay.labels, replay.labels)
    assert loaded.replay.images.shape == replay.images.shape


def test_statistics_of_the_training_images_come_with_the_model(tmp_path):
    model, path = small_segmenter(), tmp_path / "m.safetensors"
    statistics = FeatureStatistics.gather(model, [torch.rand(1, 3, 64, 64)])

    save_model(path, model, card={"name": "m"}, statistics=statistics)
    loaded = load_model(path)

    assert loaded.statistics.distances(statistics) == [0.0, 0.0, 0.0]
    assert load_model(write_model(tmp_path / "without.safetensors")).statistics is None


def test_an_adapter_shows_images_as_its_record_says(tmp_path):
    base = load_model(write_model(tmp_path / "base.safetensors"))
    images = torch.rand(1, 3, 64, 64)

    save_adapter(
        tmp_path / "a.safetensors", base, record=replace(RECORD, view=View(order=(2, 1, 0)))
    )
    loaded = load_model(tmp_path / "a.safetensors")

    with torch.inference_mode():
        assert torch.equal(loaded.segmenter(images), base.segmenter(images.flip(1)))
    assert loaded.adapter.view == View(order=(2, 1, 0))


def test_the_same_weights_make_the_same_file(tmp_path):
    digests = {
        save_model(tmp_path / f"{i}.safetensors", small_segmenter(), card={"a": 1, "b": 2})
        for i in range(8)
    }

    assert len(digests) == 1


def test_half_precision_halves_the_file_and_keeps_the_classes(tmp_path):
    model = small_segmenter()
    save_model(tmp_path / "half.safetensors", model, card={})
    save_model(tmp_path / "full.safetensors", model, card={}, dtype=torch.float32)
    images = torch.rand(1, 3, 64, 64)

    with torch.inference_mode():
        logits = load_model(tmp_path / "half.safetensors").segmenter(images)
        agreement = (logits.argmax(1) == model(images).argmax(1)).float().mean()

    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.55 * sizes[1]
    assert agreement > 0.99


def _adapted(base, policy, *, by=0.05):
    """Return a copy of a model with what a policy trains, and all of that moved at random."""
    heights = policy.needs_heights or base.segmenter.config.heights
    model = base.segmenter.with_heights() if heights else copy.deepcopy(base.segmenter)
    selection = Selection(interval=2, images=1)
    tuner = Tuner(model, policy, selection=selection, seed=0, sizes=SIZES)
    if tuner.due(0):
        size = (1, model.config.channels, 32, 32)
        tuner.select([lambda: model(torch.rand(size)).square().mean()] * tuner.images)
    _move((p for p in tuner.parameters.values() if p.requires_grad), by=by)
    return model, tuner


@torch.no_grad()
def _move(parameters, *, by):
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.add_(by * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("policy", Policy)
def test_what_any_policy_trained_maps_the_same_saved_loaded_and_folded(tmp_path, policy):
    base = load_model(write_model(tmp_path / "base.safetensors"))
    model, tuner = _adapted(base, policy)
    heights = policy.needs_heights
    record = replace(RECORD, policy=str(policy), slots=(), scores={}, heights=heights)
    images = torch.rand(1, 3 + heights, 64, 64)

    save_adapter(
        path := tmp_path / "a.safetensors",
        base,
        record=record,
        toolbox=tuner.toolbox and (tuner.toolbox, tuner.sizes),
        head=model.head,
        backbone=model.backbone if policy is Policy.FULL else None,
    )
    loaded = load_model(path)

    with torch.inference_mode():
        unfolded, folded = model(images), loaded.segmenter(images)
        source = base.segmenter(images[:, :3])
    assert (folded - unfolded).abs().max() < 1e-5
    assert (source - unfolded).abs().max() > 1e-2
    assert loaded.adapter == record
    assert (loaded.digest, loaded.adapter_digest) == (base.digest, file_digest(path))
    assert not any(p.requires_grad for p in loaded.segmenter.parameters())
    used = tuner.toolbox.used if tuner.toolbox else ()
    kept = {slot for slot in used if slot.kind is not Kind.SPATIAL}
    paths = [getattr(block, "side_paths", {}) for block in loaded.segmenter.backbone.blocks]
    assert {Slot(n, Kind(k)) for n, kinds in enumerate(paths) for k in kinds} == kept


@pytest.mark.parametrize("policy", [Policy.GATE, Policy.FULL, Policy.REIN])
def test_a_model_with_settled_modules_loads_bit_for_bit_and_can_be_adapted(tmp_path, policy):
    model = small_segmenter()
    for kinds, layers in ((GATED, (1, 3)), ((Kind.REIN,), range(4))):
        sizes = replace(SIZES, kinds=kinds)
        toolbox = attach(model.backbone, sizes)
        toolbox.open([Slot(layer, kind) for layer in layers for kind in kinds])
        _move((p for slot in toolbox.used for p in toolbox.parameters(slot).values()), by=0.05)
        model.settled.append(settle(toolbox, sizes))
    images = torch.rand(1, 3, 64, 64)

    save_model(path := tmp_path / "m.safetensors", model, card={}, dtype=torch.float32)
    base = load_model(path)
    adapted, tuner = _adapted(base, policy)
    save_adapter(
        tmp_path / "a.safetensors",
        base,
        record=RECORD,
        toolbox=tuner.toolbox and (tuner.toolbox, tuner.sizes),
        head=adapted.head,
        backbone=adapted.backbone if policy is Policy.FULL else None,
    )
    again = load_model(tmp_path / "a.safetensors").segmenter

    with torch.inference_mode():
        assert torch.equal(base.segmenter(images), model(images))
        assert (again(images) - adapted(images)).abs().max() < 1e-5
    assert base.segmenter.settled == model.settled == again.settled


def test_settled_modules_that_do_not_fit_are_refused(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    settled = {"config": asdict(SIZES), "slots": ["7.semantic"]}
    header = {k: v for k, v in read_header(path).items() if k != "kind"} | {"settled": [settled]}
    _rewrite(path, metadata={"header": json.dumps(header)})

    assert _sentence(path) == (
        f"{path} is damaged: its configuration does not fit (a settled module 7.semantic; "
        "expected 4 layers); expected a complete file that earthgate wrote. Copy the file "
        "again, or give another with --model."
    )


def test_an_adapter_from_before_there_were_policies_and_temperatures_loads(tmp_path):
    base = load_model(write_model(tmp_path / "base.safetensors"))
    model, tuner = _adapted(base, Policy.GATE)
    path = tmp_path / "a.safetensors"
    save_adapter(path, base, record=RECORD, toolbox=(tuner.toolbox, tuner.sizes), head=model.head)
    header = {k: v for k, v in read_header(path).items() if k != "kind"}
    del header["record"]["policy"], header["record"]["temperature"]
    for key in ("kinds", "rein_tokens", "rein_rank"):
        del header["toolbox"][key]
    _rewrite(path, metadata={"header": json.dumps(header)})
    images = torch.rand(1, 3, 64, 64)

    loaded = load_model(path)

    with torch.inference_mode():
        assert torch.allclose(loaded.segmenter(images), model(images), atol=1e-5)
    assert (loaded.adapter.policy, loaded.adapter.temperature) == ("gate", 1.0)


def test_an_adapter_of_a_closed_gate_is_the_base(tmp_path):
    base = load_model(write_model(tmp_path / "base.safetensors"))
    record = replace(RECORD, decision="gate-closed", slots=())
    images = torch.rand(1, 3, 64, 64)

    save_adapter(tmp_path / "a.safetensors", base, record=record)
    loaded = load_model(tmp_path / "a.safetensors")

    with torch.inference_mode():
        assert torch.equal(loaded.segmenter(images), base.segmenter(images))
    assert loaded.adapter.decision == "gate-closed"


def test_an_adapter_without_its_base_says_which_file_is_missing(tmp_path):
    base_path = write_model(tmp_path / "base.safetensors")
    base = load_model(base_path)
    save_adapter(path := tmp_path / "a.safetensors", base, record=RECORD)
    base_path.unlink()

    assert _sentence(path) == (
        f"{path} needs the model small ({base.digest[:12]}); expected that file among the "
        f"packaged models or in {tmp_path}. Copy the base model beside the adapter file."
    )


def test_a_model_folder_gives_names(tmp_path):
    path = write_model(tmp_path / "mine.safetensors")

    assert find_model("mine", folders=[tmp_path]) == path
    with pytest.raises(InputError) as refusal:
        find_model("yours", folders=[tmp_path])
    assert str(refusal.value) == (
        "no model 'yours'; expected a .safetensors file or a name that 'earthgate models' lists. "
        "Check the spelling, or copy the file beside the scene and give its path."
    )


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"not a model at all")

    assert _sentence(path) == (
        f"{path} cannot be read as a model file; expected a .safetensors file that earthgate "
        "wrote. Copy the file again, or give another with --model."
    )


@pytest.mark.parametrize("size", [0, 100, -200])
def test_an_empty_or_cut_off_file_is_refused(tmp_path, size):
    path = write_model(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:size])

    assert _sentence(path).startswith(f"{path} cannot be read as a model file; expected")


@pytest.mark.parametrize("start", [b"\x80\x02}q\x00.", b"\x80\x05}.", b"PK\x03\x04archive"])
def test_a_pickle_is_refused_unopened(tmp_path, start):
    path = tmp_path / "m.pt"
    path.write_bytes(start)

    assert _sentence(path) == (
        f"{path} is a pickle or zip archive, which can run code when opened; expected a "
        ".safetensors file that earthgate wrote. Convert it where you trust it; earthgate never "
        "opens it."
    )


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    length = next(n for n in range(end, 1 << 20) if n.to_bytes(8, "little")[:2] == b"\x80\x04")
    header = content[8:end].ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + content[end:])

    assert read_header(path)["kind"] == "model"


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, path)

    assert _sentence(path) == (
        f"{path} is a safetensors file without an earthgate header; expected a model or adapter "
        "file that earthgate wrote. See 'earthgate models' for the models at hand."
    )


def test_a_newer_version_is_refused(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    _rewrite(path, metadata={"version": "7"})

    assert _sentence(path) == (
        f"{path} has format version 7; expected version 1. "
        "Install an earthgate that knows it, or make the file again."
    )


def test_a_missing_tensor_is_named(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    _rewrite(path, drop="network.head.classify.1.weight")

    assert _sentence(path) == (
        f"{path} is damaged: the tensor network.head.classify.1.weight is missing; expected a "
        "complete file that earthgate wrote. Copy the file again, or give another with --model."
    )


def test_a_tensor_of_another_shape_is_named(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    _rewrite(path, reshape="network.head.classify.1.weight")

    assert "network.head.classify.1.weight has the shape (2, 2) instead of (16, 16, 3, 3)" in (
        _sentence(path)
    )


def test_a_header_without_a_configuration_is_refused(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    _rewrite(path, metadata={"header": json.dumps({"card": {}})})

    assert _sentence(path).startswith(f"{path} is damaged: its configuration does not fit")


def test_the_header_is_read_without_weights(tmp_path):
    path = write_model(tmp_path / "m.safetensors")

    header = read_header(path)

    assert header["kind"] == "model"
    assert header["config"]["classes"][0]["name"] == "building"


@pytest.mark.parametrize("head", ["fpn", "mfnet"])
def test_a_model_with_heights_survives_saving_and_loading(tmp_path, head):
    model = small_segmenter(heights=True, head=HeadConfig(kind=head, width=16))
    _move(model.parameters(), by=0.05)
    images = torch.rand(1, 4, 64, 64)

    save_model(path := tmp_path / "m.safetensors", model, card={}, dtype=torch.float32)
    loaded = load_model(path).segmenter

    assert loaded.config == model.config
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


def test_a_model_file_that_says_nothing_of_heights_has_none(tmp_path):
    path = write_model(tmp_path / "m.safetensors")
    header = {k: v for k, v in read_header(path).items() if k != "kind"}
    del header["config"]["heights"]
    _rewrite(path, metadata={"header": json.dumps(header)})

    assert not load_model(path).segmenter.config.heights


@pytest.mark.parametrize("policy", [Policy.MMADAPTER, Policy.GATE, Policy.MMLORA, Policy.FULL])
def test_what_settled_with_heights_loads_bit_for_bit_and_can_be_adapted(tmp_path, policy):
    base = load_model(write_model(tmp_path / "base.safetensors"))
    base = replace(base, segmenter=base.segmenter.with_heights())
    model, tuner = _adapted(base, Policy.MMADAPTER)
    model.settled.append(settle(tuner.toolbox, tuner.sizes))
    save_model(path := tmp_path / "settled.safetensors", model, card={}, dtype=torch.float32)
    loaded, images = load_model(path), torch.rand(1, 4, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.segmenter(images), model(images))

    adapted, tuner = _adapted(loaded, policy)
    save_adapter(
        adapter := tmp_path / "a.safetensors",
        loaded,
        record=replace(RECORD, policy=str(policy), heights=True),
        toolbox=tuner.toolbox and (tuner.toolbox, tuner.sizes),
        head=adapted.head,
        backbone=adapted.backbone if policy is Policy.FULL else None,
    )
    again = load_model(adapter)

    with torch.inference_mode():
        assert (again.segmenter(images) - adapted(images)).abs().max() < 1e-5
        assert (again.segmenter(images) - model(images)).abs().max() > 1e-3


def test_an_adapter_that_added_heights_and_nothing_else_maps_as_its_base(tmp_path):
    base = load_model(write_model(tmp_path / "base.safetensors"))
    save_adapter(path := tmp_path / "a.safetensors", base, record=replace(RECORD, heights=True))
    images = torch.rand(1, 4, 64, 64)

    loaded = load_model(path).segmenter

    assert loaded.config.heights
    with torch.inference_mode():
        logits, expected = loaded(images), base.segmenter(images[:, :3])
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert (logits - expected).abs().max() < 1e-5


def test_the_list_of_released_digests_is_that_of_the_packaged_files():
    packaged = {path.name: file_digest(path) for path in PACKAGED.glob("*.safetensors")}

    assert packaged  # after a change on purpose: sha256sum *.safetensors > SHA256SUMS
    assert released_digests() == packaged


@pytest.mark.parametrize("listed", [True, False])
def test_a_packaged_file_that_is_not_as_released_is_refused(tmp_path, monkeypatch, listed):
    path = write_model(tmp_path / "town.safetensors")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {path.name}\n" if listed else "")
    monkeypatch.setattr(model_file, "PACKAGED", tmp_path)
    monkeypatch.setattr(model_file, "RELEASED", tmp_path / "SHA256SUMS")

    assert _sentence("town") == (
        f"{path} is not as it was released: its SHA-256 begins with {file_digest(path)[:12]}; "
        "expected the one that SHA256SUMS lists. Install earthgate-geo again in a fresh virtual "
        "environment."
    )
