import torch
from torch import nn
from torch.nn import functional

from earthgate_geo.toolbox.base import Kind, Slot


def _add_low_rank(weight, path):
    q, k, v = weight.chunk(3)
    return torch.cat((q + path.q.up @ path.q.down, k, v + path.v.up @ path.v.down))


@torch.no_grad()
def test_queries_and_values_get_the_update_and_keys_do_not(plain, toolbox, disturb):
    slot = Slot(0, Kind.SPATIAL)
    toolbox.open({slot})
    disturb(toolbox, {slot})
    qkv = plain.blocks[0].attn.qkv
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))

    result = qkv(tokens)

    weight = _add_low_rank(qkv.weight, toolbox.slots[slot])
    torch.testing.assert_close(result, functional.linear(tokens, weight, qkv.bias))
    bare_keys = functional.linear(tokens, qkv.weight, qkv.bias).chunk(3, dim=-1)[1]
    assert torch.equal(result.chunk(3, dim=-1)[1], bare_keys)


def test_the_up_projections_start_at_zero_and_the_down_projections_do_not(toolbox):
    parameters = toolbox.parameters(Slot(0, Kind.SPATIAL))

    assert set(parameters) == {"q.down", "q.up", "v.down", "v.up"}
    assert not parameters["q.up"].any()
    assert not parameters["v.up"].any()
    bound = 32**-0.5  # of a Kaiming-uniform draw with a = sqrt(5)
    for name in ("q.down", "v.down"):
        assert 0.8 * bound < parameters[name].abs().max() <= bound


def test_side_paths_are_part_of_the_tree_of_the_backbone(plain, toolbox):
    in_tree = {id(parameter) for parameter in plain.parameters()}

    for path in toolbox.slots.values():
        assert isinstance(path, nn.Module)
        assert {id(p) for p in path.adapter_parameters().values()} <= in_tree
