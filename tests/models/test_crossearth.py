import pytest
import torch
from released import PUBLISHED, Sizes, released_state, shapes
from released_code import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    decoded,
    features,
    pixels,
    queries,
    resized,
    scores,
)

from earthgate_geo.data.pairs import table_of
from earthgate_geo.errors import InputError, ModelFileError
from earthgate_geo.models.crossearth import convert
from earthgate_geo.models.heads import HeadConfig
from earthgate_geo.models.segmenter import SegmenterConfig

CONFIG = SegmenterConfig(classes=table_of(["land", "water", "road"]))
RELEASED = "a released state dict: DINOv2, LoRA-Rein and mmsegmentation's Mask2Former"
FIX = "Check that it is one of CrossEarth's, and copy the file again"


@pytest.fixture(scope="module")
def state():
    return released_state()


@pytest.fixture(scope="module")
def model(state):
    return convert(state, CONFIG).segmenter


def pictures(batch=2):
    return torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def noisy_maps():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, Sizes().dim, s, s, generator=generator) for s in (16, 8, 4, 2)]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_the_backbone_with_rein_gives_the_maps_of_the_released_code(model, state):
    images = pictures()

    maps = model.backbone(images)

    for found, expected in zip(maps, features(state, images), strict=True):
        assert_close(found, expected)


@torch.no_grad()
def test_the_queries_are_those_that_the_released_code_makes_of_the_tokens(model, state):
    positions, contents = queries(state)

    assert_close(model.head.queries.queries_embedder.weight, positions)
    assert_close(model.head.queries.queries_features.weight, contents)
    assert not torch.allclose(positions, contents, atol=0.1)


@torch.no_grad()
def test_the_pixel_decoder_gives_the_maps_of_the_released_code(model, state):
    maps = noisy_maps()

    found = model.head.pixels(maps)

    fine, levels = pixels(state, maps)
    assert_close(found.mask_features, fine)
    for ours, theirs in zip(found.multi_scale_features, levels, strict=True):
        assert_close(ours, theirs)


@torch.no_grad()
def test_the_decoder_gives_the_proposals_of_the_released_code(model, state):
    fine, levels = pixels(state, noisy_maps())

    found = model.head.queries(levels, fine)

    classes, masks = decoded(state, fine, levels)
    last = found.intermediate_hidden_states[-1].transpose(0, 1)
    assert_close(model.head.classify(last), classes)
    assert_close(found.masks_queries_logits[-1], masks)
    assert 0.1 < (masks > 0).float().mean() < 0.9  # the masks of attention are no formality


@torch.no_grad()
def test_the_whole_network_gives_the_scores_of_the_released_code(model, state):
    images = pictures()

    maps, _ = model.features(images)

    found = model.head(maps)
    assert_close(found, scores(state, images).log())
    assert_close(model(images), resized(found, 64, 64))


def test_all_sizes_are_read_off_the_tensors(model):
    config = model.config

    assert config.head == HeadConfig(
        kind="mask2former", width=64, queries=5, pixel_layers=2, decoder_layers=4
    )
    assert config.backbone.options == {
        "img_size": 64,
        "patch_size": 16,
        "depth": 4,
        "embed_dim": 128,
        "num_heads": 2,
    }
    assert (config.tile_px, config.mean, config.std) == (64, IMAGENET_MEAN, IMAGENET_STD)
    assert config.classes == CONFIG.classes


def test_every_tensor_is_used_or_named():
    state = released_state()
    surplus = {
        "backbone.reins.high_extractor.0.weight": torch.ones(8, 3, 3, 3),
        "backbone.reins.high_extractor.0.bias": torch.ones(8),
        "auxiliary_head.conv_seg.weight": torch.ones(2, 2),
    }
    logged = {
        "averaged_state_dict.decode_head.cls_embed.weight": torch.ones(4, 64),
        "optimizer.state.7.exp_avg": torch.ones(3),
    }
    whole = logged | {f"state_dict.{k}": v for k, v in (state | surplus).items()}

    made = convert(whole, CONFIG)

    assert set(made.used) | set(made.ignored) == set(whole)
    assert not set(made.used) & set(made.ignored)
    assert made.ignored_parts() == {
        "averaged_state_dict.decode_head.cls_embed": 1,
        "state_dict.backbone.mask_token": 1,
        "state_dict.backbone.reins.high_extractor": 2,
        "state_dict.auxiliary_head.conv_seg": 1,
        "optimizer.state": 1,
    }


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")  # the point
def test_published_shapes_fit_without_a_tensor_over():
    state = {k: torch.zeros(()).expand(shape) for k, shape in shapes(PUBLISHED).items()}
    config = SegmenterConfig(classes=table_of([f"class {i}" for i in range(6)]))

    with torch.device("meta"):  # 330 million parameters that take no memory
        made = convert(state, config)

    assert made.ignored == ("backbone.mask_token",)
    assert made.segmenter.config.tile_px == 512
    of_head = sum(v.numel() for k, v in state.items() if k.startswith("decode_head."))
    in_place_of_the_link = 2 * 100 * 256 - (256 * 256 + 256)
    head = made.segmenter.head
    assert sum(p.numel() for p in head.parameters()) == of_head + in_place_of_the_link


def test_a_backbone_of_another_file_takes_the_place_of_the_checkpoints(state):
    bare = {k: v for k, v in state.items() if "reins" in k or k.startswith("decode_head.")}
    own = {k.removeprefix("backbone."): v for k, v in state.items() if k not in bare}

    made = convert(bare, CONFIG, backbone={f"teacher.{k}": v for k, v in own.items()})

    images = pictures()
    assert torch.equal(made.segmenter(images), convert(state, CONFIG).segmenter(images))
    assert made.ignored == ()


def test_a_backbone_with_patches_of_14_pixels_is_resized_to_tiles_of_512(state):
    bare = {k: v for k, v in state.items() if "reins" in k or k.startswith("decode_head.")}
    own = {k.removeprefix("backbone."): v for k, v in state.items() if k not in bare}
    own |= {
        "patch_embed.proj.weight": torch.ones(128, 3, 14, 14),
        "pos_embed": torch.ones(1, 26, 128),
    }

    made = convert(bare, CONFIG, backbone=own)
    larger = convert(bare, CONFIG, backbone=own, tile_px=1024)

    assert made.backbone.resized == ("patch_embed.proj.weight", "pos_embed")
    assert made.segmenter.config.tile_px == 512
    assert larger.segmenter.config.tile_px == 1024
    assert larger.segmenter.backbone.vit.pos_embed.shape == (1, 1 + 64**2, 128)


def refused(state, config=CONFIG, kind=ModelFileError):
    with pytest.raises(kind) as refusal:
        convert(state, config)
    return str(refusal.value)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.reins.learnable_tokens_b",
        "backbone.reins.merge.bias",
        "backbone.reins.scale",
        "decode_head.querys2feat.bias",
        "decode_head.pixel_decoder.input_convs.2.gn.bias",
        "decode_head.transformer_decoder.layers.0.self_attn.attn.in_proj_bias",
    ],
)
def test_a_missing_tensor_is_named(state, name):
    sentence = refused({k: v for k, v in state.items() if k != name})

    assert sentence == (
        f"a checkpoint without 1 of the network's tensors, the first {name}; expected "
        f"{RELEASED}. {FIX}."
    )


def test_a_checkpoint_of_another_network_is_refused():
    assert refused({"model.weight": torch.ones(1)}) == (
        "a checkpoint of 1 tensors without a decode_head.cls_embed.weight; expected "
        f"{RELEASED}. {FIX}."
    )


def test_a_checkpoint_without_its_backbone_asks_for_it(state):
    bare = {k: v for k, v in state.items() if "reins" in k or k.startswith("decode_head.")}

    assert refused(bare) == (
        "a checkpoint without its backbone; expected DINOv2-L beside Rein and the head. Give "
        "DINOv2's weights with --weights FILE, or --weights published."
    )


def test_a_backbone_that_lacks_a_tensor_is_refused(state):
    short = {k: v for k, v in state.items() if k != "backbone.blocks.3.ls2.gamma"}

    assert refused(short) == (
        "a checkpoint without 1 of the backbone's 62 tensors, the first blocks.3.ls2.gamma; "
        f"expected those of DINOv2-L. {FIX}."
    )


def test_another_number_of_classes_is_refused(state):
    config = SegmenterConfig(classes=table_of(["land", "water"]))

    assert refused(state, config, InputError) == (
        "2 classes for a checkpoint of 3; expected the checkpoint's classes, in its order."
    )


def test_a_tensor_of_another_shape_is_refused(state):
    wide = state | {"decode_head.level_embed.weight": torch.ones(4, 64)}
    odd = state | {"backbone.reins.transform.weight": torch.ones(64, 9)}

    assert refused(wide) == (
        "a checkpoint whose decode_head.level_embed.weight makes queries.level_embed.weight of "
        f"the shape (4, 64); expected (3, 64). {FIX}."
    )
    assert refused(odd) == (
        "a checkpoint whose Rein tokens do not fit what makes queries of them; expected "
        f"{RELEASED}. {FIX}."
    )
