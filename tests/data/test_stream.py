from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasters import RasterSpec, write_raster
from torch.utils.data import DataLoader

from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.labelled_scenes import Reading, open_labelled
from earthgate_geo.data.pairs import Pair
from earthgate_geo.data.patches import Patch, PatchDataset
from earthgate_geo.data.stream import StepStream
from earthgate_geo.errors import InputError
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.recipe import Dacs, Recipe

RECIPE = Recipe(steps=6, batch=2, target_batch=1, crop_px=16, dacs=Dacs(), seed=7)
ALONE = replace(RECIPE, target_batch=0, dacs=None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Five labelled tiles of 24 px: tile n has brightness 100 + 10 n and the labels n."""
    folder = tmp_path_factory.mktemp("source")
    patches = []
    for number in range(5):
        pair = Pair(folder / f"{number}.png", folder / f"label{number}.png")
        Image.new("RGB", (24, 24), (100 + 10 * number,) * 3).save(pair.image)
        Image.new("L", (24, 24), number).save(pair.label)
        patches.append(Patch(pair))
    return PatchDataset(patches, codes=LabelCodes.of_indices(5))


@pytest.fixture(scope="module")
def target(source, tmp_path_factory):
    """The images of the source, with labels that cannot be read."""
    lost = tmp_path_factory.mktemp("target") / "lost.png"
    patches = [Patch(Pair(patch.pair.image, lost)) for patch in source.patches[1:4]]
    return PatchDataset(patches, codes=LabelCodes.of_indices(5))


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def numbers(stream, steps):
    return [int(m.min()) for step in range(steps) for m in stream.batch(step)["source"][1]]


def test_a_step_holds_crops_of_the_source_with_labels_and_of_the_target_without(source, target):
    batch = StepStream(source, target, recipe=RECIPE).batch(0)

    images, labels = batch["source"]
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert labels.shape == (2, 16, 16)
    assert labels.dtype == torch.int64
    assert batch["target"].shape == (1, 3, 16, 16)
    assert batch["target_valid"].shape == (1, 16, 16)
    assert batch["target_valid"].dtype == torch.bool


def test_without_a_target_there_is_none(source, target):
    for stream in (StepStream(source, recipe=ALONE), StepStream(source, target, recipe=ALONE)):
        assert stream.batch(0)["target"] is None
        assert stream.batch(0)["target_valid"] is None


@given(first=st.integers(0, 5))
@settings(max_examples=6, deadline=None)
def test_a_step_is_the_same_whatever_came_before(source, target, first):
    whole = list(StepStream(source, target, recipe=RECIPE))

    resumed = list(StepStream(source, target, recipe=RECIPE, first_step=first))

    assert len(whole) == 6
    same(resumed, whole[first:])


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_see_what_one_with_their_batches_joined_sees(
    source, target, ranks, augment
):
    recipe = replace(RECIPE, augment=augment)
    joined = replace(recipe, batch=2 * ranks, target_batch=ranks)

    for step in range(3):
        one = StepStream(source, target, recipe=joined).batch(step)
        parts = [
            StepStream(source, target, recipe=recipe, rank=rank, ranks=ranks).batch(step)
            for rank in range(ranks)
        ]

        same(torch.cat([part["source"][0] for part in parts]), one["source"][0])
        same(torch.cat([part["source"][1] for part in parts]), one["source"][1])
        same(torch.cat([part["target"] for part in parts]), one["target"])
        same(torch.cat([part["target_valid"] for part in parts]), one["target_valid"])


def test_steps_items_and_seeds_differ(source):
    streams = [StepStream(source, recipe=replace(ALONE, seed=seed)) for seed in (0, 1)]
    images = [stream.batch(step)["source"][0] for stream in streams for step in (0, 1)]

    assert len({item.numpy().tobytes() for batch in images for item in batch}) == 8


def test_source_and_target_of_the_same_files_are_drawn_apart(source):
    twice = replace(RECIPE, batch=4, target_batch=4)

    batch = StepStream(source, source, recipe=twice).batch(0)

    assert not torch.equal(batch["source"][0], batch["target"])


def test_every_patch_comes_once_before_any_comes_again(source):
    stream = StepStream(source, recipe=replace(ALONE, augment=False))

    seen = numbers(stream, 5)

    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]


def test_without_augmentation_crops_are_the_pixels_of_the_file(source):
    images, labels = StepStream(source, recipe=replace(ALONE, augment=False)).batch(0)["source"]

    for image, label in zip(images, labels, strict=True):
        assert len(label.unique()) == 1
        assert (image == np.float32(100 + 10 * int(label[0, 0])) / np.float32(255)).all()


def test_a_crop_larger_than_the_patch_is_filled_up(source):
    images, labels = StepStream(source, recipe=replace(ALONE, crop_px=40)).batch(0)["source"]

    assert images.shape == (2, 3, 40, 40)
    assert (labels == UNKNOWN).any()


@pytest.mark.slow
def test_workers_of_a_loader_give_the_steps_in_order(source, target):
    stream = StepStream(source, target, recipe=RECIPE, first_step=1)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn")

    same(list(loader), list(stream))


def test_no_image_is_refused(source):
    empty = PatchDataset([])

    with pytest.raises(InputError) as no_source:
        StepStream(empty, recipe=ALONE)
    with pytest.raises(InputError) as empty_target:
        StepStream(source, empty, recipe=RECIPE)
    with pytest.raises(InputError) as no_target:
        StepStream(source, recipe=RECIPE)

    assert str(no_source.value) == "no image to train on; expected one or more."
    assert (
        str(empty_target.value) == str(no_target.value) == "no target image; expected one or more."
    )


def inherits_no_labels(worker):
    # Or it shares its parent's position in the file, and reads elsewhere at times.
    files = [path.resolve().name for path in Path("/proc/self/fd").glob("*")]
    assert "labels.tif" not in files, worker


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_workers_read_labels_of_other_pixels_as_one_process_does(tmp_path):
    scene = RasterSpec(rows=256, cols=256)
    finer = RasterSpec(transform=scene.transform @ Affine.scale(0.5))
    write_raster(tmp_path / "a.tif", scene)
    codes = np.random.default_rng(0).integers(0, 2, (1, 512, 512), dtype=np.uint8)
    write_raster(tmp_path / "labels.tif", finer, values=codes)
    classes = ClassTable((LandClass(0, "land", "#000000"), LandClass(1, "water", "#0000ff")))
    (opened,), _ = open_labelled(
        [Pair(tmp_path / "a.tif", tmp_path / "labels.tif")],
        classes,
        Reading(patch_px=64),
        monitor=SilentMonitor(),
    )
    patches = PatchDataset(opened.patches, codes=LabelCodes.of_indices(2))
    stream = StepStream(patches, recipe=replace(ALONE, steps=20, crop_px=64))

    loader = DataLoader(stream, batch_size=None, num_workers=4, worker_init_fn=inherits_no_labels)
    several = [batch["source"][1] for batch in loader]

    alone = [batch["source"][1] for batch in stream]
    assert torch.equal(torch.stack(several), torch.stack(alone))
