import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small_replay, small_segmenter

from earthgate_geo.errors import CancelledError, InputError
from earthgate_geo.metrics import OTHER
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.training import source
from earthgate_geo.training.crops import TilePool
from earthgate_geo.training.source import (
    Setup,
    SourceOptions,
    load_pool,
    pretrain_source,
    train_source,
)

OPTIONS = SourceOptions(steps=4, batch=2, crop_px=64)
STAGES = [train_source, pretrain_source]


class KilledAfter(SilentMonitor):
    def __init__(self, steps):
        self.steps = steps

    def update(self, done):
        if done == self.steps:
            raise CancelledError


def _pool():
    """Bright buildings on dark ground that says only that it is none."""
    labels = np.full((6, 96, 96), OTHER, np.uint8)
    labels[:, 20:70, 30:80] = 0
    images = np.where(labels[:, None] == 0, 220, 40).astype(np.uint8).repeat(3, axis=1)
    return TilePool(images, labels, np.full(6, 0.1, np.float32), share=1.0)


def _train(options, *, stage=train_source, monitor=None, **rest):
    model = small_segmenter()
    record = stage(model, [_pool()], options, monitor=monitor or SilentMonitor(), **rest)
    return model, record


def _same(first, second):
    weights = second.state_dict()
    return all(torch.equal(v, weights[k]) for k, v in first.state_dict().items())


def test_training_on_partly_labelled_tiles_finds_the_buildings():
    pool = _pool()
    options = SourceOptions(steps=120, batch=4, crop_px=64, learning_rate=3e-3, gsd_m=(0.08, 0.12))
    model, _ = _train(options)
    shown = np.full((1, 3, 96, 96), 40, np.uint8)
    truth = np.zeros((96, 96), bool)
    truth[20:70, 30:80] = True
    shown[:, :, truth] = 220

    with torch.inference_mode():
        found = model(torch.from_numpy(shown).float() / 255)[0].argmax(0).numpy() == 0

    assert (found & truth).sum() / (found | truth).sum() > 0.7
    assert not model.training
    assert len(pool) == 6


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_seed_trains_the_same_weights(stage):
    (first, record), (second, _) = (_train(OPTIONS, stage=stage) for _ in range(2))

    assert _same(first, second)
    assert len(record["loss"]) == 1
    assert not _same(first, _train(replace(OPTIONS, seed=1), stage=stage)[0])


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_that_goes_on_ends_with_the_bits_of_one_that_never_stopped(
    stage, tmp_path, monkeypatch
):
    monkeypatch.setattr(source, "_SAVED_EVERY", 2)
    options, setup = replace(OPTIONS, steps=5), Setup(state=tmp_path / "run.state")
    whole, wanted = _train(options, stage=stage)

    with pytest.raises(CancelledError):
        _train(options, stage=stage, setup=setup, monitor=KilledAfter(3))
    resumed, record = _train(options, stage=stage, setup=setup)

    assert _same(resumed, whole)
    assert record["loss"] == wanted["loss"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.state"]


def test_a_finished_run_that_is_started_again_takes_no_step(tmp_path):
    setup = Setup(state=tmp_path / "run.state")
    first, record = _train(OPTIONS, setup=setup)

    second, again = _train(OPTIONS, setup=setup, monitor=KilledAfter(OPTIONS.steps))

    assert _same(first, second)
    assert again["loss"] == record["loss"]


def test_the_state_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.state"
    _train(OPTIONS, setup=Setup(state=path))

    with pytest.raises(InputError) as refusal:
        _train(replace(OPTIONS, seed=1), setup=Setup(state=path))

    def about(seed):
        return (
            "{'stage': 'train', 'pools': [(6, 1.0)], 'steps': 4, 'batch': 2, 'crop_px': 64, "
            "'gsd_m': (0.05, 1.0), 'learning_rate': 0.001, 'weight_decay': 0.05, 'ema': 0.998, "
            f"'seed': {seed}, 'named': (0,)}}"
        )

    assert str(refusal.value) == (
        f"{path} is the state of another run: {about(0)}; expected {about(1)}. "
        "Remove it, or name another file."
    )


def test_threads_that_cut_crops_ahead_change_no_bit():
    alone, _ = _train(OPTIONS)

    helped, _ = _train(OPTIONS, setup=Setup(threads=2))

    assert _same(alone, helped)


def test_pretraining_reads_no_label_and_leaves_the_head_alone():
    before = small_segmenter().state_dict()

    model, _ = _train(OPTIONS, stage=pretrain_source)

    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {key.split(".")[0] for key in changed} == {"backbone"}
    assert not any("masked" in key for key in model.state_dict())
    assert not model.training


def test_images_are_restyled_in_training_alone():
    plain, _ = _train(OPTIONS)
    styled, _ = _train(OPTIONS, restyle=lambda images, rng: images * float(rng.uniform(0.5, 1)))
    untouched, _ = _train(OPTIONS, restyle=lambda images, _: images)

    assert _same(plain, untouched)
    assert not _same(plain, styled)


def test_a_pool_is_read_from_a_packed_file(tmp_path):
    replay = small_replay()
    np.savez(
        tmp_path / "p.npz",
        made_images=replay.images,
        made_labels=replay.labels,
        made_gsd_m=np.full(4, 0.2, np.float32),
    )

    pool = load_pool(tmp_path / "p.npz", "made", share=0.3)

    native = [pool.crop(64, np.random.default_rng(n), gsd_m=(0.2, 0.2))[1] for n in range(20)]
    assert {int(labels.max()) for labels in native} == {0, 1, 2, 3}
    assert (len(pool), pool.share) == (4, 0.3)


def test_training_imports_no_rasters_and_no_frameworks():
    unwanted = ("rasterio", "torchgeo", "lightning", "geopandas", "transformers")
    code = (
        "import sys, earthgate_geo.training.source\n"
        f"sys.exit(' '.join(name for name in {unwanted} if name in sys.modules) or 0)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
