from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from networks import small_replay, small_segmenter, write_model
from safetensors.torch import save_file

from earthgate_geo.errors import InputError
from earthgate_geo.jobs.start import starting_model
from earthgate_geo.model_file import save_model
from earthgate_geo.models.backbone import BackboneConfig, build_backbone
from earthgate_geo.raster.classes import ClassTable, LandClass

TWO = ClassTable((LandClass(0, "land", "#000000"), LandClass(1, "water", "#0000ff")))


@dataclass(frozen=True, kw_only=True)
class Wish:
    model: str | None = None
    model_folders: tuple[Path, ...] = ()
    backbone: str | None = None
    weights: str | None = None
    head: str | None = None


def _start(classes=TWO, *, seed=0, heights=False, **wish):
    return starting_model(Wish(**wish), classes, crop_px=64, seed=seed, heights=heights)


def _same(one, other):
    weights = other.state_dict()
    return all(torch.equal(value, weights[key]) for key, value in one.state_dict().items())


def test_without_a_wish_the_packaged_model_is_the_start():
    start = _start()

    assert start.name == "earthgate-tiny"
    assert start.segmenter.config.classes == TWO
    assert not start.trained


def test_a_new_head_leaves_the_backbone_as_it_is(tmp_path):
    path = write_model(tmp_path / "small.safetensors")
    classes = small_segmenter().config.classes

    kept, fresh = _start(classes, model=str(path)), _start(classes, model=str(path), head="linear")

    assert (kept.trained, fresh.trained) == (True, False)
    assert kept.replay is not None
    assert fresh.replay is None
    assert fresh.segmenter.config.head.kind == "linear"
    assert _same(kept.segmenter.backbone, fresh.segmenter.backbone)
    assert fresh.licence == "CC0-1.0"


def test_classes_in_another_order_are_the_same_and_others_need_a_new_head(tmp_path):
    path = tmp_path / "small.safetensors"
    save_model(path, small_segmenter(), card={"name": "s"}, replay=small_replay())
    own = small_segmenter().config.classes
    turned = ClassTable(
        tuple(LandClass(i, entry.name, entry.color) for i, entry in enumerate(reversed(list(own))))
    )

    assert _start(turned, model=str(path)).segmenter.config.classes == own
    assert _start(TWO, model=str(path)).segmenter.config.classes == TWO


def test_new_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    one = _start(backbone="earthgate_tiny")
    drawn = torch.rand(1)
    same, other = _start(backbone="earthgate_tiny"), _start(backbone="earthgate_tiny", seed=1)

    assert _same(one.segmenter, same.segmenter)
    assert not _same(one.segmenter, other.segmenter)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def test_a_checkpoint_gives_the_backbone_its_weights_and_a_report(tmp_path):
    torch.manual_seed(1)
    backbone = build_backbone(BackboneConfig())
    path = tmp_path / "weights.safetensors"
    save_file(backbone.state_dict(), path)

    start = _start(backbone="earthgate_tiny", weights=str(path), head="linear")

    assert _same(start.segmenter.backbone, backbone)
    assert start.segmenter.config.head.kind == "linear"
    assert start.keys is not None
    assert start.keys.loaded == len(backbone.state_dict())
    assert len(start.digest) == 64
    assert not start.trained


def test_with_heights_a_model_keeps_what_it_knows(tmp_path):
    path = write_model(tmp_path / "small.safetensors")
    images = torch.rand(2, 3, 64, 64)
    own = small_segmenter()

    kept = _start(own.config.classes, model=str(path), heights=True)
    fresh = _start(TWO, model=str(path), heights=True, head="mfnet")

    seen = kept.segmenter.eval()(torch.cat([images, images[:, :1]], 1))
    torch.testing.assert_close(seen, own(images), atol=1e-2, rtol=1e-2)
    assert (kept.trained, kept.segmenter.config.channels) == (True, 4)
    assert _same(own.half().float().backbone, fresh.segmenter.backbone.single)
    assert fresh.segmenter.config.head.kind == "mfnet"


def test_a_checkpoint_fits_the_one_backbone_of_both_streams(tmp_path):
    torch.manual_seed(1)
    backbone = build_backbone(BackboneConfig())
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")

    start = _start(
        backbone="earthgate_tiny", weights=str(tmp_path / "weights.safetensors"), heights=True
    )

    assert start.segmenter.config.heights
    assert _same(start.segmenter.backbone.single, backbone)
    assert start.keys.loaded == len(backbone.state_dict())


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError) as refusal:
        _start(backbone="earthgate_tiny", weights=str(tmp_path / "none.pth"))

    assert str(refusal.value) == (
        f"no checkpoint {tmp_path / 'none.pth'}; expected a file that ends in .safetensors, "
        ".pth, .pt, .bin."
    )
