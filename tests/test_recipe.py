import json

import pytest

from earthgate_geo.errors import InputError
from earthgate_geo.recipe import (
    CROSSEARTH_512,
    CROSSEARTH_1024,
    MFNET,
    Dacs,
    MultiTask,
    Policy,
    Recipe,
    Selection,
    Styles,
    published,
)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(
            steps=7,
            target_batch=2,
            policy=Policy.FIXED_K,
            selection=Selection(interval=3, share=0.5, images=4),
            dacs=Dacs(start=0, weighting="share", aligned=True),
            styles=Styles(probability=0.5, block_px=8),
            multitask=MultiTask(masked=0.2, extractor=True),
            warmup=2,
            planned=9,
        ),
        MFNET,
    ],
)
def test_a_recipe_comes_back_from_json(recipe):
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_a_document_from_before_styles_and_reconstruction_is_a_recipe_without():
    document = Recipe(steps=7).to_json()
    for key in ("styles", "multitask", "warmup", "planned", "optimiser", "drops", "mirrored"):
        del document[key]

    assert Recipe.from_json(document) == Recipe(steps=7)


@pytest.mark.parametrize("place", ["recipe", "selection", "dacs", "styles", "multitask"])
def test_a_key_that_no_recipe_has_is_refused(place):
    document = Recipe(target_batch=2, dacs=Dacs(), styles=Styles(), multitask=MultiTask()).to_json()
    (document if place == "recipe" else document[place])["momentun"] = 1

    with pytest.raises(TypeError, match="momentun"):
        Recipe.from_json(document)


def test_a_choice_looks_at_a_fortieth_of_the_images_until_the_next_but_at_one_at_least():
    assert Selection().images_for(4) == 10
    assert Selection(interval=50).images_for(4) == 5
    assert Selection(interval=1).images_for(1) == 1
    assert Selection(images=16).images_for(4) == 16


def test_the_rate_falls_to_nothing_by_a_power():
    recipe = Recipe(steps=10)

    rates = [recipe.rate(step) for step in range(11)]

    assert rates == [(1 - step / 10) ** 0.9 for step in range(11)]


def test_the_rate_rises_evenly_and_then_falls_towards_the_planned_end():
    recipe = Recipe(steps=6, warmup=2, planned=10, power=1.0)

    assert [recipe.rate(step) for step in range(6)] == [0.5, 1, 1, 0.875, 0.75, 0.625]


def test_the_rate_of_mfnet_is_a_tenth_after_half_seven_tenths_and_nine_tenths():
    epochs = [MFNET.rate(1000 * epoch) for epoch in range(50)]

    assert epochs == pytest.approx([1] * 25 + [0.1] * 10 + [0.01] * 10 + [0.001] * 5)
    assert MFNET.over(25_000).rate(12_500) == pytest.approx(0.1)


def test_over_other_steps_a_recipe_takes_the_same_course():
    short = CROSSEARTH_1024.over(300)

    assert (short.steps, short.warmup, short.planned) == (300, 100, 400)
    assert short.rate(250) == pytest.approx(CROSSEARTH_1024.rate(25_000))
    assert CROSSEARTH_512.over(30_000) == CROSSEARTH_512
    assert Recipe().over(7) == Recipe(steps=7)
    assert CROSSEARTH_1024.over(1).warmup == 0


def test_the_published_recipes_stop_at_three_quarters_of_their_plan():
    large = published("crossearth-1024")

    assert published("crossearth-512") == CROSSEARTH_512
    assert (large.crop_px, large.learning_rate, large.warmup) == (1024, 6e-5, 10_000)
    for recipe in (CROSSEARTH_512, large):
        assert (recipe.steps, recipe.planned, recipe.policy) == (30_000, 40_000, Policy.REIN)
        assert (recipe.styles, recipe.multitask) == (Styles(), MultiTask())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Selection(interval=0),
            "a selection every 0 steps on None images; expected 1 or more of each.",
        ),
        (
            lambda: Selection(images=0),
            "a selection every 100 steps on 0 images; expected 1 or more of each.",
        ),
        (lambda: Selection(share=0), "0 of the modules open; expected a share in 0..1."),
        (lambda: Selection(share=1.5), "1.5 of the modules open; expected a share in 0..1."),
        (
            lambda: Dacs(start=1),
            "a start of 1, a momentum of 0.99 and a threshold of 0.968; expected shares in 0..1.",
        ),
        (
            lambda: Dacs(weighting="sure"),
            "the weighting 'sure'; expected none, certainty or share.",
        ),
        (
            lambda: Recipe(steps=0),
            "0 steps of 4 + 0 crops of 512 px, saved every 1000; expected positive numbers.",
        ),
        (
            lambda: Recipe(learning_rate=-1.0),
            (
                "a learning rate of -1, a backbone share of 0.1 and a weight decay of 0.05; "
                "expected positive numbers."
            ),
        ),
        (
            lambda: Recipe(steps=5, warmup=5),
            (
                "5 of 5 planned steps, 5 to warm up; "
                "expected no more steps than planned, and fewer to warm up."
            ),
        ),
        (
            lambda: Recipe(steps=5, planned=4),
            (
                "5 of 4 planned steps, 0 to warm up; "
                "expected no more steps than planned, and fewer to warm up."
            ),
        ),
        (
            lambda: Styles(strength=1.5),
            (
                "styles with a probability of 0.1, a strength of 1.5 and 0.7 of the blocks; "
                "expected shares in 0..1."
            ),
        ),
        (lambda: Styles(block_px=0), "styles in blocks of 0 px; expected 1 or more."),
        (lambda: MultiTask(masked=-0.1), "-0.1 of the blocks hidden; expected a share in 0..1."),
        (
            lambda: MultiTask(side_px=0),
            "hidden blocks of 64 px, compared at 0 px; expected 1 or more of each.",
        ),
        (
            lambda: published("crossearth"),
            "the recipe 'crossearth'; expected crossearth-512 or crossearth-1024.",
        ),
        (
            lambda: Recipe(target_batch=2),
            "2 target images in a step and dacs None; expected both or neither.",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(make, sentence):
    with pytest.raises(InputError) as refusal:
        make()

    assert str(refusal.value) == sentence
