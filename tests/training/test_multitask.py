import numpy as np
import pytest
import torch
from networks import small_segmenter
from torch.nn import functional

from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import MultiTask, Policy, Selection
from earthgate_geo.toolbox.base import ToolboxConfig
from earthgate_geo.training.multitask import Reconstruction

CHOICE = MultiTask(masked=0.4, block_px=8, extractor=True)


def _beside(model, choice=CHOICE, *, seed=0, crop_px=48):
    beside = Reconstruction(model, choice, crop_px=crop_px, seed=seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in beside.parameters():  # a new token hides its gradient from nobody
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return beside


def _images(count=3, side=48):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def _rngs(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


@pytest.mark.parametrize("is_styled", [False, True])
def test_a_batch_of_three_costs_the_mean_of_three_batches_of_one(is_styled):
    model, images = small_segmenter(), _images()
    beside = _beside(model)

    def loss(places):
        some = images[places]
        styled = (1 - some, model.features(1 - some)[0]) if is_styled else None
        return beside.loss(model, some, _rngs(*places), styled=styled)

    with torch.no_grad():
        torch.testing.assert_close(loss([0, 1, 2]), (loss([0]) + loss([1]) + loss([2])) / 3)


def test_the_backbone_sees_the_token_in_hidden_blocks_and_the_image_elsewhere():
    model, images = small_segmenter(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)), _images()
    beside = _beside(model)

    hidden = beside.hidden(model, images, _rngs(0, 1, 2))

    changed = (hidden != images).any(1)
    assert torch.equal(changed, (hidden != images).all(1))
    blocks = changed.unflatten(2, (6, 8)).unflatten(1, (6, 8))
    assert torch.equal(blocks.any(4).any(2), blocks.all(4).all(2))
    assert not torch.equal(changed[0], changed[1])
    seen, token = model.scaled(hidden), beside.token.expand_as(hidden)
    where = changed[:, None].expand_as(hidden)
    torch.testing.assert_close(seen[where], token[where])


def test_a_tenth_is_hidden_by_default():
    model = small_segmenter()
    beside = _beside(model, MultiTask(block_px=4))

    hidden = beside.hidden(model, _images(16), _rngs(*range(16)))

    assert 0.08 < float((hidden != _images(16)).float().mean()) < 0.12


def test_in_a_styled_step_both_reconstructions_are_held_to_the_image_and_to_each_other():
    model, images = small_segmenter(), _images(side=40)
    beside = _beside(model, MultiTask(masked=0.3, block_px=8, side_px=24))
    styled = images.flip(1)
    styled_maps = model.features(styled)[0]

    with torch.no_grad():
        plain = beside.loss(model, images, _rngs(0, 1, 2))
        both = beside.loss(model, images, _rngs(0, 1, 2), styled=(styled, styled_maps))

        wanted = functional.interpolate(model.scaled(images), size=(24, 24), mode="bilinear")
        hidden = beside.hidden(model, images, _rngs(0, 1, 2))
        rest = beside.head(model.features(hidden)[0], size=(24, 24))
        other = beside.head(styled_maps, size=(24, 24))
    torch.testing.assert_close(plain, (rest - wanted).abs().mean())
    torch.testing.assert_close(
        both, plain + (other - wanted).abs().mean() + (rest - other).abs().mean()
    )


def test_token_head_extractor_and_open_modules_learn():
    model = small_segmenter()
    sizes = ToolboxConfig(rank=4, bottleneck=4, frequency_bottleneck=4)
    tuner = Tuner(model, Policy.ALL, selection=Selection(), seed=0, sizes=sizes)
    beside = _beside(model)

    beside.loss(model, _images(), _rngs(0, 1, 2)).backward()

    learning = {
        name for name, p in beside.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert learning == {name for name, _ in beside.named_parameters()}
    slots = tuner.toolbox.slots
    assert all(
        any(p.grad is not None and p.grad.any() for p in tuner.toolbox.parameters(slot).values())
        for slot in slots
    )


def test_the_seed_decides_its_weights_and_no_random_number_is_taken():
    model = small_segmenter()
    state = torch.get_rng_state()

    one, same, other = (
        Reconstruction(model, CHOICE, crop_px=16, seed=seed).state_dict() for seed in (0, 0, 1)
    )

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert not torch.equal(one["head.join.weight"], other["head.join.weight"])


def test_only_where_it_is_asked_for_there_is_an_extractor():
    model = small_segmenter()

    assert Reconstruction(model, MultiTask(), crop_px=16, seed=0).extractor is None
    assert Reconstruction(model, CHOICE, crop_px=16, seed=0).extractor is not None
