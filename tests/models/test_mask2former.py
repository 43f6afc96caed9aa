import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import rasterio
import torch
from networks import small_segmenter
from rasters import RasterSpec, write_raster
from torch.nn import functional
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from earthgate_geo.data.scenes import TilePlan
from earthgate_geo.data.synthetic import CLASSES
from earthgate_geo.errors import InputError, MissingDependencyError
from earthgate_geo.mapping.runtime import TorchRuntime
from earthgate_geo.mapping.scene import LocalEngine, MapOutputs, map_scene
from earthgate_geo.mapping.stream import MapTask
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.model_file import load_model, save_model
from earthgate_geo.models.heads import HeadConfig, build_head
from earthgate_geo.models.mask2former import Mask2FormerHead
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.grid import Size
from earthgate_geo.raster.read import open_scene

SMALL = HeadConfig(kind="mask2former", width=32, queries=6, pixel_layers=1, decoder_layers=2)
CHANNELS = (8, 8, 16, 16)


def small_head(*, classes=4, config=SMALL):
    torch.manual_seed(0)
    return build_head(config, CHANNELS, classes=classes)


def noisy_maps(*strides, batch=2, size_px=64):
    torch.manual_seed(1)
    return [
        torch.randn(batch, c, size_px // s, size_px // s)
        for c, s in zip(CHANNELS, strides, strict=True)
    ]


def random_labels(*, batch=2, size_px=64, classes=4):
    torch.manual_seed(2)
    blocks = torch.randint(classes, (batch, 4, 4))
    return blocks.repeat_interleave(size_px // 4, 1).repeat_interleave(size_px // 4, 2)


def seeded_loss(head, maps, labels, **options):
    torch.manual_seed(3)
    return head.set_loss(maps, labels, **options)


class Given(Mask2FormerHead):
    """A head that is given its layers' proposals, (classes, masks), instead of feature maps."""

    def __init__(self, *, classes):
        super().__init__(CHANNELS, classes=classes, config=SMALL)

    def _proposals(self, maps):
        return maps


def given_proposals(*, batch=1, classes=3, size_px=16):
    torch.manual_seed(4)
    masks = functional.interpolate(10 * torch.randn(batch, 6, 4, 4), size_px, mode="bilinear")
    return torch.randn(batch, 6, classes + 1), masks


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (4, 8, 16, 16)])
def test_logits_have_the_size_of_the_finest_map(strides):
    with torch.inference_mode():
        logits = small_head()(noisy_maps(*strides))

    assert logits.shape == (2, 4, 16, 16)


def test_the_softmax_of_the_logits_is_the_share_of_the_semantic_scores():
    head, maps = small_head().double(), [m.double() for m in noisy_maps(4, 8, 16, 32)]

    with torch.inference_mode():
        logits = head(maps)

        pixels = head.pixels(maps)
        found = head.queries(pixels.multi_scale_features, pixels.mask_features)
        scores = torch.zeros(2, 4, 16, 16, dtype=torch.double)
        for image in range(2):
            for query in range(SMALL.queries):
                outputs = head.classify(found.intermediate_hidden_states[-1][query, image]).exp()
                mask = 1 / (1 + (-found.masks_queries_logits[-1][image, query]).exp())
                scores[image] += (outputs / outputs.sum())[:4, None, None] * mask
    assert torch.allclose(logits.softmax(dim=1), scores / scores.sum(dim=1, keepdim=True))


def test_every_layer_is_judged_and_every_parameter_learns():
    head, (classes, masks) = Given(classes=4), given_proposals(classes=4)
    labels = random_labels(batch=1, size_px=16)
    torch.manual_seed(3)
    first = head.set_loss([(classes, masks)], labels)
    second = head.set_loss([(-classes, -masks)], labels)
    whole = small_head()

    loss = seeded_loss(head, [(classes, masks), (-classes, -masks)], labels)
    whole.set_loss(noisy_maps(4, 8, 16, 32), random_labels()).backward()

    assert loss == first + second
    assert [k for k, p in whole.named_parameters() if p.grad is None] == []


def test_full_labels_give_the_loss_of_transformers_but_for_the_drawn_points():
    head, labels = Given(classes=3), random_labels(size_px=128, classes=3)
    classes, masks = given_proposals(batch=2, size_px=128)
    present = [its.unique() for its in labels]
    reference = Mask2FormerLoss(Mask2FormerConfig(num_labels=3), {})
    torch.manual_seed(0)
    parts = reference(
        masks,
        classes,
        [(its == found[:, None, None]).float() for its, found in zip(labels, present, strict=True)],
        present,
    )

    loss = seeded_loss(head, [(classes, masks)], labels)

    wanted = 2 * parts["loss_cross_entropy"] + 5 * (parts["loss_mask"] + parts["loss_dice"])
    assert loss.item() == pytest.approx(wanted.item(), rel=0.03)


def test_unknown_pixels_teach_nothing_and_other_ones_lie_outside_every_mask():
    head, (classes, masks) = Given(classes=3), given_proposals()
    masks.requires_grad_()
    labels = torch.ones(1, 16, 16, dtype=torch.long)
    labels[:, :4], labels[:, 12:] = UNKNOWN, OTHER

    seeded_loss(head, [(classes, masks)], labels).backward()

    matched = masks.grad[0][masks.grad[0].abs().sum(dim=(1, 2)) > 0]
    assert len(matched) == 1
    assert (matched[:, :4] == 0).all()
    assert matched[:, 4:12].max() <= 0 > matched[:, 4:12].min()
    assert matched[:, 12:].min() >= 0 < matched[:, 12:].max()


def test_a_pixel_without_weight_is_an_unknown_one():
    head, proposals = Given(classes=3), [given_proposals()]
    labels = random_labels(batch=1, size_px=16, classes=3)
    weights = torch.ones(1, 16, 16)
    weights[:, :8] = 0
    unknown = torch.where(weights > 0, labels, UNKNOWN)

    loss = seeded_loss(head, proposals, labels, weights=weights)

    assert loss == seeded_loss(head, proposals, unknown)
    assert loss != seeded_loss(head, proposals, labels)


def test_a_query_without_a_mask_may_be_of_a_class_that_the_labels_do_not_name():
    head, (classes, masks) = Given(classes=3), given_proposals()
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    masks[:, 0], masks[:, 1:] = 20, -20
    classes[:, 0], classes[:, 1:] = torch.tensor([20.0, 0, 0, 0]), torch.tensor([0, 20.0, 0, 0])

    allowed = head.set_loss([(classes, masks)], labels, named=torch.tensor([True, False, True]))

    assert allowed.item() == pytest.approx(0, abs=1e-3)
    assert head.set_loss([(classes, masks)], labels) > 5


def test_an_image_of_unknown_pixels_adds_nothing_to_the_loss_of_another():
    head, (classes, masks) = Given(classes=3), given_proposals(batch=2)
    labels = random_labels(size_px=16, classes=3)
    labels[0] = UNKNOWN

    loss = seeded_loss(head, [(classes, masks)], labels)

    assert loss == seeded_loss(head, [(classes[1:], masks[1:])], labels[1:])


@pytest.mark.parametrize("label", [UNKNOWN, OTHER])
def test_a_batch_without_a_class_gives_a_finite_loss_and_gradient(label):
    head, maps = small_head(), noisy_maps(4, 8, 16, 32)

    loss = head.set_loss(maps, torch.full((2, 64, 64), label))
    loss.backward()

    assert (loss == 0) == (label == UNKNOWN)
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_more_classes_than_queries_are_matched_as_far_as_queries_reach():
    head = small_head(classes=9)

    loss = head.set_loss(noisy_maps(4, 8, 16, 32), random_labels(classes=9))

    assert loss.isfinite()


def test_a_small_head_learns_three_rectangles():
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[:, 4:24, 8:56], labels[:, 32:60, 4:28], labels[:, 36:56, 36:60] = 1, 2, 3
    hues = functional.one_hot(labels, 4).movedim(-1, 1).float()
    torch.manual_seed(0)
    maps = [
        functional.avg_pool2d(functional.conv2d(hues, torch.randn(c, 4, 1, 1)), stride)
        for c, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]
    head = small_head()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)

    for _ in range(50):
        optimizer.zero_grad()
        head.set_loss(maps, labels).backward()
        optimizer.step()

    with torch.inference_mode():
        found = functional.interpolate(head(maps), 64, mode="bilinear").argmax(dim=1)
    assert (found == labels).float().mean() > 0.95


def test_a_seed_decides_the_loss():
    head, maps, labels = small_head(), noisy_maps(4, 8, 16, 32), random_labels()

    assert seeded_loss(head, maps, labels) == seeded_loss(head, maps, labels)


def test_bfloat16_gives_the_same_classes_nearly_and_a_loss_in_single_precision():
    head, maps, labels = small_head(), noisy_maps(4, 8, 16, 32), random_labels()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logits = seeded_loss(head, maps, labels), head(maps)
    loss.backward()

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(seeded_loss(head, maps, labels).item(), rel=0.02)
    assert torch.allclose(logits.float().softmax(1), head(maps).softmax(1), atol=0.02)
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_a_map_made_before_does_not_hinder_training():
    head, maps, labels = small_head(), noisy_maps(4, 8, 16, 32), random_labels()
    wanted = seeded_loss(head, maps, labels)
    with torch.inference_mode():
        head(maps)

    loss = seeded_loss(head, maps, labels)
    loss.backward()

    assert loss == wanted


def test_a_copy_gives_the_same_and_lives_its_own_life():
    head, maps = small_head(), noisy_maps(4, 8, 16, 32)
    before = head(maps)

    copy = deepcopy(head)
    assert torch.equal(copy(maps), before)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()

    assert torch.equal(head(maps), before)
    assert not torch.equal(copy(maps), before)


def test_a_model_with_this_head_is_saved_and_loaded_bit_for_bit(tmp_path):
    model, images = small_segmenter(head=SMALL), torch.rand(1, 3, 64, 80)
    save_model(tmp_path / "m.safetensors", model, card={"name": "m"}, dtype=torch.float32)

    loaded = load_model(tmp_path / "m.safetensors").segmenter

    assert loaded.config == model.config
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


def test_a_model_with_this_head_maps_a_scene(tmp_path):
    write_raster(tmp_path / "scene.tif", RasterSpec(rows=50, cols=90))
    scene = open_scene(tmp_path / "scene.tif")
    bands = scene.choose_bands(("red", "green", "blue"))
    task = MapTask(
        scene=scene,
        bands=bands,
        radiometry=scene.radiometry(bands),
        plan=TilePlan(tile=Size(32, 32), stride=Size(24, 24), network=Size(32, 32)),
        classes=CLASSES,
    )

    engine = LocalEngine(TorchRuntime(small_segmenter(head=SMALL)), memory_bytes=10**9)
    result = map_scene(engine, task, MapOutputs(map=tmp_path / "map.tif"), monitor=SilentMonitor())

    with rasterio.open(tmp_path / "map.tif") as layer:
        assert np.isin(layer.read(1), range(len(CLASSES))).all()
    assert sum(result.class_pixels.values()) == 50 * 90


def test_the_published_sizes_come_with_the_published_width():
    with torch.device("meta"):
        head = Mask2FormerHead(
            (1024,) * 4, classes=7, config=HeadConfig(kind="mask2former", width=256)
        )

    layer = head.queries.decoder.layers[0]
    assert (len(head.pixels.encoder.layers), len(head.queries.decoder.layers)) == (6, 9)
    assert (layer.cross_attn.num_heads, layer.fc1.out_features) == (8, 2048)
    assert head.pixels.encoder.layers[0].fc1.out_features == 1024
    assert sum(p.numel() for p in head.parameters()) == 20_562_120


def test_a_new_head_looks_around_and_owes_its_weights_to_the_seed():
    config = HeadConfig(kind="mask2former", width=256, pixel_layers=1, decoder_layers=1)

    head, again = small_head(config=config), small_head(config=config)

    offsets = head.pixels.encoder.layers[0].self_attn.sampling_offsets.bias.view(8, 3, 4, 2)
    right, diagonal = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    for step in range(4):
        assert torch.allclose(offsets[0, :, step], (step + 1) * right, atol=1e-6)
        assert torch.allclose(offsets[1, :, step], (step + 1) * diagonal, atol=1e-6)
    assert all(map(torch.equal, head.parameters(), again.parameters()))


def test_a_width_that_does_not_divide_into_heads_of_attention_is_refused():
    with pytest.raises(InputError) as refusal:
        small_head(config=HeadConfig(kind="mask2former", width=40))

    assert str(refusal.value) == "a Mask2Former head of width 40; expected a multiple of 32."


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "earthgate_geo.models.mask2former")

    with pytest.raises(MissingDependencyError) as refusal:
        small_head()

    assert str(refusal.value) == (
        "the Mask2Former head needs transformers and scipy, and they are not both installed. "
        "Install them with: pip install 'earthgate-geo[mask2former]'."
    )


def test_other_heads_do_not_import_transformers():
    script = (
        "import sys; from earthgate_geo.models.heads import HeadConfig, build_head;"
        "build_head(HeadConfig(), (8, 8, 8, 8), classes=2);"
        "raise SystemExit('transformers' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
