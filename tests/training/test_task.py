from dataclasses import replace

import pytest
import torch
from networks import small_segmenter
from steps import ColourSteps
from torch import nn

from earthgate_geo.errors import InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import MultiTask, Policy, Recipe, Styles
from earthgate_geo.training.task import SourceTask


def _task(policy=Policy.HEAD_ONLY, *, model=None, named=None, restyle=None, **changes):
    recipe = replace(Recipe(steps=10, policy=policy, crop_px=32), **changes)
    model = model or small_segmenter()
    tuner = _tuner(model, recipe)
    return SourceTask(model, tuner, ColourSteps, recipe, named=named, restyle=restyle)


def _tuner(model, recipe):
    return Tuner(model, recipe.policy, selection=recipe.selection, seed=recipe.seed)


class Shades:
    """Darkens images by a drawn amount, and keeps the draws."""

    def __init__(self) -> None:
        self.drawn = []

    def __call__(self, images, rng):
        self.drawn.append(rng.random())
        return images * self.drawn[-1]


def _groups(task):
    groups = task.configure_optimizers()["optimizer"].param_groups
    return {id(p): group for group in groups for p in group["params"]}


def test_everything_that_may_train_is_in_one_group():
    task = _task(Policy.GATE)

    groups = task.configure_optimizers()["optimizer"].param_groups

    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, task.tuner.parameters.values()))


def test_a_recipe_may_descend_with_momentum():
    optimizer = _task(optimiser="sgd", learning_rate=0.01).configure_optimizers()["optimizer"]

    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["lr"], group["momentum"]) for group in optimizer.param_groups} == {(0.01, 0.9)}


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


def test_without_styles_and_reconstruction_the_labels_are_all_there_is_to_learn():
    images, labels = ColourSteps().batch(0)["source"]
    task = _task()

    assert torch.equal(task.source_loss(images, labels, step=3), task.loss(images, labels))


def test_styled_images_are_normalised_like_all_others():
    images, labels = ColourSteps().batch(0)["source"]
    shades = Shades()
    task = _task(restyle=shades, styles=Styles(probability=1))
    seen = []
    task.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    task.source_loss(images, labels, step=0)

    styled = images * torch.tensor(shades.drawn)[:, None, None, None]
    torch.testing.assert_close(seen, [(styled - 0.5) / 0.25])


def test_heights_have_no_style():
    images, labels = ColourSteps().batch(0)["source"]
    heights = torch.rand(len(images), 1, *images.shape[2:])
    task = _task(
        model=small_segmenter(heights=True), restyle=Shades(), styles=Styles(probability=1)
    )
    seen = []
    task.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    task.source_loss(torch.cat([images, heights], 1), labels, step=0)

    torch.testing.assert_close(seen[0][:, 3:4], (heights - 0.5) / 0.25)


def test_hidden_parts_of_images_with_heights_are_not_reconstructed():
    with pytest.raises(InputError) as refusal:
        _task(model=small_segmenter(heights=True), multitask=MultiTask())

    assert str(refusal.value) == (
        "reconstruction beside the classes for a model with heights; expected a model that sees "
        "the image alone. Train without --multitask."
    )


def test_every_image_of_a_styled_step_has_a_style_of_its_own_and_keeps_it_when_asked_again():
    images, labels = ColourSteps().batch(0)["source"]
    shades = Shades()
    task = _task(restyle=shades, styles=Styles(probability=1))

    for step in (0, 0, 1):
        task.source_loss(images, labels, step=step)

    first, again, later = shades.drawn[:2], shades.drawn[2:4], shades.drawn[4:]
    assert first == again
    assert len({*first, *later}) == 4


def test_the_seed_decides_which_steps_are_styled_and_they_are_as_many_as_wanted():
    images, labels = ColourSteps().batch(0)["source"]

    def styled(seed):
        shades, steps = Shades(), set()
        task = _task(restyle=shades, styles=Styles(probability=0.25), seed=seed)
        with torch.no_grad():
            for step in range(60):
                before = len(shades.drawn)
                task.source_loss(images[:1, :, :16, :16], labels[:1, :16, :16], step=step)
                steps |= {step} if len(shades.drawn) > before else set()
        return steps

    steps = styled(0)

    assert 8 <= len(steps) <= 22
    assert steps == styled(0) != styled(1)


def test_a_step_learns_from_labels_and_from_reconstruction():
    images, labels = ColourSteps().batch(0)["source"]
    task = _task(multitask=MultiTask(masked=0.5, block_px=8))

    with torch.no_grad():
        together, later = (task.source_loss(images, labels, step=step) for step in (0, 1))
        labelled = task.loss(images, labels)

    assert 0.1 < float(together - labelled) < 3
    assert float(later) != float(together)


def test_what_reconstructs_trains_as_the_head_does_and_is_no_part_of_the_model():
    task = _task(Policy.FULL, learning_rate=0.01, multitask=MultiTask(extractor=True))

    groups = _groups(task)

    beside = dict(task.beside.named_parameters())
    assert {"token", "head.paint.weight", "extractor.look.0.0.weight"} <= beside.keys()
    assert {groups[id(p)]["lr"] for p in beside.values()} == {0.01}
    assert not {id(p) for p in beside.values()} & {id(p) for p in task.model.parameters()}


@pytest.mark.parametrize(
    ("restyle", "styles", "sentence"),
    [
        (None, Styles(), "a recipe with styles and no bank of them; expected both or neither."),
        (Shades(), None, "a bank of styles and a recipe without; expected both or neither."),
    ],
)
def test_styles_and_their_bank_come_together(restyle, styles, sentence):
    with pytest.raises(InputError) as refused:
        _task(restyle=restyle, styles=styles)

    assert str(refused.value) == sentence
