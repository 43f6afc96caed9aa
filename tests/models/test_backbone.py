import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import small_config
from safetensors.torch import save_file

from earthgate_geo.errors import InputError
from earthgate_geo.models.backbone import (
    BackboneConfig,
    build_backbone,
    default_options,
    default_scaling,
    pad_to_patch,
    pretrained_state,
)

ROOT = Path(__file__).parents[2]
SMALL = {"depth": 4, "embed_dim": 64, "num_heads": 2}
FAMILIES = [
    ("vit_tiny_patch16_224", 1, {}),
    ("vit_base_patch16_224.mae", 1, {"img_size": 128}),
    ("vit_small_patch14_dinov2", 1, {}),
    ("vit_small_patch14_dinov2", 1, {"patch_size": 16, "img_size": [64, 96]}),
    ("vit_small_patch14_reg4_dinov2", 5, {}),
    ("vit_small_patch14_reg4_dinov2", 5, {"patch_size": 16, "img_size": [96, 64]}),
    ("vit_small_patch16_dinov3", 5, {}),
    ("vit_small_patch16_dinov3_qkvb", 5, {}),
    ("samvit_base_patch16", 0, {}),
]


@pytest.mark.parametrize(("name", "prefix_tokens", "options"), FAMILIES)
def test_every_family_gives_four_maps_of_a_tile_that_is_not_square(name, prefix_tokens, options):
    backbone = build_backbone(BackboneConfig(name=name, options=SMALL | options)).eval()
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


@pytest.mark.parametrize("name", ["samvit_colossal", "samvit_base_patch16.nowhere"])
def test_an_unknown_backbone_is_refused_with_names_like_it(name):
    with pytest.raises(InputError) as refusal:
        build_backbone(BackboneConfig(name=name))

    assert str(refusal.value) == (
        f"backbone {name!r}; expected earthgate_tiny or a vision transformer that timm knows. "
        "Names like it: samvit_base_patch16, samvit_base_patch16_224, samvit_huge_patch16, "
        "samvit_large_patch16."
    )


@pytest.mark.parametrize(
    ("depth", "taps"), [(24, [7, 11, 15, 23]), (12, [2, 5, 8, 11]), (5, [0, 1, 2, 4])]
)
def test_maps_come_from_the_published_blocks_of_24_and_else_from_evenly_spaced_ones(depth, taps):
    options = {"depth": depth, "embed_dim": 8, "num_heads": 1, "patch_size": 16, "img_size": 32}
    backbone = build_backbone(BackboneConfig(name="vit_large_patch14_dinov2", options=options))
    outputs = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _block, _args, output: outputs.append(output[:, 1:]))

    with torch.inference_mode():
        maps = backbone.eval()(torch.rand(1, 3, 32, 32))

    raw = [outputs[tap].mT.reshape(1, 8, 2, 2) for tap in taps]
    assert torch.equal(maps[2], raw[2])
    assert torch.allclose(maps[3], raw[3].mean(dim=(2, 3), keepdim=True))
    assert torch.allclose(maps[0][..., ::7, ::7], raw[0])  # corners keep their values
    assert torch.allclose(maps[1][..., ::3, ::3], raw[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("earthgate_tiny", {}),
        ("vit_large_patch14_dinov2", {"img_size": 512, "patch_size": 16}),
        ("vit_base_patch16_224.mae", {"img_size": 512}),
        ("vit_base_patch16_dinov3", {}),
        ("samvit_base_patch16", {}),
    ],
)
def test_default_options_build_a_position_table_for_the_crop(name, options):
    assert default_options(name, 512) == options


def test_a_crop_that_is_no_multiple_of_the_patch_gets_a_table_that_covers_it():
    assert default_options("vit_small_patch14_dinov2", 500) == {"img_size": 512, "patch_size": 16}


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("vit_large_patch14_dinov2", (0.485, 0.456, 0.406)),
        ("vit_base_patch16_224.mae", (0.485, 0.456, 0.406)),
        ("samvit_base_patch16", (0.485, 0.456, 0.406)),
        ("vit_base_patch16_224", (0.5, 0.5, 0.5)),
    ],
)
def test_default_scaling_is_what_the_published_weights_were_trained_on(name, mean):
    assert small_config(**default_scaling(name)).mean == mean


def test_default_scaling_leaves_that_of_our_own_transformer_to_the_segmenter():
    assert default_scaling("earthgate_tiny") == {}


PRETRAINED = """
import sys
import torch
from earthgate_geo.errors import ModelFileError
from earthgate_geo.models.backbone import BackboneConfig, build_backbone, pretrained_state
from earthgate_geo.models.checkpoint import fit_checkpoint

backbone = build_backbone(BackboneConfig(name="test_vit"))
report = fit_checkpoint(backbone, pretrained_state("test_vit"))
torch.save(backbone.vit.state_dict(), sys.argv[1])
print("; ".join(report.lines()))
try:
    pretrained_state("vit_small_patch14_dinov2")
except ModelFileError as error:
    print(error)
"""


def test_published_weights_come_from_the_cache_without_a_connection(tmp_path):
    original = build_backbone(BackboneConfig(name="test_vit"))
    hub = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    snapshot = hub / "snapshots" / "0123456789abcdef"
    for folder in (hub / "refs", snapshot):
        folder.mkdir(parents=True)
    (hub / "refs" / "main").write_text(snapshot.name)
    classifier = {"head.weight": torch.ones(1000, 64), "head.bias": torch.ones(1000)}
    state = original.vit.state_dict()
    save_file(state | classifier, snapshot / "model.safetensors")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    done = subprocess.run(
        [sys.executable, "-c", PRETRAINED, str(tmp_path / "loaded.pth")],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stderr == ""
    assert done.stdout == (
        f"{len(state)} tensors loaded\n"
        "the weights of 'vit_small_patch14_dinov2' are not in the cache and could not be "
        "downloaded; expected model.safetensors of "
        "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m. Download that file where "
        "there is a connection and give it with --weights.\n"
    )
    loaded = torch.load(tmp_path / "loaded.pth", weights_only=True)  # noqa: TID251 - our own
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["earthgate_tiny", "test_vit4"])
def test_a_backbone_without_published_weights_is_refused(name):
    with pytest.raises(InputError) as refusal:
        pretrained_state(name)

    assert str(refusal.value) == (
        f"no published weights of backbone {name!r}; expected a backbone whose weights timm knows. "
        "Give a file with --weights."
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
