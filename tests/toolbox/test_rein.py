import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from earthgate_geo.models.backbone import BackboneConfig, build_backbone
from earthgate_geo.toolbox.attach import attach, detach, fold
from earthgate_geo.toolbox.base import Kind, Slot, ToolboxConfig

FIRST, SECOND = Slot(0, Kind.REIN), Slot(1, Kind.REIN)


@pytest.fixture
def rein(small):
    return replace(small, kinds=(Kind.REIN,), rein_tokens=7, rein_rank=3)


def _attached(backbone, config, *, seed=0):
    toolbox = attach(backbone, config, generator=torch.Generator().manual_seed(seed))
    toolbox.open(toolbox.slots)
    return toolbox


def _tokens(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_new_modules_change_no_bit_in_either_precision(backbone, rein, images):
    pixels = images(backbone)
    toolbox = attach(backbone, rein)
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            toolbox.used = ()
            before = backbone(pixels)
            toolbox.open(toolbox.slots)

            assert all(map(torch.equal, backbone(pixels), before))


@torch.no_grad()
def test_tokens_attend_to_all_learned_tokens_and_get_the_value_of_all_but_the_first(
    plain, rein, disturb
):
    toolbox = _attached(plain, rein)
    disturb(toolbox, toolbox.slots)
    tokens = _tokens(2, 5, 32)

    update = toolbox.slots[SECOND](tokens)

    own, shared = toolbox.parameters(SECOND), toolbox.parameters(FIRST)
    learned = own["a"] @ own["b"]
    attention = (tokens @ learned.T / 32**0.5).softmax(dim=-1)
    values = functional.linear(
        learned, shared["shared.values.weight"], shared["shared.values.bias"]
    )
    seen = sum(attention[..., i, None] * values[i] for i in range(1, 7))
    mixed = functional.linear(seen + tokens, shared["shared.up.weight"], shared["shared.up.bias"])
    assert update.abs().max() > 0.01
    torch.testing.assert_close(update, shared["shared.scale"] * mixed)


@torch.no_grad()
def test_prefix_tokens_pass_and_tokens_on_a_grid_have_none(build_small, rein, disturb):
    backbone, block = build_small("dinov2-registers"), nn.Identity()
    toolbox = _attached(backbone, rein)
    disturb(toolbox, toolbox.slots)
    path = toolbox.slots[FIRST]
    path.join(block)
    tokens, grid = _tokens(2, 5 + 6, 32), _tokens(2, 2, 3, 32)

    result = block(tokens)

    assert torch.equal(result[:, :5], tokens[:, :5])
    torch.testing.assert_close(result[:, 5:], tokens[:, 5:] + path(tokens[:, 5:]))
    torch.testing.assert_close(block(grid), grid + path(grid))


def test_what_the_layers_share_is_named_once_and_is_the_first_layers(plain, rein):
    toolbox = attach(plain, rein)
    shared = {
        *("shared.values.weight", "shared.values.bias", "shared.up.weight", "shared.up.bias"),
        "shared.scale",
    }

    assert set(toolbox.parameters(FIRST)) == {"a", "b"} | shared
    assert all(set(toolbox.parameters(Slot(i, Kind.REIN))) == {"a", "b"} for i in range(1, 4))
    storages = [tensor.untyped_storage().data_ptr() for tensor in plain.state_dict().values()]
    assert len(set(storages)) == len(storages)


def test_the_start_is_the_papers_but_for_a_scale_of_zero(plain, rein):
    parameters = attach(plain, rein).parameters(FIRST)

    assert parameters["shared.scale"].item() == 0
    for name in ("values", "up"):
        weight = parameters[f"shared.{name}.weight"]
        assert 0.9 * 32**-0.5 < weight.abs().max() <= 32**-0.5
    bound = (6 / (3 * 16 * 16 + (32 * 3) ** 0.5)) ** 0.5
    for name in ("a", "b"):
        assert 0.7 * bound < parameters[name].abs().max() <= bound


def test_every_layer_learns_from_the_second_step_on(plain, rein, images):
    toolbox = _attached(plain, rein)
    everything = [p for slot in toolbox.slots for p in toolbox.parameters(slot).values()]
    optimiser = torch.optim.SGD(everything, lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        plain(images(plain))[-1].square().mean().backward()
        optimiser.step()

    assert all(p.grad.abs().max() > 0 for p in everything)


@torch.no_grad()
def test_a_state_loads_into_new_modules(build_small, rein, images, disturb):
    one, other = build_small("dinov3"), build_small("dinov3")
    toolbox, fresh = _attached(one, rein), attach(other, rein)
    disturb(toolbox, toolbox.slots)

    fresh.load_state_dict(toolbox.state_dict())

    assert all(map(torch.equal, other(images(other)), one(images(one))))


@torch.no_grad()
def test_a_copy_shares_its_own_part_and_not_the_originals(plain, rein, images, disturb):
    toolbox = _attached(plain, rein)
    disturb(toolbox, toolbox.slots)
    before = plain(images(plain))
    twin, twin_toolbox = copy.deepcopy((plain, toolbox))

    toolbox.parameters(FIRST)["shared.scale"].zero_()
    assert all(map(torch.equal, twin(images(twin)), before))

    twin_toolbox.slots[SECOND].silence()
    bare = plain(images(plain))
    assert all(map(torch.equal, twin(images(twin)), bare))
    detach(toolbox)
    assert all(map(torch.equal, plain(images(plain)), bare))


@torch.no_grad()
def test_folding_keeps_them(plain, rein, images, disturb):
    toolbox = _attached(plain, rein)
    disturb(toolbox, toolbox.slots)
    before = plain(images(plain))

    fold(toolbox)

    assert len(toolbox.slots) == 4
    assert all(map(torch.equal, plain(images(plain)), before))


def test_the_large_backbone_gets_as_many_parameters_as_in_its_paper_without_the_query_link():
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name="vit_large_patch14_dinov2"))

    toolbox = attach(backbone, ToolboxConfig(kinds=(Kind.REIN,)))

    counts = [p.numel() for slot in toolbox.slots for p in toolbox.parameters(slot).values()]
    query_link = (1024 * 256 + 256) + (3 * 256 * 256 + 256)
    assert sum(counts) == 24 * (100 * 16 + 16 * 1024) + 2 * (1024 * 1024 + 1024) + 1
    assert (sum(counts) + query_link) / 1e6 == pytest.approx(2.99, abs=0.005)
