import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small_segmenter
from torch.nn import functional

from earthgate_geo.errors import InputError
from earthgate_geo.gate import choose, fisher_scores
from earthgate_geo.models.backbone import BackboneConfig, build_backbone
from earthgate_geo.policies import Tuner, narrowed
from earthgate_geo.recipe import Policy, Selection
from earthgate_geo.toolbox.attach import attach
from earthgate_geo.toolbox.base import CROSSMODAL, GATED, Kind, ToolboxConfig

CHOOSING = (Policy.GATE, Policy.RANDOM_K, Policy.FIXED_K, Policy.GRAD_NORM_K)
SCORING = (Policy.GATE, Policy.FIXED_K, Policy.GRAD_NORM_K)
KINDS = {
    Policy.SPATIAL: {Kind.SPATIAL},
    Policy.SEMANTIC: {Kind.SEMANTIC},
    Policy.FREQUENCY: {Kind.FREQUENCY},
    Policy.REIN: {Kind.REIN},
    Policy.SEPARATE: {Kind.IMAGE, Kind.HEIGHT},
    Policy.MMADAPTER: set(CROSSMODAL),
    Policy.MMLORA: set(CROSSMODAL),
}
# A wide low band: on so few tokens the usual one is empty, and its adapter without gradient.
SIZES = ToolboxConfig(rank=20, bottleneck=20, frequency_bottleneck=12, rho=1.0)


class _Run:
    def __init__(self, policy, *, seed=0, sizes=SIZES, heights=None, **selection):
        heights = policy.needs_heights if heights is None else heights
        self.model = small_segmenter(heights=heights)
        chosen = Selection(interval=2, **selection)
        self.tuner = Tuner(self.model, policy, selection=chosen, seed=seed, sizes=sizes)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand((3, 3 + heights, 48, 48), generator=generator)
        self.labels = torch.randint(0, 5, (3, 48, 48), generator=generator)
        self.optimiser = torch.optim.AdamW(
            self.tuner.parameters.values(), lr=0.01, weight_decay=0.5
        )

    def loss(self, index=slice(None)):
        return functional.cross_entropy(self.model(self.images[index]), self.labels[index])

    def losses(self):
        singles = (slice(i % 3, i % 3 + 1) for i in range(self.tuner.images))
        return [lambda one=one: self.loss(one) for one in singles]

    def train(self, steps):
        for step in steps:
            if self.tuner.due(step):
                self.tuner.select(self.losses())
            self.optimiser.zero_grad()
            self.loss().backward()
            self.optimiser.step()

    def values(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def _moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("policy", Policy)
def test_only_what_a_policy_opened_and_the_head_moves_by_a_bit_under_adamw_with_decay(policy):
    run = _Run(policy)
    run.train(range(4))  # so that closed modules have moments and values that decay would move
    if run.tuner.due(4):
        run.tuner.select(run.losses())
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    trained = {names[id(p)] for p in run.model.parameters() if p.requires_grad}
    before = run.values()

    run.train([5, 7])

    assert _moved(before, run.values()) == trained
    assert {f"head.{name}" for name, _ in run.model.head.named_parameters()} <= trained


@pytest.mark.parametrize("policy", Policy)
def test_a_policy_names_all_that_may_train_and_nothing_else(policy):
    run = _Run(policy)
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    parameters, toolbox = run.tuner.parameters, run.tuner.toolbox
    may_train = {names[id(parameter)] for parameter in parameters.values()}

    assert len(may_train) == len(parameters)
    assert {name for name in names.values() if name.startswith("head.")} <= may_train
    if policy is Policy.FULL:
        assert may_train == set(names.values())
        assert toolbox is None
    elif policy is Policy.HEAD_ONLY:
        assert all(name.startswith("head.") for name in parameters)
        assert toolbox is None
    else:
        assert {slot.kind for slot in toolbox.slots} == KINDS.get(policy, set(GATED))
        own = {f"{slot}.{name}" for slot in toolbox.slots for name in toolbox.parameters(slot)}
        assert {name for name in parameters if not name.startswith("head.")} == own


@pytest.mark.parametrize("policy", set(Policy) - set(CHOOSING))
def test_policies_that_never_choose_have_everything_open_from_the_start(policy):
    tuner = _Run(policy).tuner

    assert all(parameter.requires_grad for parameter in tuner.parameters.values())
    assert tuner.images == 0
    assert not any(tuner.due(step) for step in range(10))
    counts = [p.numel() for name, p in tuner.parameters.items() if not name.startswith("head.")]
    assert tuner.trained_parameters == sum(counts)


@pytest.mark.parametrize("policy", CHOOSING)
def test_a_policy_that_chooses_starts_closed_and_opens_k_at_every_interval(policy):
    run = _Run(policy)
    open_before = run.tuner.toolbox.opened

    run.train(range(5))

    tuner = run.tuner
    assert open_before == frozenset()
    assert [tuner.due(step) for step in range(5)] == (
        [True, False, False, False, False]
        if policy is Policy.FIXED_K
        else [True, False, True, False, True]
    )
    assert len(tuner.history) == (1 if policy is Policy.FIXED_K else 3)
    assert all(len(set(chosen)) == len(chosen) == 3 for chosen in tuner.history)
    assert tuner.toolbox.opened == set(tuner.history[-1])
    assert tuner.toolbox.used == set().union(*tuner.history)
    counts = [p.numel() for s in tuner.toolbox.used for p in tuner.toolbox.parameters(s).values()]
    assert tuner.trained_parameters == sum(counts)


@pytest.mark.parametrize(("share", "k"), [(0.01, 1), (0.25, 3), (0.3, 4), (1.0, 12)], ids=str)
def test_the_share_says_how_many_open_and_at_least_one_does(share, k):
    run = _Run(Policy.RANDOM_K, share=share)

    run.tuner.select([])

    assert len(run.tuner.history[0]) == k


@pytest.mark.parametrize(("layers", "k"), [(12, 9), (24, 18), (8, 6)])
def test_a_quarter_of_the_slots_opens_by_default(layers, k):
    options = {"dim": 64, "depth": layers, "stem": [16, 16, 32]}
    model = small_segmenter(backbone=BackboneConfig(options=options))
    tuner = Tuner(model, Policy.RANDOM_K, selection=Selection(), seed=0, sizes=SIZES)

    tuner.select([])

    assert len(tuner.toolbox.opened) == k


def test_the_gate_opens_the_top_of_the_fisher_scores():
    run, other = _Run(Policy.GATE), _Run(Policy.GATE)

    run.tuner.select(run.losses())

    expected = fisher_scores(other.tuner.toolbox, other.losses())
    assert run.tuner.scores == expected
    assert run.tuner.history == [choose(expected, 3)]


def test_a_fixed_choice_is_the_first_of_the_gate():
    gate, fixed = _Run(Policy.GATE), _Run(Policy.FIXED_K)

    gate.train(range(1))
    fixed.train(range(5))

    assert fixed.tuner.history == gate.tuner.history


def test_random_choices_look_at_no_image_and_follow_the_seed_alone():
    one, twin, other = _Run(Policy.RANDOM_K), _Run(Policy.RANDOM_K), _Run(Policy.RANDOM_K, seed=1)
    for run in (one, twin, other):
        assert run.tuner.images == 0
        for _ in range(4):
            run.tuner.select([])

    assert one.tuner.history == twin.tuner.history != other.tuner.history
    assert len(set(one.tuner.history)) > 1
    assert one.tuner.scores.raw == {}


@pytest.mark.parametrize("policy", SCORING)
def test_images_follow_the_batch_unless_they_are_given(policy):
    model = small_segmenter()
    selection = Selection(interval=50)

    tuner = Tuner(model, policy, selection=selection, seed=0, batch=8)
    fixed = Tuner(small_segmenter(), policy, selection=replace(selection, images=5), seed=0)

    assert tuner.images == 10
    assert fixed.images == 5


@pytest.mark.parametrize("policy", SCORING)
def test_joined_scores_decide_and_are_kept(policy):
    run = _Run(policy)
    seen = []

    def upside_down(raw):
        seen.append(raw)
        return raw.max() - raw + 1

    run.tuner.combine = upside_down
    run.tuner.select(run.losses())

    (raw,) = seen
    slots = list(run.tuner.toolbox.slots)
    assert raw.dtype == torch.float64
    assert list(run.tuner.scores.raw) == slots
    assert list(run.tuner.scores.raw.values()) == (raw.max() - raw + 1).tolist()
    assert run.tuner.history == [choose(run.tuner.scores, 3)]


@pytest.mark.parametrize("policy", CHOOSING)
def test_a_restored_tuner_goes_on_as_if_it_had_never_stopped(policy):
    whole = _Run(policy)
    whole.train(range(4))
    state = json.loads(json.dumps(whole.tuner.state()))

    resumed = _Run(policy)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.tuner.load_state(state)
    resumed.optimiser.load_state_dict(copy.deepcopy(whole.optimiser.state_dict()))

    assert resumed.tuner.state() == whole.tuner.state()
    assert resumed.tuner.toolbox.used == whole.tuner.toolbox.used
    assert resumed.tuner.toolbox.opened == whole.tuner.toolbox.opened
    whole.train(range(4, 7))
    resumed.train(range(4, 7))
    assert resumed.tuner.history == whole.tuner.history
    assert resumed.tuner.scores == whole.tuner.scores
    assert not _moved(whole.values(), resumed.values())


@pytest.mark.parametrize("policy", [Policy.HEAD_ONLY, Policy.FULL])
def test_a_tuner_without_modules_has_a_state_too(policy):
    tuner = _Run(policy).tuner

    tuner.load_state(tuner.state())

    assert tuner.state() == {"used": [], "opened": [], "history": [], "scores": {}}


@pytest.mark.parametrize("policy", [Policy.ALL, Policy.FULL])
def test_choosing_under_a_policy_that_does_not_choose_is_refused(policy):
    run = _Run(policy)

    with pytest.raises(InputError) as error:
        run.tuner.select([run.loss])

    assert str(error.value) == (
        f"a choice of modules under the policy {policy}; "
        "expected one of gate, random-k, fixed-k, grad-norm-k."
    )


def test_a_policy_decides_on_the_kinds_and_keeps_the_sizes():
    tuner = _Run(Policy.SEMANTIC, sizes=replace(SIZES, kinds=(Kind.REIN,))).tuner

    assert tuner.sizes == replace(SIZES, kinds=(Kind.SEMANTIC,))


def _parameters(backbone, sizes):
    toolbox = attach(copy.deepcopy(backbone), sizes)
    return sum(p.numel() for slot in toolbox.slots for p in toolbox.parameters(slot).values())


@settings(deadline=None, max_examples=10)
@given(
    dim=st.sampled_from([64, 128, 192]),
    widths=st.tuples(st.integers(4, 64), st.integers(4, 64), st.integers(4, 32)),
    share=st.floats(0.1, 1.0),
)
def test_narrowed_modules_keep_within_the_budget_and_the_next_width_would_not(dim, widths, share):
    options = {"dim": dim, "depth": 2, "stem": [16, 16, 16]}
    backbone = build_backbone(BackboneConfig(options=options))
    sizes = ToolboxConfig(rank=widths[0], bottleneck=widths[1], frequency_bottleneck=widths[2])
    budget = share * _parameters(backbone, sizes)
    try:
        narrow = narrowed(backbone, sizes, share=share)
    except InputError:
        narrowest = replace(sizes, rank=1, bottleneck=1, frequency_bottleneck=1)
        assert _parameters(backbone, narrowest) > budget
        return

    used = _parameters(backbone, narrow)
    assert used <= budget
    assert narrow == sizes or budget - used < 4 * dim * 2 * 3 + 6 * dim * 3  # a width of 1 each
    assert not any(hasattr(block, "side_paths") for block in backbone.blocks)


@pytest.mark.parametrize(
    ("name", "dim", "layers"), [("vit_small_patch14_dinov2", 384, 12), ("earthgate_tiny", 192, 8)]
)
def test_matched_modules_fill_a_quarter_of_the_full_budget(name, dim, layers):
    backbone = build_backbone(BackboneConfig(name=name))

    sizes = narrowed(backbone, ToolboxConfig(), share=0.25)

    assert (sizes.rank, sizes.bottleneck, sizes.frequency_bottleneck) == (15, 15, 7)
    spatial, semantic = 4 * dim * 15, 2 * dim * 15 + 15 + dim
    frequency = 3 * (2 * dim * 7 + 7 + dim) + 3 * dim + 3 + 1
    counted = _parameters(backbone, sizes)
    assert counted == layers * (spatial + semantic + frequency)
    assert 0.23 < counted / _parameters(backbone, ToolboxConfig()) <= 0.25


def test_modules_that_cannot_be_narrow_enough_are_refused():
    sizes = replace(SIZES, rank=1, bottleneck=2, frequency_bottleneck=1)
    sentence = (
        "4896 parameters in modules of width 1; expected at most 1353, a share of 0.25 of 5412. "
        "Choose wider modules or a larger share."
    )

    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        _Run(Policy.MATCHED_ALL, sizes=sizes)


@pytest.mark.parametrize("policy", [*CHOOSING, Policy.ALL, Policy.MATCHED_ALL])
@pytest.mark.parametrize(
    ("mechanism", "kinds"),
    [("mmadapter", CROSSMODAL), ("mmlora", CROSSMODAL), ("separate", (Kind.IMAGE, Kind.HEIGHT))],
)
def test_with_heights_the_modules_of_the_streams_are_what_is_chosen_among(policy, mechanism, kinds):
    sizes = replace(SIZES, mechanism=mechanism, fusion_rank=16)
    tuner = _Run(policy, heights=True, sizes=sizes).tuner

    assert {slot.kind for slot in tuner.toolbox.slots} == set(kinds)
    assert tuner.sizes.mechanism == mechanism


def test_the_gate_chooses_among_image_height_and_fusion_once_heights_count():
    run = _Run(Policy.GATE, heights=True, share=0.5, images=3)
    run.train(range(3))  # chooses before the steps 0 and 2

    first, second = run.tuner.history
    assert {slot.kind for slot in first} == {Kind.IMAGE, Kind.FUSION}
    assert {slot.kind for slot in second} == set(CROSSMODAL)
    assert run.tuner.toolbox.opened == set(second)


@pytest.mark.parametrize("mechanism", ["mmadapter", "mmlora"])
def test_modules_of_streams_are_narrowed_to_a_quarter_as_well(mechanism):
    model = small_segmenter(heights=True)
    wide = ToolboxConfig(kinds=CROSSMODAL, mechanism=mechanism, fusion_rank=32)

    narrow = narrowed(model.backbone, wide, share=0.25)

    share = _parameters(model.backbone, narrow) / _parameters(model.backbone, wide)
    assert 0.2 < share <= 0.25


@pytest.mark.parametrize("policy", [p for p in Policy if p.needs_heights])
def test_a_policy_for_heights_is_refused_without(policy):
    with pytest.raises(InputError, match=r"^modules of the kinds image, .* without heights; exp"):
        _Run(policy, heights=False)
