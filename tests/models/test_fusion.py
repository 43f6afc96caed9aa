import copy
import pickle

import pytest
import torch
from networks import FAMILIES, small_segmenter

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.fusion import FusedHead, TwoStreams
from earthgate_geo.models.heads import HeadConfig, TemperedHead, build_head
from earthgate_geo.training.losses import SetHead

HEADS = [
    HeadConfig(kind="linear"),
    HeadConfig(width=16),
    HeadConfig(kind="mask2former", width=32, queries=6, pixel_layers=1, decoder_layers=2),
]


def _images(rows=70, cols=100, *, missing=0.3, seed=0):
    """Bands and heights, the share ``missing`` of which is not there."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((2, 4, rows, cols), generator=generator)
    images[:, 3][torch.rand((2, rows, cols), generator=generator) < missing] = -1
    return images


@torch.no_grad()
def _moved(model, *, by=0.05, of=None):
    """Move the weights of a model, or those whose name holds ``of``, at random."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if of is None or of in name:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("name", "options"), FAMILIES)
@pytest.mark.parametrize("bfloat16", [False, True])
@torch.inference_mode()
def test_a_network_that_gets_heights_classifies_as_before_bit_for_bit(name, options, bfloat16):
    model = small_segmenter(backbone=BackboneConfig(name=name, options=options))
    images = _images()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        before = model(images[:, :3])

        fused = model.with_heights()

        assert torch.equal(fused(images).argmax(1), before.argmax(1))
        assert (fused(images) - before).abs().max() <= 1e-5 * before.abs().max()
        # The same batch as the transformer sees it: then not a bit differs.
        twice = model.head(model.features(images[:, :3].repeat(2, 1, 1, 1))[0])
        assert torch.equal(fused.head(fused.features(images)[0]), twice[:2])


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_any_head_gets_heights_and_keeps_what_it_can_do(head):
    model = _moved(small_segmenter(head=head))
    fused = model.with_heights()
    images = _images()

    with torch.inference_mode():
        assert torch.equal(fused(images).argmax(1), model(images[:, :3]).argmax(1))
    assert isinstance(fused.head, TemperedHead) == isinstance(model.head, TemperedHead)
    assert isinstance(fused.head, SetHead) == isinstance(model.head, SetHead)
    assert isinstance(fused.head, SetHead) == (head.kind == "mask2former")


@torch.inference_mode()
def test_a_fused_head_is_tempered_and_offset_as_the_one_inside():
    model = _moved(small_segmenter(heights=True))
    maps, images = model.features(_images())[0], _images()
    before, whole = model.head(maps), model(images)

    model.head.temper(2.0)
    model.head.offset(1, 0.5)

    expected = before / 2
    expected[:, 1] += 0.5
    assert torch.allclose(model.head(maps), expected, atol=1e-6)
    assert not torch.equal(model(images), whole)


def test_a_fused_mask2former_learns_from_both_streams():
    model = _moved(small_segmenter(head=HEADS[-1], heights=True))
    maps, covered = model.features(_images(64, 64))
    labels = torch.randint(0, 5, (2, *covered))

    model.head.set_loss(maps, labels).backward()

    for excite in (*model.head.of_bands, *model.head.of_heights):
        assert excite.widen.bias.grad.any()


def test_a_configuration_says_how_many_channels_an_input_has():
    assert small_segmenter().config.channels == 3
    assert small_segmenter(heights=True).config.channels == 4


@torch.inference_mode()
def test_the_transformer_sees_bands_then_heights_and_where_these_are():
    model = small_segmenter(heights=True)
    images = torch.full((1, 4, 18, 17), 0.75)
    images[0, 3, :2] = -1
    images[0, 3, 2] = torch.nan
    images[0, 3, 3] = 0.0

    scaled = model.scaled(images)

    assert scaled.shape == (1, 5, 32, 32)
    assert scaled[0, :3].eq(1).all()  # the edge is repeated
    assert scaled[0, 3, :5, 0].tolist() == [0, 0, 0, -2, 1]
    assert scaled[0, 4, :5, 0].tolist() == [0, 0, 0, 1, 1]
    assert not scaled[0, 3:, 18:].any()  # where the image was enlarged there are no heights
    assert not scaled[0, 3:, :, 17:].any()


@torch.inference_mode()
def test_a_view_shows_the_bands_otherwise_and_the_heights_as_they_are():
    model = small_segmenter(heights=True)
    images = _images(32, 32)
    before = model.scaled(images)

    model.view = type(model.view)(order=(2, 1, 0), gamma=2.0)

    after = model.scaled(images)
    assert torch.equal(after[:, 3:], before[:, 3:])
    assert not torch.equal(after[:, :3], before[:, :3])


@torch.inference_mode()
def test_images_without_the_channel_of_heights_have_none():
    model, images = _moved(small_segmenter(heights=True)), _images()
    images[:, 3] = -1

    assert torch.equal(model(images[:, :3]), model(images))


@pytest.mark.parametrize("kind", ["fpn", "mfnet"])
@torch.inference_mode()
def test_without_any_height_the_head_sees_zeros_in_their_place(kind):
    model = _moved(small_segmenter(heights=True, head=HeadConfig(kind=kind, width=16)))
    images = _images(missing=0.0)
    images[0, 3] = -1

    maps, _ = model.features(images)

    heights = maps[len(maps) // 2 :]
    assert not any(level[0].any() for level in heights)
    assert all(level[1].any() for level in heights)


@torch.inference_mode()
def test_an_image_without_heights_does_not_depend_on_how_heights_are_joined():
    model = _moved(small_segmenter(heights=True))
    images = _images()
    images[0, 3] = -1
    before = model(images)

    _moved(model, by=1.0, of="of_heights")

    after = model(images)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


@torch.inference_mode()
def test_maps_of_heights_are_weighted_by_the_share_of_pixels_that_have_one():
    model = small_segmenter(heights=True)
    scaled = model.scaled(_images(32, 32, missing=0.0))
    half = scaled.clone()
    half[:, 4, :, 16:] = 0  # the right half of the second column of tokens and of all finer cells

    whole, weighted = model.backbone(scaled), model.backbone(half)

    for level, other in zip(whole[4:], weighted[4:], strict=True):
        cells = level.shape[-1] // 2
        assert torch.equal(other[..., :cells], level[..., :cells])
        assert not other[..., cells:].any()
    assert all(map(torch.equal, whole[:4], weighted[:4]))


@pytest.mark.parametrize("kind", ["fpn", "mfnet"])
@pytest.mark.parametrize("heights", [-1.0, 0.0, 0.5, 1.0, torch.nan, -5.0])
def test_constant_and_missing_heights_give_finite_logits_and_gradients(kind, heights):
    model = _moved(small_segmenter(heights=True, head=HeadConfig(kind=kind, width=16)))
    images = _images(48, 48)
    images[:, 3] = heights

    logits = model(images)
    logits.square().mean().backward()

    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@torch.inference_mode()
def test_trained_joining_lets_heights_count():
    model = _moved(small_segmenter(heights=True))
    images, other = _images(missing=0.0), _images(missing=0.0)
    other[:, 3] = other[:, 3].flip(-1)

    assert (model(images) - model(other)).abs().max() > 1e-3


def test_a_network_that_gets_heights_is_a_copy():
    model = small_segmenter()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    fused = _moved(model.with_heights(), by=1.0)

    assert (model.config.heights, fused.config.heights) == (False, True)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert fused.training == model.training


@torch.inference_mode()
def test_a_network_with_heights_that_gets_them_is_copied():
    model = _moved(small_segmenter(heights=True))
    images = _images()

    twin = model.with_heights()

    assert twin is not model
    assert torch.equal(twin(images), model(images))


@torch.inference_mode()
def test_a_network_with_heights_can_be_copied_and_pickled():
    model, images = _moved(small_segmenter(heights=True)), _images()

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), model(images))


def test_joining_starts_alike_every_time():
    torch.manual_seed(1)
    one = FusedHead(build_head(HEADS[0], (32,), classes=2), (32,))
    torch.manual_seed(2)
    other = FusedHead(one.head, (32,))

    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert one.of_heights[0].narrow.weight.any()


def test_a_network_adopts_the_backbone_of_another_and_sees_of_it_what_its_head_needs():
    head = HeadConfig(kind="mfnet", width=16)
    model, other = small_segmenter(heights=True, head=head), small_segmenter(heights=True)

    model.adopt(other)

    assert model.backbone is other.backbone
    assert model.backbone.channels == (64, 64)
    assert model(_images()).shape == (2, 5, 70, 100)


def test_both_streams_pass_the_same_blocks():
    model = small_segmenter(heights=True)

    assert isinstance(model.backbone, TwoStreams)
    assert model.backbone.blocks is model.backbone.single.blocks
    assert model.backbone.streams == 2


def test_the_head_of_mfnet_is_refused_without_heights():
    with pytest.raises(InputError) as error:
        small_segmenter(head=HeadConfig(kind="mfnet", width=16))

    assert str(error.value) == (
        "the head mfnet in a network without heights; expected a network with heights. "
        "Give heights with --dsm, or choose another head."
    )
