import pytest
import torch
from torch.nn import functional

from earthgate_geo.errors import InputError
from earthgate_geo.models.heads import HeadConfig, TemperedHead, build_head, default_head

CHANNELS = (8, 16, 24, 24)
SIZES = ((16, 20), (8, 10), (4, 5), (2, 2))


def random_maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, c, *size, generator=generator)
        for c, size in zip(CHANNELS, SIZES, strict=True)
    ]


@pytest.mark.parametrize("kind", ["linear", "fpn"])
def test_a_head_gives_logits_of_the_finest_map_and_every_parameter_learns(kind):
    head = build_head(HeadConfig(kind=kind, width=16), CHANNELS, classes=5)

    logits = head(random_maps())
    logits.square().sum().backward()

    assert logits.shape == (2, 5, 16, 20)
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_the_linear_head_is_one_convolution_of_all_maps_normalised_and_concatenated():
    head, maps = build_head(HeadConfig(kind="linear"), CHANNELS, classes=5), random_maps()
    normal = [functional.layer_norm(m.movedim(1, -1), m.shape[1:2]).movedim(-1, 1) for m in maps]
    joined = [functional.interpolate(m, size=SIZES[0], mode="bilinear") for m in normal]
    weight = torch.cat([layer.weight for layer in head.classify], dim=1)

    with torch.inference_mode():
        expected = functional.conv2d(
            torch.cat(joined, dim=1), weight[..., None, None], head.classify[0].bias
        )
        logits = head(maps)

    assert torch.allclose(logits, expected, atol=1e-5)


def test_a_linear_head_sees_no_other_image():
    head, maps = build_head(HeadConfig(kind="linear"), CHANNELS, classes=5).train(), random_maps()

    alone = head([level[:1] for level in maps])

    assert torch.allclose(head(maps)[:1], alone, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "fpn"])
def test_a_tempered_head_gives_its_logits_divided(kind):
    head, maps = build_head(HeadConfig(kind=kind, width=16), CHANNELS, classes=5), random_maps()
    before = head(maps)

    head.temper(2.5)

    assert isinstance(head, TemperedHead)
    assert torch.allclose(head(maps), before / 2.5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "fpn"])
def test_an_offset_moves_the_logit_of_one_class(kind):
    head, maps = build_head(HeadConfig(kind=kind, width=16), CHANNELS, classes=5), random_maps()
    before = head(maps)

    head.offset(2, -1.5)

    moved = torch.tensor([0, 0, -1.5, 0, 0]).view(1, 5, 1, 1)
    assert torch.allclose(head(maps), before + moved, atol=1e-6)


def test_mask2former_is_as_wide_as_published_by_default_and_the_others_are_light():
    assert default_head("mask2former") == HeadConfig(
        kind="mask2former", width=256, queries=100, pixel_layers=6, decoder_layers=9
    )
    assert default_head("fpn") == HeadConfig()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "mask"}, "head 'mask'; expected linear, fpn, mask2former, mfnet."),
        ({"width": 20}, "a head of width 20; expected a multiple of 8."),
        ({"width": 0}, "a head of width 0; expected a multiple of 8."),
        (
            {"queries": 0},
            "a head of 0 queries, 6 pixel layers and 9 decoder layers; expected 1 or more of each.",
        ),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(changes, sentence):
    with pytest.raises(InputError) as refusal:
        HeadConfig(**changes)

    assert str(refusal.value) == sentence
