import pytest
import torch
from torch.nn import functional

from earthgate_geo.toolbox.attach import attach
from earthgate_geo.toolbox.base import Kind, Slot


@torch.no_grad()
def test_the_adapter_sees_the_stream_after_attention_before_normalisation(plain, toolbox, disturb):
    slot, block = Slot(0, Kind.SEMANTIC), plain.blocks[0]
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    bare = block(tokens)
    stream = tokens + block.attn(block.norm1(tokens))
    toolbox.open({slot})
    disturb(toolbox, {slot})

    result = block(tokens)

    p = toolbox.parameters(slot)
    inner = functional.gelu(functional.linear(stream, p["down.weight"], p["down.bias"]))
    update = functional.linear(inner, p["up.weight"], p["up.bias"])
    assert update.abs().max() > 0.1
    torch.testing.assert_close(result, bare + update)


@torch.no_grad()
def test_the_adapter_sees_the_same_stream_in_post_norm_blocks(small, disturb, build_small):
    backbone = build_small("eva-post-norm")
    toolbox = attach(backbone, small)
    slot, block = Slot(0, Kind.SEMANTIC), backbone.blocks[0]
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    bare = block(tokens)
    stream = tokens + block.norm1(block.attn(tokens))
    toolbox.open({slot})
    disturb(toolbox, {slot})

    torch.testing.assert_close(block(tokens), bare + toolbox.slots[slot](stream))


@torch.no_grad()
def test_a_pass_that_failed_half_way_leaves_nothing_for_the_next(plain, toolbox, disturb):
    slot, block = Slot(0, Kind.SEMANTIC), plain.blocks[0]
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    toolbox.open({slot})
    disturb(toolbox, {slot})
    before = block(tokens)
    handle = block.mlp.register_forward_hook(_fail)
    with pytest.raises(MemoryError):
        block(tokens + 1)
    handle.remove()

    assert torch.equal(block(tokens), before)


def _fail(*_):
    raise MemoryError


def test_the_start_is_that_of_adaptformer(toolbox):
    parameters = toolbox.parameters(Slot(0, Kind.SEMANTIC))

    assert set(parameters) == {"down.weight", "down.bias", "up.weight", "up.bias"}
    assert parameters["down.weight"].any()
    assert not any(parameters[name].any() for name in ("down.bias", "up.weight", "up.bias"))
