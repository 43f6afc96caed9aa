import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from earthgate_geo.errors import EarthgateError, InputError
from earthgate_geo.gate import Scores, choose, fisher_scores, gradient_norm_scores
from earthgate_geo.toolbox.base import GATED, Kind, Slot, Toolbox

SPATIAL = Slot(0, Kind.SPATIAL)
SEMANTIC = Slot(0, Kind.SEMANTIC)
DEEPER = Slot(1, Kind.SPATIAL)


class _Numbers(nn.Module):
    def __init__(self, *numbers):
        super().__init__()
        self.used = False
        self.numbers = nn.ParameterList(nn.Parameter(torch.tensor(n)) for n in numbers)

    def adapter_parameters(self):
        return dict(self.named_parameters())

    def silence(self):
        pass

    def join(self, block):
        pass

    def leave(self, block):
        pass


@pytest.fixture
def toolbox():
    toolbox = Toolbox(slots={SPATIAL: _Numbers(2.0, 3.0), DEEPER: _Numbers(1.0)})
    toolbox.open(())
    return toolbox


def _square_loss(toolbox, x, y):
    a, b = toolbox.slots[SPATIAL].numbers
    (c,) = toolbox.slots[DEEPER].numbers
    return lambda: (a * x + b + c * 2 - y) ** 2


def test_fisher_information_is_the_mean_squared_gradient_worked_by_hand(toolbox):
    losses = [_square_loss(toolbox, 1.0, 5.0), _square_loss(toolbox, 2.0, 10.0)]

    scores = fisher_scores(toolbox, losses)

    # residuals 2+3+2-5 = 2 and 4+3+2-10 = -1; d/da = 2rx, d/db = 2r, d/dc = 4r
    a, b, c = (4**2 + (-4) ** 2) / 2, (4**2 + (-2) ** 2) / 2, (8**2 + (-4) ** 2) / 2
    assert scores.raw == pytest.approx({SPATIAL: a + b, DEEPER: c})
    assert scores.normalised == pytest.approx(
        {SPATIAL: (a + b) / (a + b + c), DEEPER: c / (a + b + c)}
    )


def test_the_gradient_norm_is_that_of_the_mean_gradient_worked_by_hand(toolbox):
    losses = [_square_loss(toolbox, 1.0, 5.0), _square_loss(toolbox, 2.0, 10.0)]

    scores = gradient_norm_scores(toolbox, losses)

    a, b, c = ((4 - 4) / 2) ** 2, ((4 - 2) / 2) ** 2, ((8 - 4) / 2) ** 2  # as above, mean first
    assert scores.raw == pytest.approx({SPATIAL: a + b, DEEPER: c})


def test_images_that_disagree_cancel_in_the_gradient_norm_and_add_up_in_fisher(toolbox):
    (c,) = toolbox.slots[DEEPER].numbers
    losses = [lambda: 3 * c, lambda: -3 * c]

    assert gradient_norm_scores(toolbox, losses).raw[DEEPER] == 0.0
    assert fisher_scores(toolbox, losses).raw[DEEPER] == pytest.approx(9.0)


def test_scoring_leaves_gates_and_gradients_as_they_were(toolbox):
    outside = nn.Parameter(torch.tensor(1.0))
    toolbox.open({DEEPER})
    (c,) = toolbox.slots[DEEPER].numbers
    c.grad = torch.tensor(7.0)
    loss = _square_loss(toolbox, 1.0, 0.0)

    fisher_scores(toolbox, [lambda: loss() * outside])

    assert toolbox.opened == toolbox.used == {DEEPER}
    assert outside.grad is None
    assert c.grad == 7.0
    assert all(p.grad is None for p in toolbox.parameters(SPATIAL).values())


def test_every_module_is_open_while_a_loss_is_computed(toolbox):
    seen = []
    loss = _square_loss(toolbox, 1.0, 0.0)

    def spy():
        seen.append(toolbox.opened)
        return loss()

    fisher_scores(toolbox, [spy])

    assert seen == [{SPATIAL, DEEPER}]


def test_a_module_out_of_reach_scores_zero(toolbox):
    (c,) = toolbox.slots[DEEPER].numbers

    scores = fisher_scores(toolbox, [lambda: c**2])

    assert scores.raw == {SPATIAL: 0.0, DEEPER: 4.0}


def test_a_kind_without_any_gradient_normalises_to_zero():
    scores = Scores({SPATIAL: 0.0, DEEPER: 0.0, SEMANTIC: 3.0})

    assert scores.normalised == {SPATIAL: 0.0, DEEPER: 0.0, SEMANTIC: 1.0}


@pytest.mark.parametrize("score", [fisher_scores, gradient_norm_scores])
def test_scoring_without_images_is_refused(score, toolbox):
    with pytest.raises(InputError) as error:
        score(toolbox, [])

    assert str(error.value) == "no images to score the modules with; expected at least one."


@pytest.mark.parametrize("score", [fisher_scores, gradient_norm_scores])
def test_a_gradient_that_is_not_finite_is_refused(score, toolbox):
    (c,) = toolbox.slots[DEEPER].numbers

    with pytest.raises(EarthgateError) as error:
        score(toolbox, [lambda: c * math.inf])

    assert str(error.value) == (
        "a loss whose gradient is not finite. Check the scene for extreme values."
    )
    assert toolbox.opened == frozenset()


_scores = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=3 * 4, max_size=3 * 4).map(
    lambda values: dict(zip((Slot(i, k) for i in range(4) for k in GATED), values, strict=True))
)


@given(
    raw=_scores, kind=st.sampled_from(GATED), exponent=st.integers(-30, 30), k=st.integers(0, 12)
)
def test_the_choice_does_not_depend_on_the_scale_of_one_kind(raw, kind, exponent, k):
    # Powers of two scale without rounding, so that ties stay ties.
    scaled = {
        slot: score * 2.0**exponent if slot.kind is kind else score for slot, score in raw.items()
    }

    assert choose(Scores(scaled), k) == choose(Scores(raw), k)


@given(raw=_scores, k=st.integers(0, 12))
def test_the_choice_is_the_top_k_over_all_kinds(raw, k):
    scores = Scores(raw)

    chosen = choose(scores, k)

    assert len(set(chosen)) == len(chosen) == k
    left = raw.keys() - set(chosen)
    if chosen and left:
        worst = min(scores.normalised[slot] for slot in chosen)
        assert worst >= max(scores.normalised[slot] for slot in left)


def test_ties_go_in_the_order_of_the_slots_whatever_that_of_the_scores():
    slots = [Slot(i, k) for i in range(4) for k in GATED]

    forward, backward = (
        choose(Scores(dict.fromkeys(order, 1.0)), 5) for order in (slots, slots[::-1])
    )

    assert forward == backward == tuple(sorted(slots)[:5])
