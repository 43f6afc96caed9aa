import json

import pytest

from earthgate_geo.errors import InputError
from earthgate_geo.recipe import Dacs, Policy, Recipe, Selection


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
        ),
    ],
)
def test_a_recipe_comes_back_from_json(recipe):
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("place", ["recipe", "selection", "dacs"])
def test_a_key_that_no_recipe_has_is_refused(place):
    document = Recipe(target_batch=2, dacs=Dacs()).to_json()
    (document if place == "recipe" else document[place])["momentun"] = 1

    with pytest.raises(TypeError, match="momentun"):
        Recipe.from_json(document)


def test_a_choice_looks_at_a_fortieth_of_the_images_until_the_next_but_at_one_at_least():
    assert Selection().images_for(4) == 10
    assert Selection(interval=50).images_for(4) == 5
    assert Selection(interval=1).images_for(1) == 1
    assert Selection(images=16).images_for(4) == 16


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
            lambda: Recipe(target_batch=2),
            "2 target images in a step and dacs None; expected both or neither.",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(make, sentence):
    with pytest.raises(InputError) as refusal:
        make()

    assert str(refusal.value) == sentence
