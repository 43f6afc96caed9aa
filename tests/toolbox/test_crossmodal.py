import copy
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import BackboneConfig, build_backbone, freeze
from earthgate_geo.models.fusion import TwoStreams
from earthgate_geo.toolbox.attach import Settled, attach, detach, fold, restore, settle
from earthgate_geo.toolbox.base import CROSSMODAL, GATED, Kind, SidePath, Slot, ToolboxConfig
from earthgate_geo.toolbox.crossmodal import MMAdapter, mechanism, register

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def _example():
    """Run the page's code as a module, so that what it defines can be pickled."""
    module = sys.modules["extending"] = ModuleType("extending")
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, module.__dict__)
    return module


EXAMPLE = _example()
OURS = ("mmadapter", "mmlora", "separate")
MECHANISMS = (*OURS, "vera")
MAKERS = [(name, kind) for name in MECHANISMS for kind in mechanism(name).kinds]


@pytest.fixture
def pair(backbone):
    return TwoStreams(backbone)


@pytest.fixture
def plain_pair(plain):
    return TwoStreams(plain)


@pytest.fixture(params=MECHANISMS)
def config(request):
    return _config(request.param)


def _config(name):
    return ToolboxConfig(mechanism=name, kinds=mechanism(name).kinds, adapter_ratio=0.1)


def _inputs(backbone, *, known=1.0):
    """Two images, their heights, and where these are."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, 5, 4 * backbone.patch_px, 7 * backbone.patch_px)
    images = torch.randn(shape, generator=generator)
    images[:, 4] = known
    images[:, 3] *= images[:, 4]
    return images


def _equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _distance(some, others):
    return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))


def _trained(backbone, config, disturb, *, by=0.1):
    toolbox = attach(backbone, config)
    toolbox.open(toolbox.slots)
    disturb(toolbox, toolbox.slots, by=by)
    return toolbox


def _of_bands(maps):
    return maps[: len(maps) // 2]


def _of_heights(maps):
    return maps[len(maps) // 2 :]


@pytest.mark.parametrize("bfloat16", [False, True])
@torch.no_grad()
def test_new_open_modules_leave_the_output_bit_for_bit_unchanged(pair, config, bfloat16):
    images = _inputs(pair)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        before = pair(images)
        toolbox = attach(pair, config)
        toolbox.open(toolbox.slots)

        assert _equal(pair(images), before)


@torch.no_grad()
def test_silenced_modules_change_nothing(pair, config, disturb):
    before = pair(_inputs(pair))
    toolbox = _trained(pair, config, disturb)

    for path in toolbox.slots.values():
        assert isinstance(path, SidePath)
        path.silence()

    assert _equal(pair(_inputs(pair)), before)


@torch.no_grad()
def test_detaching_restores_the_network_bit_for_bit(pair, config, disturb):
    names, before = list(pair.state_dict()), pair(_inputs(pair))
    toolbox = _trained(pair, config, disturb)
    assert _distance(pair(_inputs(pair)), before) > 1e-3

    detach(toolbox)

    assert list(pair.state_dict()) == names
    assert _equal(pair(_inputs(pair)), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pair.modules())


@pytest.mark.parametrize(("name", "kind"), MAKERS)
@torch.no_grad()
def test_a_kind_changes_its_stream_and_fusion_both(pair, name, kind, disturb):
    before = pair(_inputs(pair))

    _trained(pair, replace(_config(name), kinds=(kind,)), disturb)

    after = pair(_inputs(pair))
    image, height = (
        _distance(part(after)[-1:], part(before)[-1:]) for part in (_of_bands, _of_heights)
    )
    assert (image > 1e-3, height > 1e-3) == (kind is not Kind.HEIGHT, kind is not Kind.IMAGE)
    if kind is Kind.HEIGHT:
        assert _equal(_of_bands(after), _of_bands(before))
    if kind is Kind.IMAGE:
        assert _equal(_of_heights(after), _of_heights(before))


@pytest.mark.parametrize("name", ["mmadapter", "mmlora", "vera"])
@torch.no_grad()
def test_the_image_takes_from_the_heights_where_there_are_some(pair, name, disturb):
    _trained(pair, _config(name), disturb)
    images = _inputs(pair)
    other = images.clone()
    other[:, 3] = images[:, 3].flip(-1)

    assert _distance(_of_bands(pair(images))[-1:], _of_bands(pair(other))[-1:]) > 1e-4


@torch.no_grad()
def test_separate_streams_take_nothing_from_each_other(pair, disturb):
    _trained(pair, _config("separate"), disturb)
    images = _inputs(pair)
    other = images.clone()
    other[:, 3] = images[:, 3].flip(-1)

    assert _equal(_of_bands(pair(images)), _of_bands(pair(other)))


@torch.no_grad()
def test_an_image_without_heights_does_not_depend_on_the_modules_of_heights(pair, config, disturb):
    toolbox = _trained(pair, config, disturb)
    images = _inputs(pair)
    images[0, 3:] = 0
    before = pair(images)

    disturb(toolbox, [slot for slot in toolbox.slots if slot.kind is Kind.HEIGHT], by=1.0)
    images[0, 3] = 7.0  # under a mask of zeros

    after = pair(images)
    assert _equal([x[0] for x in _of_bands(after)], [x[0] for x in _of_bands(before)])
    assert not any(x[0].any() for x in _of_heights(after))
    assert _distance([x[1] for x in _of_heights(after)], [x[1] for x in _of_heights(before)]) > 1e-3


def test_gradient_reaches_every_parameter_of_every_kind(pair, config, disturb):
    freeze(pair)
    toolbox = _trained(pair, config, disturb)

    torch.stack([level.square().mean() for level in pair(_inputs(pair))]).sum().backward()

    for slot in toolbox.slots:
        for name, parameter in toolbox.parameters(slot).items():
            assert parameter.grad.isfinite().all(), (slot, name)
            assert parameter.grad.any(), (slot, name)


@torch.no_grad()
def test_used_modules_survive_folding_and_unused_ones_leave(pair, config, disturb):
    toolbox = _trained(pair, config, disturb)
    used = {slot for slot in toolbox.slots if slot.kind is Kind.HEIGHT}
    toolbox.used = used
    before = pair(_inputs(pair))

    fold(toolbox)

    assert set(toolbox.slots) == used
    assert _equal(pair(_inputs(pair)), before)


@torch.no_grad()
def test_a_state_survives_saving_and_loading(plain_pair, config, disturb):
    toolbox = _trained(plain_pair, config, disturb)
    twin, others = copy.deepcopy((plain_pair, toolbox))
    disturb(others, others.slots, by=1.0)
    assert not _equal(twin(_inputs(twin)), plain_pair(_inputs(twin)))

    others.load_state_dict(toolbox.state_dict())

    assert _equal(twin(_inputs(twin)), plain_pair(_inputs(twin)))


@torch.no_grad()
def test_a_network_with_its_toolbox_can_be_pickled(plain_pair, config, disturb):
    toolbox = _trained(plain_pair, config, disturb)
    expected = plain_pair(_inputs(plain_pair))

    file = io.BytesIO()
    torch.save((plain_pair, toolbox), file)
    file.seek(0)
    twin, others = torch.load(file, weights_only=False)  # noqa: TID251 - what this test wrote

    assert _equal(twin(_inputs(twin)), expected)
    for slot in others.slots:
        others.slots[slot].silence()
    assert not _equal(twin(_inputs(twin)), expected)


@torch.no_grad()
def test_settled_modules_are_restored_bit_for_bit(pair, config, disturb):
    bare = copy.deepcopy(pair)
    settled = settle(_trained(pair, config, disturb), config)

    restore(bare, Settled.from_json(json.loads(json.dumps(settled.to_json()))))
    bare.load_state_dict(pair.state_dict())

    assert _equal(bare(_inputs(bare)), pair(_inputs(pair)))


@torch.no_grad()
def test_modules_of_plain_kinds_serve_both_streams(pair, small, disturb):
    before = pair(_inputs(pair))

    _trained(pair, replace(small, kinds=GATED), disturb)

    after = pair(_inputs(pair))
    assert _distance(_of_bands(after)[-1:], _of_bands(before)[-1:]) > 1e-3
    assert _distance(_of_heights(after)[-1:], _of_heights(before)[-1:]) > 1e-3


@pytest.mark.parametrize(
    ("size", "name", "count"),
    [
        ("base", "mmadapter", 12 * 4 * 295_872 + 24),
        ("large", "mmadapter", 50_454_576),
        ("huge", "mmadapter", 32 * 4 * 820_800 + 64),
        ("base", "mmlora", 1_032_240),
        ("large", "mmlora", 2_752_608),
        ("huge", "mmlora", 4_587_648),
    ],
)
def test_modules_beside_sam_have_as_many_parameters_as_the_paper_counts(size, name, count):
    with torch.device("meta"):
        sam = build_backbone(BackboneConfig(name=f"samvit_{size}_patch16"))

    toolbox = attach(TwoStreams(sam), ToolboxConfig(kinds=CROSSMODAL, mechanism=name))

    assert count == sum(
        p.numel() for slot in toolbox.slots for p in toolbox.parameters(slot).values()
    )
    in_millions = {"base": (14.20, 1.03), "large": (50.45, 2.75), "huge": (105.06, 4.59)}
    assert round(count / 1e6, 2) == in_millions[size][name == "mmlora"]


def test_shares_start_at_one_half(plain_pair):
    for name in ("mmadapter", "mmlora"):
        toolbox = attach(plain_pair, _config(name))
        shares = [p for k, p in toolbox.parameters(Slot(0, Kind.FUSION)).items() if "share" in k]

        assert [p.item() for p in shares] == [0.5] * {"mmadapter": 2, "mmlora": 4}[name]
        detach(toolbox)


@torch.no_grad()
def test_the_adapter_of_attention_has_a_skip_inside_and_that_beside_the_mlp_has_none(plain_pair):
    toolbox = attach(plain_pair, _config("mmadapter"))
    toolbox.open(toolbox.slots)
    attended, block = [], plain_pair.blocks[0]
    block.attn.register_forward_hook(lambda _, __, output: attended.append(output))
    block.mlp.register_forward_hook(lambda _, args, output: attended.extend((*args, output)))
    plain_pair(_inputs(plain_pair))
    given, taken, bare = attended
    path, fusion = toolbox.slots[Slot(0, Kind.IMAGE)], toolbox.slots[Slot(0, Kind.FUSION)]
    path.adapters[0].up.bias.fill_(1.0)
    fusion.image.up.bias.fill_(4.0)
    fusion.height.up.bias.fill_(8.0)
    fusion.exchange.image_share.fill_(0.75)
    fusion.exchange.height_share.fill_(0.75)

    attended.clear()
    plain_pair(_inputs(plain_pair))

    half = len(given) // 2
    assert torch.equal(attended[0][:half], given[:half] + 1)
    assert torch.equal(attended[0][half:], given[half:])
    added = attended[2] - block.mlp.fc2(block.mlp.act(block.mlp.fc1(attended[1])))
    assert torch.allclose(added[:half], torch.tensor(5.0), atol=1e-4)
    assert torch.allclose(added[half:], torch.tensor(7.0), atol=1e-4)
    assert bare.shape == taken.shape


@torch.no_grad()
def test_a_stream_has_lora_of_its_own_on_queries_and_values_at_a_quarter(plain_pair, disturb):
    config = replace(_config("mmlora"), kinds=(Kind.IMAGE, Kind.HEIGHT))
    toolbox = _trained(plain_pair, config, disturb)
    paths = [toolbox.slots[Slot(0, kind)] for kind in config.kinds]
    seen, qkv = [], plain_pair.blocks[0].attn.qkv
    qkv.register_forward_hook(lambda _, args, output: seen.extend((*args, output)))

    plain_pair(_inputs(plain_pair))

    tokens, given = seen
    bare = torch.nn.functional.linear(tokens, qkv.weight, qkv.bias)
    added = [half.chunk(3, dim=-1) for half in (given - bare).chunk(2)]
    for path, half, (q, k, v) in zip(paths, tokens.chunk(2), added, strict=True):
        assert torch.allclose(q, half @ path.q.delta().T / 4, atol=1e-5)
        assert k.abs().max() < 1e-5
        assert torch.allclose(v, half @ path.v.delta().T / 4, atol=1e-5)
        assert q.abs().max() > 1e-3


def test_modules_of_two_streams_are_refused_where_there_are_no_heights(plain):
    with pytest.raises(InputError) as error:
        attach(plain, ToolboxConfig(kinds=CROSSMODAL))

    assert str(error.value) == (
        "modules of the kinds image, height, fusion in a network without heights; expected a "
        "network with heights. Give heights with --dsm, or make it one by with_heights()."
    )


def test_a_kind_that_a_mechanism_does_not_make_is_refused(plain_pair):
    with pytest.raises(InputError) as error:
        attach(plain_pair, ToolboxConfig(kinds=CROSSMODAL, mechanism="separate"))

    assert str(error.value) == (
        "modules of the kinds image, height, fusion; expected some of image, height, which "
        "separate makes."
    )


def test_an_unknown_mechanism_is_refused(plain_pair):
    with pytest.raises(InputError) as error:
        attach(plain_pair, ToolboxConfig(kinds=CROSSMODAL, mechanism="telepathy"))

    assert str(error.value) == (
        "the mechanism 'telepathy'; expected one of mmadapter, mmlora, separate, vera. "
        "Register it first, with toolbox.crossmodal.register."
    )


def test_a_name_is_given_once():
    with pytest.raises(InputError) as error:
        register("mmadapter", MMAdapter())

    assert str(error.value) == (
        "a second mechanism named 'mmadapter'; expected a name that none has yet."
    )


def test_the_example_trains_what_it_made_and_nothing_of_the_transformer():
    trained = {name for name, p in EXAMPLE.tuner.parameters.items() if p.grad is not None}

    kinds = {name.split(".")[1] for name in trained if not name.startswith("head.")}
    assert kinds == set(CROSSMODAL)
    assert not any(
        p.requires_grad
        for name, p in EXAMPLE.model.backbone.named_parameters()
        if "side_paths" not in name
    )
