import pytest
import torch

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import BackboneConfig, build_backbone, pad_to_patch

SMALL = {"depth": 4, "embed_dim": 64, "num_heads": 2}
FAMILIES = [
    ("vit_tiny_patch16_224", 1),
    ("vit_small_patch14_dinov2", 1),
    ("vit_small_patch14_reg4_dinov2", 5),
    ("vit_small_patch16_dinov3", 5),
    ("samvit_base_patch16", 0),
]


@pytest.mark.parametrize(("name", "prefix_tokens"), FAMILIES)
def test_every_family_gives_four_maps_of_a_tile_that_is_not_square(name, prefix_tokens):
    backbone = build_backbone(BackboneConfig(name=name, options=SMALL)).eval()
    rows, cols = 4 * backbone.patch_px, 6 * backbone.patch_px

    with torch.inference_mode():
        maps = backbone(torch.rand(2, 3, rows, cols))

    assert [tuple(m.shape) for m in maps] == [
        (2, 64, 16, 24), (2, 64, 8, 12), (2, 64, 4, 6), (2, 64, 2, 3)
    ]  # fmt: skip
    assert backbone.channels == (64,) * 4
    assert backbone.prefix_tokens == prefix_tokens
    assert len(backbone.blocks) == 4


def test_the_tiny_transformer_gives_its_stem_and_two_deep_maps():
    backbone = build_backbone(BackboneConfig(options={"dim": 64, "depth": 4, "stem": [16, 32, 48]}))

    with torch.inference_mode():
        maps = backbone(torch.rand(1, 3, 64, 96))

    assert [tuple(m.shape[1:]) for m in maps] == [
        (32, 16, 24), (48, 8, 12), (64, 4, 6), (64, 4, 6)
    ]  # fmt: skip


def test_an_unknown_backbone_is_refused_with_names_like_it():
    with pytest.raises(InputError) as refusal:
        build_backbone(BackboneConfig(name="samvit_colossal"))

    assert str(refusal.value).startswith(
        "backbone 'samvit_colossal'; expected earthgate_tiny or a vision transformer that timm "
        "knows. Names like it: samvit_base_patch16"
    )


def test_options_that_the_constructor_does_not_take_are_refused():
    with pytest.raises(InputError) as refusal:
        build_backbone(BackboneConfig(options={"width": 3}))

    assert str(refusal.value) == (
        "backbone 'earthgate_tiny' with options {'width': 3}; "
        "expected options that its constructor takes."
    )


def test_padding_repeats_the_edge_and_leaves_fitting_images_alone():
    images = torch.rand(1, 3, 17, 32)

    padded = pad_to_patch(images, 16)

    assert padded.shape == (1, 3, 32, 32)
    assert torch.equal(padded[..., :17, :], images)
    assert torch.equal(padded[..., 31, :], images[..., 16, :])
    assert pad_to_patch(padded, 16) is padded
