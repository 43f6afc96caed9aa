import numpy as np
import torch
from networks import small_replay, small_segmenter

from earthgate_geo.metrics import OTHER
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.training.source import SourceOptions, TilePool, load_pool, train_source

OPTIONS = SourceOptions(steps=4, batch=2, crop_px=64)


def _pool():
    """Bright buildings on dark ground that says only that it is none."""
    labels = np.full((6, 96, 96), OTHER, np.uint8)
    labels[:, 20:70, 30:80] = 0
    images = np.where(labels[:, None] == 0, 220, 40).astype(np.uint8).repeat(3, axis=1)
    return TilePool(images, labels, share=1.0)


def _train(options):
    model = small_segmenter()
    record = train_source(model, [_pool()], options, monitor=SilentMonitor())
    return model, record


def test_training_on_partly_labelled_tiles_finds_the_buildings():
    model, _ = _train(SourceOptions(steps=120, batch=4, crop_px=64, learning_rate=3e-3))
    pool = _pool()

    with torch.inference_mode():
        found = model(torch.from_numpy(pool.images[:1]).float() / 255)[0].argmax(0).numpy() == 0

    truth = pool.labels[0] == 0
    assert (found & truth).sum() / (found | truth).sum() > 0.7
    assert not model.training


def test_the_same_seed_trains_the_same_weights():
    (first, record), (second, _) = _train(OPTIONS), _train(OPTIONS)

    weights = second.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in first.state_dict().items())
    assert len(record["loss"]) == 1


def test_a_pool_is_read_from_a_packed_file(tmp_path):
    replay = small_replay()
    np.savez(tmp_path / "p.npz", made_images=replay.images, made_labels=replay.labels)

    pool = load_pool(tmp_path / "p.npz", "made", share=0.3)

    assert np.array_equal(pool.images, replay.images)
    assert np.array_equal(pool.labels, replay.labels)
    assert pool.share == 0.3
