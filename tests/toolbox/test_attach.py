import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import BackboneConfig, build_backbone
from earthgate_geo.toolbox.attach import Settled, attach, detach, fold, restore, settle
from earthgate_geo.toolbox.base import CROSSMODAL, GATED, Kind, Slot, ToolboxConfig

PLAIN = tuple(kind for kind in Kind if kind not in CROSSMODAL)


def _equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _distance(some, others):
    return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))


def _of_kind(toolbox, *kinds):
    return {slot for slot in toolbox.slots if slot.kind in kinds}


@torch.no_grad()
def test_a_new_toolbox_leaves_the_output_bit_for_bit_unchanged(backbone, small, images):
    pixels = images(backbone)
    before = backbone(pixels)

    attach(backbone, small)

    assert _equal(backbone(pixels), before)


@torch.no_grad()
def test_opening_every_module_leaves_the_output_bit_for_bit_unchanged(backbone, small, images):
    pixels = images(backbone)
    before = backbone(pixels)

    toolbox = attach(backbone, small)
    toolbox.open(toolbox.slots)

    assert _equal(backbone(pixels), before)


@torch.no_grad()
def test_opening_changes_no_bit_under_bfloat16_autocast(backbone, small, images):
    pixels = images(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        before = backbone(pixels)

        toolbox = attach(backbone, small)
        toolbox.open(toolbox.slots)

        assert _equal(backbone(pixels), before)


def test_gradients_under_bfloat16_autocast_are_finite(backbone, small, images, disturb):
    toolbox = attach(backbone, small)
    toolbox.open(toolbox.slots)
    disturb(toolbox, toolbox.slots, by=0.01)

    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(features.float().square().mean() for features in backbone(images(backbone)))
    loss.backward()

    for slot in toolbox.slots:
        for parameter in toolbox.parameters(slot).values():
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("kind", PLAIN)
@torch.no_grad()
def test_every_kind_has_an_effect_in_every_family(kind, backbone, small, images, disturb):
    pixels = images(backbone)
    before = backbone(pixels)
    toolbox = attach(backbone, replace(small, kinds=(kind,)))
    chosen = toolbox.slots

    toolbox.open(chosen)
    disturb(toolbox, chosen)

    assert _distance(backbone(pixels)[-1:], before[-1:]) > 1e-3


@torch.no_grad()
def test_detaching_restores_the_backbone_bit_for_bit(backbone, small, images, disturb):
    pixels = images(backbone)
    before = backbone(pixels)
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    toolbox = attach(backbone, small)
    toolbox.open(toolbox.slots)
    disturb(toolbox, toolbox.slots)

    detach(toolbox)

    assert list(backbone.state_dict()) == list(state)
    assert _equal(backbone.state_dict().values(), state.values())
    assert _equal(backbone(pixels), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


@torch.no_grad()
def test_folding_spatial_modules_keeps_the_output_and_leaves_the_bare_backbone(
    backbone, small, images, disturb
):
    pixels = images(backbone)
    names = list(backbone.state_dict())
    bare = backbone(pixels)
    toolbox = attach(backbone, small)
    spatial = _of_kind(toolbox, Kind.SPATIAL)
    toolbox.open(spatial)
    disturb(toolbox, spatial, by=0.1)
    before = backbone(pixels)

    fold(toolbox)

    assert _distance(before, bare) > 1e-3
    assert _distance(backbone(pixels), before) < 1e-5
    assert not toolbox.slots
    assert list(backbone.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


@torch.no_grad()
def test_folding_keeps_used_semantic_and_frequency_modules_only(plain, toolbox, images, disturb):
    used = {Slot(0, Kind.SPATIAL), Slot(1, Kind.SEMANTIC), Slot(3, Kind.FREQUENCY)}
    toolbox.open(used)
    disturb(toolbox, used, by=0.05)
    before = plain(images(plain))

    fold(toolbox)

    assert set(toolbox.slots) == toolbox.used == {Slot(1, Kind.SEMANTIC), Slot(3, Kind.FREQUENCY)}
    assert _distance(plain(images(plain)), before) < 1e-5


@torch.no_grad()
def test_folding_does_not_merge_unused_modules(plain, toolbox, images, disturb):
    before = plain(images(plain))
    disturb(toolbox, toolbox.slots)

    fold(toolbox)

    assert _equal(plain(images(plain)), before)


@torch.no_grad()
def test_modules_never_used_are_skipped(plain, toolbox, images):
    before = plain(images(plain))
    for slot in toolbox.slots:
        for parameter in toolbox.parameters(slot).values():
            parameter.fill_(torch.nan)

    assert _equal(plain(images(plain)), before)


@torch.no_grad()
def test_a_module_closed_after_use_stays_in_the_forward_pass(plain, toolbox, images, disturb):
    toolbox.open({Slot(0, Kind.SEMANTIC)})
    disturb(toolbox, {Slot(0, Kind.SEMANTIC)})
    before = plain(images(plain))

    toolbox.open({Slot(2, Kind.SPATIAL)})

    assert _equal(plain(images(plain)), before)


def test_gradient_reaches_open_modules_only(plain, toolbox, images):
    chosen = {Slot(1, Kind.SPATIAL), Slot(2, Kind.FREQUENCY)}
    toolbox.open(chosen)

    plain(images(plain))[-1].square().mean().backward()

    trained = {slot for slot in toolbox.slots if _has_gradient(toolbox.parameters(slot))}
    assert trained == chosen
    owned = {id(p) for slot in toolbox.slots for p in toolbox.parameters(slot).values()}
    assert all(p.grad is None for p in plain.parameters() if id(p) not in owned)


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("lowest", range(4))
def test_no_graph_is_built_below_the_lowest_open_module(lowest, kind, plain, toolbox, images):
    toolbox.open(toolbox.slots)  # closed again below: closed modules at work need no graph either
    toolbox.open({Slot(lowest, kind), Slot(3, Kind.FREQUENCY)})
    in_graph = []
    for block in plain.blocks:
        block.register_forward_hook(lambda _, __, output: in_graph.append(output.requires_grad))

    plain(images(plain))

    assert in_graph == [layer >= lowest for layer in range(4)]


def _has_gradient(parameters):
    return any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters.values())


@torch.no_grad()
def test_a_copied_model_and_toolbox_are_independent(plain, toolbox, images, disturb):
    pixels = images(plain)
    before = plain(pixels)
    twin, twin_toolbox = copy.deepcopy((plain, toolbox))

    toolbox.open(toolbox.slots)
    disturb(toolbox, toolbox.slots)
    assert _equal(twin(pixels), before)

    twin_toolbox.used = toolbox.used
    twin.load_state_dict(plain.state_dict())
    assert _equal(twin(pixels), plain(pixels))

    detach(twin_toolbox)
    assert _equal(twin(pixels), before)


def test_modules_depend_on_the_generator_alone(small):
    def draw(seed, disturbance):
        torch.manual_seed(disturbance)
        backbone = build_backbone(BackboneConfig(options={"dim": 64, "depth": 2}))
        state = torch.random.get_rng_state()
        toolbox = attach(backbone, small, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        toolbox.used = toolbox.slots
        return toolbox.state_dict().values()

    assert _equal(draw(5, 0), draw(5, 1))
    assert not _equal(draw(5, 0), draw(6, 0))


def test_attaching_twice_is_refused(plain, toolbox, small):
    with pytest.raises(InputError) as error:
        attach(plain, small)

    assert str(error.value) == "a backbone that already carries a toolbox. Detach it first."


@pytest.mark.parametrize("kinds", [(Kind.SPATIAL,), (Kind.FREQUENCY, Kind.SEMANTIC), PLAIN])
def test_modules_of_the_wanted_kinds_are_put_into_every_layer(kinds, plain, small):
    toolbox = attach(plain, replace(small, kinds=kinds))

    assert set(toolbox.slots) == {Slot(layer, kind) for layer in range(4) for kind in kinds}


def _trained(backbone, config, used, disturb, *, seed=0):
    toolbox = attach(backbone, config, generator=torch.Generator().manual_seed(seed))
    toolbox.open(used)
    disturb(toolbox, used, by=0.05)
    return toolbox


MIXED = {Slot(0, Kind.SPATIAL), Slot(1, Kind.SEMANTIC), Slot(1, Kind.FREQUENCY)}
DEEPER = {Slot(1, Kind.FREQUENCY), Slot(3, Kind.SEMANTIC)}


@torch.no_grad()
def test_settled_modules_stay_at_work_as_frozen_parts_of_the_network(
    backbone, small, images, disturb
):
    names = list(backbone.state_dict())
    toolbox = _trained(backbone, small, MIXED, disturb)
    before = backbone(images(backbone))

    settled = settle(toolbox, small)

    assert settled == Settled(small, (Slot(1, Kind.FREQUENCY), Slot(1, Kind.SEMANTIC)))
    assert _distance(backbone(images(backbone)), before) < 1e-5
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not toolbox.slots
    added = {name.partition("settled.")[2] for name in backbone.state_dict() if name not in names}
    assert {name.partition(".")[0] for name in added} == {"0"}
    assert {name.split(".")[1] for name in added} == {"frequency", "semantic"}


@torch.no_grad()
def test_a_toolbox_on_settled_modules_starts_from_them_and_leaves_them(
    backbone, small, images, disturb
):
    settle(_trained(backbone, small, MIXED, disturb), small)
    before = backbone(images(backbone))

    toolbox = _trained(backbone, small, DEEPER, disturb, seed=1)
    assert _distance(backbone(images(backbone)), before) > 1e-3

    detach(toolbox)
    assert _equal(backbone(images(backbone)), before)


@pytest.mark.parametrize("family", ["ours", "dinov3-biased", "sam"])
@torch.no_grad()
def test_what_was_settled_twice_is_restored_bit_for_bit(
    family, build_small, small, images, disturb
):
    one, other = build_small(family), build_small(family)
    wide, rein = replace(small, bottleneck=9), replace(small, kinds=(Kind.REIN,))
    everywhere = {Slot(layer, Kind.REIN) for layer in range(4)}
    settled = [
        settle(_trained(one, wide, MIXED, disturb), wide),
        settle(_trained(one, small, DEEPER, disturb), small),
        settle(_trained(one, rein, everywhere, disturb), rein),
    ]

    for entry in settled:
        restore(other, Settled.from_json(json.loads(json.dumps(entry.to_json()))))
    other.load_state_dict(one.state_dict())

    assert _equal(other(images(other)), one(images(one)))
    with torch.autocast("cpu", torch.bfloat16):
        assert _equal(other(images(other)), one(images(one)))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_copy_of_a_network_with_settled_modules_is_independent(
    precision, plain, small, images, disturb
):
    settle(_trained(plain, small, MIXED, disturb), small)
    pixels = images(plain)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        before = plain(pixels)
        twin = copy.deepcopy(plain)

        for parameter in plain.parameters():
            parameter.zero_()
        assert _equal(twin(pixels), before)


def test_restoring_beyond_the_last_layer_is_refused(plain, small):
    with pytest.raises(InputError) as error:
        restore(plain, Settled(small, (Slot(4, Kind.SEMANTIC),)))

    assert str(error.value) == "a settled module 4.semantic; expected 4 layers."
    assert not hasattr(plain.blocks[0], "settled")


def test_blocks_of_another_anatomy_are_refused(plain, small):
    plain.blocks[2] = nn.Identity()

    with pytest.raises(InputError) as error:
        attach(plain, small)

    assert str(error.value) == (
        "block 2 is of type Identity; expected a transformer block with attn, norm2 and mlp, "
        "such as a timm ViT's."
    )
    assert not hasattr(plain.blocks[0], "side_paths")


@pytest.mark.parametrize(
    ("name", "spatial", "semantic", "frequency", "total"),
    [
        ("vit_small_patch14_dinov2", 98_304, 49_600, 76_131 + 1, 2_688_432),
        ("vit_base_patch14_dinov2", 196_608, 99_136, 152_163 + 1, 5_374_896),
        ("vit_large_patch14_dinov2", 262_144, 132_160, 202_851 + 1, 14_331_744),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name, spatial, semantic, frequency, total):
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name))

    toolbox = attach(backbone, ToolboxConfig())

    counts = {
        slot: sum(p.numel() for p in toolbox.parameters(slot).values()) for slot in toolbox.slots
    }
    assert {counts[slot] for slot in _of_kind(toolbox, Kind.SPATIAL)} == {spatial}
    assert {counts[slot] for slot in _of_kind(toolbox, Kind.SEMANTIC)} == {semantic}
    assert {counts[slot] for slot in _of_kind(toolbox, Kind.FREQUENCY)} == {frequency}
    assert sum(counts.values()) == total
