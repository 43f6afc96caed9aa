from dataclasses import replace

import pytest
import torch
from networks import small_segmenter
from steps import ColourSteps
from torch import nn

from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import Policy, Recipe
from earthgate_geo.training.task import SourceTask


def _task(policy=Policy.HEAD_ONLY, *, named=None, **changes):
    recipe = replace(Recipe(steps=10, policy=policy), **changes)
    model = small_segmenter()
    return SourceTask(model, _tuner(model, recipe), ColourSteps, recipe, named=named)


def _tuner(model, recipe):
    return Tuner(model, recipe.policy, selection=recipe.selection, seed=recipe.seed)


def _groups(task):
    groups = task.configure_optimizers()["optimizer"].param_groups
    return {id(p): group for group in groups for p in group["params"]}


def test_everything_that_may_train_is_in_one_group():
    task = _task(Policy.GATE)

    groups = task.configure_optimizers()["optimizer"].param_groups

    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, task.tuner.parameters.values()))


def test_a_backbone_trains_at_a_share_of_the_rate():
    task = _task(Policy.FULL, learning_rate=0.01, backbone_share=0.2)

    groups = _groups(task)

    for name, parameter in task.tuner.parameters.items():
        wanted = 0.002 if name.startswith("backbone.") else 0.01
        assert groups[id(parameter)]["lr"] == pytest.approx(wanted)


def test_norms_do_not_decay_and_all_else_does():
    task = _task(Policy.FULL)
    kinds = (nn.LayerNorm, nn.GroupNorm)
    norms = {id(p) for m in task.model.modules() if isinstance(m, kinds) for p in m.parameters()}

    groups = _groups(task)

    assert norms
    for parameter in task.tuner.parameters.values():
        wanted = 0.0 if id(parameter) in norms else 0.05
        assert groups[id(parameter)]["weight_decay"] == wanted


def test_embeddings_of_queries_and_levels_do_not_decay():
    pytest.importorskip("transformers")
    sizes = HeadConfig(kind="mask2former", width=32, queries=7, pixel_layers=1, decoder_layers=1)
    recipe = Recipe(policy=Policy.HEAD_ONLY)
    model = small_segmenter(head=sizes)
    task = SourceTask(model, _tuner(model, recipe), ColourSteps, recipe)

    groups = _groups(task)

    norms = _owned(task.model.head, nn.LayerNorm, nn.GroupNorm)
    plain = {n for n, p in task.tuner.parameters.items() if not groups[id(p)]["weight_decay"]}
    names = {name.removeprefix("head.") for name in plain}
    assert norms < names
    assert {name.removesuffix(".weight").rpartition(".")[2] for name in names - norms} == {
        "queries_embedder",
        "queries_features",
        "level_embed",
    }


def _owned(module, *kinds):
    return {
        f"{name}.{key}"
        for name, each in module.named_modules()
        if isinstance(each, kinds)
        for key, _ in each.named_parameters(recurse=False)
    }


def test_the_rate_falls_to_nothing_by_the_power_0_9():
    task = _task(learning_rate=0.5)
    chosen = task.configure_optimizers()
    optimizer, schedule = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    rates = []

    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert rates == pytest.approx([0.5 * (1 - step / 10) ** 0.9 for step in range(11)])


def test_half_the_weight_makes_half_the_loss():
    task = _task()
    images, labels = ColourSteps().batch(0)["source"]
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0))

    whole, half = (task.loss(images, labels, w) for w in (weights, weights / 2))

    torch.testing.assert_close(half, whole / 2)


def test_full_weight_is_no_weight_and_unknown_pixels_have_none():
    task = _task()
    images, labels = ColourSteps().batch(0)["source"]
    labels[:, :9] = UNKNOWN
    weights = torch.ones(labels.shape)
    weights[:, :9] = 0.3

    torch.testing.assert_close(task.loss(images, labels, weights), task.loss(images, labels))


def test_other_says_something_only_where_some_classes_are_not_named():
    images, labels = ColourSteps().batch(0)["source"]
    other = labels.masked_fill(labels > 1, OTHER)
    unknown = labels.masked_fill(labels > 1, UNKNOWN)

    full, partly = _task(), _task(named=frozenset({0, 1}))

    assert torch.equal(full.loss(images, other), full.loss(images, unknown))
    assert not torch.equal(partly.loss(images, other), partly.loss(images, unknown))
