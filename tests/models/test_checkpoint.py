import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgate_geo.errors import ModelFileError
from earthgate_geo.models.backbone import (
    Backbone,
    BackboneConfig,
    TimmTransformer,
    build_backbone,
    default_options,
)
from earthgate_geo.models.checkpoint import KeyReport, fit_checkpoint

SMALL = {"depth": 4, "embed_dim": 64, "num_heads": 2}
PLAIN, DINOV2 = "vit_tiny_patch16_224", "vit_small_patch14_dinov2"
REGISTERS, GIANT = "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"
DINOV3, DINOV3_BIAS = "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"
SAM = "samvit_base_patch16"
FIX = "Check --backbone and --weights against each other."
FAMILY = f"expected weights of the same family and size. {FIX}"


def random_backbone(name: str, *, seed: int, **options: object) -> Backbone:
    torch.manual_seed(seed)
    wanted = {} if name == "earthgate_tiny" else SMALL
    backbone = build_backbone(BackboneConfig(name=name, options=wanted | options)).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def renamed(state: dict[str, torch.Tensor], *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
    for pattern, name in pairs:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    return state


def official(name: str, backbone: TimmTransformer) -> dict[str, torch.Tensor]:
    """State of ``backbone`` as the authors of its family publish it."""
    state, noise = backbone.vit.state_dict(), torch.randn(1, 1, 64)
    if name == PLAIN:  # MAE with its decoder
        decoder = {"decoder_blocks.0.norm1.weight": noise, "decoder_pos_embed": noise}
        return {"mask_token": noise} | state | decoder
    if name == SAM:
        inner = renamed(state, (r"^", "image_encoder."), (r"mlp\.fc", "mlp.lin"))
        return inner | {"prompt_encoder.no_mask_embed.weight": noise, "mask_decoder.x": noise}
    if name in (DINOV3, DINOV3_BIAS):
        state = renamed(state, ("^reg_token", "storage_tokens"), (r"\.gamma_(\d)", r".ls\1.gamma"))
        for layer in range(4):
            attention = f"blocks.{layer}.attn"
            zero = torch.zeros(64)
            q = state.pop(f"{attention}.q_bias", zero)
            v = state.pop(f"{attention}.v_bias", zero)
            state[f"{attention}.qkv.bias"] = torch.cat((q, noise.flatten(), v))
            state[f"{attention}.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat(64)
        return state | {"rope_embed.periods": noise, "mask_token": noise}
    state = renamed(state, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    if name != GIANT:
        state = renamed(state, (r"mlp\.w12", "mlp.fc1"), (r"mlp\.w3", "mlp.fc2"))
    if name == REGISTERS:  # the class token's position is apart from it
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat((noise, state["pos_embed"]), dim=1)
        state["cls_token"] = state["cls_token"] - noise
    return state | {"mask_token": noise[0]}


def maps_of(backbone: Backbone, rows: int = 64, cols: int = 96) -> list[torch.Tensor]:
    images = torch.rand(1, 3, rows, cols, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return backbone(images)


def assert_equal_maps(one: Backbone, other: Backbone) -> None:
    rows, cols = 4 * one.patch_px, 6 * one.patch_px
    pairs = zip(maps_of(one, rows, cols), maps_of(other, rows, cols), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def cubic_matrix(before: int, after: int) -> torch.Tensor:
    """Keys' cubic convolution with a = -0.75, pixel centres aligned, edges repeated."""
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        centre = (row + 0.5) * before / after - 0.5
        first = int(centre // 1) - 1
        for tap in range(first, first + 4):
            d = abs(centre - tap)
            near, far = (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3
            matrix[row, min(max(tap, 0), before - 1)] += near if d <= 1 else far
    return matrix


def cubic(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    down, across = cubic_matrix(x.shape[-2], rows), cubic_matrix(x.shape[-1], cols)
    return (down @ x.double() @ across.T).float()


@pytest.mark.parametrize(
    ("name", "options", "ignored"),
    [
        (PLAIN, {}, ("decoder_blocks.0.norm1.weight", "decoder_pos_embed")),
        (DINOV2, {"img_size": 70}, ()),
        (GIANT, {"img_size": 70, "mlp_ratio": 4}, ()),
        (DINOV3, {}, ()),
        (DINOV3_BIAS, {}, ()),
        (SAM, {}, ("prompt_encoder.no_mask_embed.weight", "mask_decoder.x")),
    ],
)
def test_official_weights_give_the_original_maps(name, options, ignored):
    original = random_backbone(name, seed=1, **options)
    backbone = random_backbone(name, seed=2, **options)

    report = fit_checkpoint(backbone, official(name, original))

    assert_equal_maps(backbone, original)
    assert report == KeyReport(
        loaded=len(original.vit.state_dict()), resized=(), missing=(), ignored=ignored
    )


def test_official_weights_with_registers_give_the_class_token_its_position():
    original = random_backbone(REGISTERS, seed=1, img_size=70)
    state = official(REGISTERS, original)
    with torch.no_grad():  # the sum, as rounding has it
        original.vit.cls_token.copy_(state["cls_token"] + state["pos_embed"][:, :1])
    backbone = random_backbone(REGISTERS, seed=2, img_size=70)

    report = fit_checkpoint(backbone, state)

    assert_equal_maps(backbone, original)
    assert (report.resized, report.missing, report.ignored) == ((), (), ())


@pytest.mark.parametrize("name", [PLAIN, DINOV2, REGISTERS, DINOV3, DINOV3_BIAS, SAM])
def test_names_of_timm_give_the_original_maps(name):
    original, backbone = random_backbone(name, seed=1), random_backbone(name, seed=2)

    report = fit_checkpoint(backbone, original.vit.state_dict())

    assert_equal_maps(backbone, original)
    assert (report.resized, report.missing, report.ignored) == ((), (), ())


def test_the_tiny_transformer_is_found_inside_a_segmenter():
    original, backbone = (random_backbone("earthgate_tiny", seed=seed) for seed in (1, 2))
    state = {f"backbone.{key}": value for key, value in original.state_dict().items()}

    report = fit_checkpoint(backbone, state | {"head.classify.weight": torch.ones(1)})

    assert_equal_maps(backbone, original)
    assert report.lines() == [f"{len(state)} tensors loaded", "ignored: head"]


@pytest.mark.parametrize("name", [DINOV2, REGISTERS])
@pytest.mark.parametrize("size", [32, [48, 80]])
def test_dinov2_of_patch_14_is_resized_to_patch_16_and_the_built_grid(name, size):
    state = official(name, random_backbone(name, seed=1, img_size=84))
    backbone = random_backbone(name, seed=2, img_size=size, patch_size=16)

    report = fit_checkpoint(backbone, state)

    vit, (rows, cols) = backbone.vit, backbone.vit.patch_embed.grid_size
    grid = state["pos_embed"][0, 1:].T.reshape(64, 6, 6)
    table = cubic(grid, rows, cols).flatten(1).T
    own_positions = vit.pos_embed[0, 1 if name == DINOV2 else 0 :]
    assert report.resized == ("patch_embed.proj.weight", "pos_embed")
    assert torch.allclose(own_positions, table, atol=1e-5)
    assert torch.allclose(
        vit.patch_embed.proj.weight, cubic(state["patch_embed.proj.weight"], 16, 16), atol=1e-5
    )
    if name == DINOV2:
        assert torch.equal(vit.pos_embed[:, :1], state["pos_embed"][:, :1])
    assert torch.equal(vit.blocks[3].mlp.fc2.weight, state["blocks.3.mlp.fc2.weight"])


def test_a_table_of_as_many_positions_in_another_shape_is_resized_once():
    state = official(DINOV2, random_backbone(DINOV2, seed=1, img_size=32 * 14))
    backbone = random_backbone(DINOV2, seed=2, img_size=[16 * 16, 64 * 16], patch_size=16)

    fit_checkpoint(backbone, state)

    table = cubic(state["pos_embed"][0, 1:].T.reshape(64, 32, 32), 16, 64).flatten(1).T
    assert torch.allclose(backbone.vit.pos_embed[0, 1:], table, atol=1e-5)


def test_a_table_of_a_grid_that_is_not_square_fits_the_same_grid():
    original, backbone = (random_backbone(PLAIN, seed=seed, img_size=[64, 96]) for seed in (1, 2))

    report = fit_checkpoint(backbone, original.vit.state_dict())

    assert report.resized == ()
    assert_equal_maps(backbone, original)


def test_half_precision_weights_are_resized_in_single_precision():
    original = official(DINOV2, random_backbone(DINOV2, seed=1, img_size=84))
    state = {key: value.half() for key, value in original.items()}
    backbone = random_backbone(DINOV2, seed=2, **default_options(DINOV2, 32))

    fit_checkpoint(backbone, state)

    kernel = cubic(state["patch_embed.proj.weight"].float(), 16, 16)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert torch.allclose(backbone.vit.patch_embed.proj.weight, kernel, atol=1e-6)


def test_a_crossearth_checkpoint_gives_its_backbone_and_names_what_is_left():
    original = random_backbone(DINOV2, seed=1, img_size=64, patch_size=16)
    inner = official(DINOV2, original) | {
        "reins.scale": torch.tensor(0.001),
        "reins.learnable_tokens_a": torch.ones(4, 100, 16),
    }
    state = {f"state_dict.backbone.{key}": value for key, value in inner.items()}
    state |= {f"state_dict.decode_head.{key}": torch.ones(1) for key in ("a", "b", "c")}
    backbone = random_backbone(DINOV2, seed=2, img_size=64, patch_size=16)

    report = fit_checkpoint(backbone, state)

    assert_equal_maps(backbone, original)
    assert report.lines() == [
        f"{len(original.vit.state_dict())} tensors loaded",
        "ignored: reins (2), decode_head (3)",
    ]


def test_of_a_training_state_the_teacher_is_taken_and_chunked_blocks_are_found():
    teacher, student, backbone = (
        random_backbone(DINOV2, seed=seed, img_size=70) for seed in (1, 2, 3)
    )
    chunks = ((r"^blocks\.([01])\.", r"blocks.0.\1."), (r"^blocks\.([23])\.", r"blocks.1.\1."))
    state = {}
    for who, one in (("student", student), ("teacher", teacher)):
        inner = renamed(official(DINOV2, one), *chunks)
        state |= {f"{who}.backbone.{key}": value for key, value in inner.items()}

    report = fit_checkpoint(backbone, state | {"teacher.dino_head.last": torch.ones(1)})

    assert_equal_maps(backbone, teacher)
    assert report.lines()[1] == f"ignored: student ({len(state) // 2}), dino_head"


@settings(max_examples=10, deadline=None)
@given(wrappers=st.lists(st.sampled_from(["model", "module", "state_dict", "encoder"]), max_size=3))
def test_wrappers_of_any_depth_are_taken_off(wrappers):
    original, backbone = (
        random_backbone("earthgate_tiny", seed=s, depth=2, dim=64) for s in (1, 2)
    )
    state = {".".join((*wrappers, key)): value for key, value in original.state_dict().items()}

    report = fit_checkpoint(backbone, state)

    assert report.ignored == ()
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in original.state_dict().items())


def test_the_norm_behind_the_blocks_may_be_missing_and_is_reported():
    state = random_backbone(PLAIN, seed=1).vit.state_dict()
    state = renamed(state, (r"^norm\.", "fc_norm."))  # a fine-tuned MAE
    backbone = random_backbone(PLAIN, seed=2)

    report = fit_checkpoint(backbone, state | {"head.weight": torch.ones(10, 64)})

    assert report.lines() == [
        f"{len(state) - 2} tensors loaded",
        "not in the checkpoint and not needed: norm (2)",
        "ignored: fc_norm (2), head",
    ]


def refusal_of(backbone: Backbone, state: dict[str, torch.Tensor]) -> str:
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ModelFileError) as refusal:
        fit_checkpoint(backbone, state)
    after = backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    return str(refusal.value)


def test_a_checkpoint_that_is_too_deep_is_refused():
    state = random_backbone(PLAIN, seed=1, depth=6).vit.state_dict()

    assert refusal_of(random_backbone(PLAIN, seed=2), state) == (
        f"a checkpoint with surplus tensors (24), the first blocks.4.norm1.weight; {FAMILY}"
    )


def test_a_checkpoint_that_is_too_shallow_is_refused():
    state = random_backbone(PLAIN, seed=1).vit.state_dict()

    assert refusal_of(random_backbone(PLAIN, seed=2, depth=6), state) == (
        "a checkpoint without 24 of the backbone's 78 tensors, the first "
        f"blocks.4.norm1.weight; {FAMILY}"
    )


def test_a_checkpoint_of_another_width_is_refused():
    state = random_backbone(PLAIN, seed=1, embed_dim=96).vit.state_dict()

    assert refusal_of(random_backbone(PLAIN, seed=2), state) == (
        f"a checkpoint whose cls_token has the shape (1, 1, 96); expected (1, 1, 64). {FIX}"
    )


@pytest.mark.parametrize(
    ("backbone", "checkpoint", "found"),
    [
        (PLAIN, DINOV2, "with surplus tensors (8), the first blocks.0.ls1.gamma"),
        (DINOV2, PLAIN, "without 8 of the backbone's 62 tensors, the first blocks.0.ls1.gamma"),
        (SAM, PLAIN, "without 8 of the backbone's 65 tensors, the first blocks.0.attn.rel_pos_h"),
        (DINOV3, DINOV2, "without 9 of the backbone's 58 tensors, the first reg_token"),
        (DINOV2, REGISTERS, "with surplus tensors (1), the first reg_token"),
        (DINOV3, DINOV3_BIAS, "with surplus tensors (4), the first blocks.0.attn.qkv.bias"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused(backbone, checkpoint, found):
    state = official(checkpoint, random_backbone(checkpoint, seed=1))

    sentence = refusal_of(random_backbone(backbone, seed=2), state)

    assert sentence == f"a checkpoint {found}; {FAMILY}"


@pytest.mark.parametrize(
    "state", [{}, {"embeddings.cls_token": torch.ones(1, 1, 64), "encoder.layer.0": torch.ones(1)}]
)
def test_a_checkpoint_without_a_transformer_is_refused(state):
    sentence = refusal_of(random_backbone(PLAIN, seed=2), state)

    assert sentence == (
        f"a checkpoint of {len(state)} tensors without a patch_embed.proj.weight; expected weights "
        f"of the backbone, named as by timm or by their authors. {FIX}"
    )


def test_weights_of_modules_without_their_backbone_are_refused():
    state = {"backbone.reins.scale": torch.ones(()), "decode_head.conv_seg.bias": torch.ones(2)}

    assert refusal_of(random_backbone(DINOV2, seed=2), state).startswith(
        "a checkpoint of 2 tensors"
    )
