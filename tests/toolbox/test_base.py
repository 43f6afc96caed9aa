import json
import re
from dataclasses import asdict

import pytest
import torch

from earthgate_geo.errors import InputError, ModelFileError
from earthgate_geo.toolbox.attach import attach
from earthgate_geo.toolbox.base import GATED, Kind, SidePath, Slot, ToolboxConfig

FIRST = Slot(0, Kind.SPATIAL)
SECOND = Slot(1, Kind.SEMANTIC)
THIRD = Slot(3, Kind.FREQUENCY)


def _values(toolbox, slots):
    return {
        (slot, name): parameter.detach().clone()
        for slot in slots
        for name, parameter in toolbox.parameters(slot).items()
    }


def _same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[k], others[k]) for k in some)


def test_a_slot_is_written_as_its_layer_and_kind():
    assert str(Slot(3, Kind.SPATIAL)) == "3.spatial"


@pytest.mark.parametrize("kind", Kind)
def test_a_slot_is_read_as_it_is_written(kind):
    assert Slot.parse(str(Slot(12, kind))) == Slot(12, kind)


@pytest.mark.parametrize("text", ["3", "spatial", "3.other", "3.spatial.q"])
def test_text_that_is_no_slot_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a valid Kind|invalid literal"):
        Slot.parse(text)


def test_every_slot_of_every_layer_holds_a_side_path(toolbox):
    assert set(toolbox.slots) == {Slot(layer, kind) for layer in range(4) for kind in GATED}
    assert all(isinstance(path, SidePath) for path in toolbox.slots.values())


def test_a_new_toolbox_is_unused_and_closed(toolbox):
    assert toolbox.used == toolbox.opened == frozenset()


def test_opening_closes_the_others_and_remembers_their_use(toolbox):
    toolbox.open({FIRST, SECOND})
    toolbox.open({SECOND, THIRD})

    assert toolbox.opened == {SECOND, THIRD}
    assert toolbox.used == {FIRST, SECOND, THIRD}


def test_opening_a_foreign_slot_is_refused_and_changes_nothing(toolbox):
    toolbox.open({FIRST})

    with pytest.raises(InputError) as error:
        toolbox.open({SECOND, Slot(4, Kind.SPATIAL)})

    assert str(error.value) == "no module in the slot 4.spatial; expected one of 12 slots."
    assert toolbox.opened == toolbox.used == {FIRST}


def test_all_open_restores_what_was_open_and_used(toolbox):
    toolbox.open({FIRST, SECOND})
    toolbox.open({SECOND})

    with toolbox.all_open():
        assert toolbox.opened == toolbox.used == set(toolbox.slots)

    assert toolbox.opened == {SECOND}
    assert toolbox.used == {FIRST, SECOND}


def test_all_open_restores_after_an_exception(toolbox):
    toolbox.open({SECOND})

    with pytest.raises(KeyboardInterrupt), toolbox.all_open():
        raise KeyboardInterrupt

    assert toolbox.opened == toolbox.used == {SECOND}


def test_all_open_leaves_no_gradient_in_closed_modules_and_keeps_that_of_open_ones(
    plain, toolbox, images
):
    toolbox.open({SECOND})
    plain(images(plain))[-1].square().mean().backward()
    before = {name: p.grad.clone() for name, p in toolbox.parameters(SECOND).items()}

    with toolbox.all_open():
        plain(images(plain))

    assert _same({name: p.grad for name, p in toolbox.parameters(SECOND).items()}, before)
    closed = toolbox.slots.keys() - {SECOND}
    assert all(p.grad is None for slot in closed for p in toolbox.parameters(slot).values())


def test_closed_parameters_do_not_move_by_a_bit_under_adamw_with_decay(plain, toolbox, images):
    everything = [p for slot in toolbox.slots for p in toolbox.parameters(slot).values()]
    optimiser = torch.optim.AdamW(everything, lr=0.1, weight_decay=0.5)

    def step():
        plain(images(plain))[-1].square().mean().backward()
        optimiser.step()  # gradients stay, as if a caller forgot to clear them

    toolbox.open({FIRST, SECOND})
    step()
    step()
    toolbox.open({SECOND, THIRD})
    closed = _values(toolbox, toolbox.slots.keys() - toolbox.opened)
    opened = _values(toolbox, toolbox.opened)
    moments = {k: v.clone() for k, v in optimiser.state[toolbox.parameters(FIRST)["q.up"]].items()}
    step()
    step()

    assert _same(_values(toolbox, toolbox.slots.keys() - toolbox.opened), closed)
    assert not _same(_values(toolbox, toolbox.opened), opened)
    assert _same(dict(optimiser.state[toolbox.parameters(FIRST)["q.up"]]), moments)


@torch.no_grad()
def test_a_state_holds_used_modules_only_and_restores_them(plain, toolbox, images, disturb):
    toolbox.open({FIRST})
    toolbox.open({SECOND, THIRD})
    disturb(toolbox, toolbox.used)
    before = plain(images(plain))

    state = toolbox.state_dict()
    disturb(toolbox, toolbox.slots)
    toolbox.load_state_dict(state)

    assert {key.split(".")[0] for key in state} == {"0", "1", "3"}
    assert set(state) >= {"0.spatial.q.up", "1.semantic.down.bias", "3.frequency.low.up.weight"}
    assert all(map(torch.equal, plain(images(plain)), before))
    assert toolbox.used == {FIRST, SECOND, THIRD}
    assert toolbox.opened == {SECOND, THIRD}


@torch.no_grad()
def test_a_state_loads_into_a_new_toolbox(small, images, disturb, build_small):
    one, other = build_small("dinov3"), build_small("dinov3")
    toolbox = attach(one, small)
    toolbox.open({FIRST, THIRD})
    disturb(toolbox, toolbox.used)

    fresh = attach(other, small, generator=torch.Generator().manual_seed(9))
    fresh.load_state_dict(toolbox.state_dict())

    assert fresh.used == toolbox.used
    assert fresh.opened == frozenset()
    assert all(map(torch.equal, other(images(other)), one(images(one))))


@torch.no_grad()
def test_modules_that_a_state_lacks_start_from_nothing_when_opened_again(
    plain, toolbox, images, disturb
):
    before = plain(images(plain))
    toolbox.open({FIRST, SECOND, THIRD})
    disturb(toolbox, toolbox.used)
    toolbox.open(())

    toolbox.load_state_dict({})

    assert toolbox.used == frozenset()
    assert all(map(torch.equal, plain(images(plain)), before))
    toolbox.open(toolbox.slots)
    assert all(map(torch.equal, plain(images(plain)), before))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"0.spatial.q.up": None}, "no entry 0.spatial.q.up among the modules."),
        (
            {"4.spatial.q.up": torch.zeros(1)},
            "an entry 4.spatial.q.up that fits no module of this backbone.",
        ),
        (
            {"0.spatial.q.up": torch.zeros(32, 5)},
            "an entry 0.spatial.q.up of shape (32, 5); expected (32, 4).",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(toolbox, disturb, change, sentence):
    toolbox.open({FIRST})
    state = toolbox.state_dict() | change
    state = {key: value for key, value in state.items() if value is not None}
    disturb(toolbox, {FIRST})
    before = _values(toolbox, toolbox.slots)

    with pytest.raises(ModelFileError, match=f"^{re.escape(sentence)}$"):
        toolbox.load_state_dict(state)

    assert _same(_values(toolbox, toolbox.slots), before)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank": 0}, "a module of width 0; expected 1 or more."),
        ({"rein_tokens": 1}, "a module of width 0; expected 1 or more."),
        ({"fusion_rank": 0}, "a module of width 0; expected 1 or more."),
        ({"adapter_ratio": 0}, "an adapter ratio of 0; expected a positive number."),
        ({"rho": 1.5}, "rho 1.5; expected a share in 0..1."),
        (
            {"kinds": ["rein", "other"]},
            f"modules of the kinds ['rein', 'other']; expected some of {', '.join(Kind)}.",
        ),
        (
            {"kinds": ()},
            f"modules of the kinds []; expected some of {', '.join(Kind)}.",
        ),
    ],
)
def test_impossible_sizes_are_refused(fields, sentence):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        ToolboxConfig(**fields)


def test_sizes_survive_json_and_kinds_take_their_order():
    config = ToolboxConfig(kinds=(Kind.REIN, Kind.FREQUENCY, Kind.SPATIAL), rank=3)

    read = ToolboxConfig(**json.loads(json.dumps(asdict(config))))

    assert read == config
    assert read.kinds == (Kind.SPATIAL, Kind.FREQUENCY, Kind.REIN)


def test_sizes_without_kinds_are_those_of_the_gate():
    assert ToolboxConfig(rank=3).kinds == GATED
