import pytest
import torch
from networks import small_segmenter
from torch.nn import functional

from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.heads import TemperedHead, default_head
from earthgate_geo.models.mfnet import Excitation, MfnetHead


def _count(module):
    return sum(p.numel() for p in module.parameters())


def _maps(rows, cols, *, channels=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((2, channels, rows, cols), generator=generator) for _ in range(2)]


def test_the_head_has_as_many_parameters_as_its_layers_say():
    c, w, k, n = 256, 64, 8, 6  # channels, width, window, classes

    double, excitation = 4 * c * c + c, 2 * c * (c // 16) + c // 16 + c
    fusion = 2 * (3 * double + 2 * c + 4 * excitation)
    attention = 3 * w * w + 8 * (2 * k - 1) ** 2
    mix = k * k * w + 2 * w + w * w
    block = 2 * 2 * w + attention + (9 * w * w + 2 * w) + (w * w + 2 * w) + mix + 8 * w * w + 5 * w
    join = c * w + 2 + 9 * w * w + 2 * w
    gates = 9 * w + w + 2 * w * (w // 16) + w // 16 + w
    refine = gates + w * w + 2 * w + 9 * w + 2 * w + w * w
    last = 9 * w * w + 2 * w + w * n + n
    expected = fusion + c * w + 2 * w + 3 * block + 3 * join + refine + last

    assert _count(MfnetHead((c,), classes=n, width=w)) == expected == 2_158_312


def test_maps_of_other_transformers_are_brought_to_256_channels():
    wide = MfnetHead((1024,), classes=6, width=64)

    assert _count(wide) == 2_158_312 + 2 * (1024 * 256 + 256)


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (3, 5), (2, 17)])
def test_logits_have_four_times_the_size_of_the_maps(size):
    head = MfnetHead((256,), classes=6, width=64).eval()

    with torch.inference_mode():
        logits = head(_maps(*size))

    assert logits.shape == (2, 6, 4 * size[0], 4 * size[1])


def test_a_result_does_not_depend_on_the_other_images():
    head = MfnetHead((256,), classes=3, width=16).train()
    head.classify[2].p = 0.0
    maps = _maps(4, 6)

    with torch.no_grad():
        assert torch.allclose(head(maps)[:1], head([x[:1] for x in maps]), atol=1e-5)


def test_gradient_reaches_every_weight():
    head = MfnetHead((32,), classes=3, width=16)

    head(_maps(8, 8, channels=32)).square().mean().backward()

    assert all(p.grad.isfinite().all() and p.grad.any() for p in head.parameters())


def test_windows_attend_within_themselves_alone():
    attention = MfnetHead((256,), classes=3, width=16).attend[0].attention
    x = torch.randn(1, 16, 16, 24)
    other = x.clone()
    other[..., :8, :8] += 1

    with torch.no_grad():
        changed = (attention(other) - attention(x)).abs().amax(dim=1)[0] > 1e-6

    assert changed[:8, :8].all()
    assert not changed[8:].any()
    assert not changed[:, 8:].any()


def test_attention_in_a_window_is_softmax_of_products_and_offsets():
    attention = MfnetHead((256,), classes=3, width=16).attend[0].attention
    x = torch.randn(1, 16, 8, 8)

    with torch.no_grad():
        q, k, v = attention.qkv(x)[0].flatten(1).unflatten(0, (3, 8, 2)).unbind(0)
        weights = torch.einsum("hcn,hcm->hnm", q, k) / 2**0.5
        places = [(row, col) for row in range(8) for col in range(8)]
        for one, (row, col) in enumerate(places):
            for other, (down, along) in enumerate(places):
                offset = (row - down + 7) * 15 + col - along + 7
                weights[:, one, other] += attention.bias[:, offset]
        expected = torch.einsum("hnm,hcm->hcn", weights.softmax(-1), v).reshape(16, 8, 8)

        assert torch.allclose(attention(x)[0], expected, atol=1e-5)


def test_temperature_and_offsets_fit_into_the_last_layer():
    head = MfnetHead((256,), classes=3, width=16).eval()
    maps = _maps(2, 3)
    assert isinstance(head, TemperedHead)

    with torch.no_grad():
        before = head(maps)
        head.temper(2.0)
        head.offset(1, 0.5)

        shift = torch.tensor([0, 0.5, 0]).view(1, 3, 1, 1)
        assert torch.allclose(head(maps), before / 2 + shift, atol=1e-6)


def test_excitation_scales_channels_by_what_their_means_say():
    excite = Excitation(32)
    level = torch.randn(2, 32, 5, 4)

    with torch.no_grad():
        narrow = functional.linear(
            level.mean((2, 3)), excite.narrow.weight[..., 0, 0], excite.narrow.bias
        ).relu()
        scales = functional.linear(narrow, excite.widen.weight[..., 0, 0], excite.widen.bias)
        assert torch.allclose(excite(level), level * scales.sigmoid()[..., None, None], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("earthgate_tiny", {"dim": 64, "depth": 4, "stem": [16, 16, 32]}, 64),
        ("samvit_base_patch16", {"embed_dim": 64, "num_heads": 2, "depth": 4}, 256),
        (
            "vit_small_patch14_reg4_dinov2",
            {"embed_dim": 64, "num_heads": 2, "depth": 4, "patch_size": 16},
            64,
        ),
    ],
)
def test_the_head_sees_the_last_map_of_each_stream_in_every_family(name, options, channels):
    model = small_segmenter(
        heights=True,
        head=default_head("mfnet"),
        backbone=BackboneConfig(name=name, options=options),
    )

    with torch.inference_mode():
        maps, _ = model.features(torch.rand(1, 4, 64, 96))
        logits = model(torch.rand(1, 4, 64, 96))

    assert [tuple(level.shape[1:]) for level in maps] == [(channels, 4, 6)] * 2
    assert logits.shape == (1, 5, 64, 96)
    assert logits.isfinite().all()
