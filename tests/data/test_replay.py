import numpy as np
from networks import small_replay

from earthgate_geo.data.replay import Replay


def test_packed_tiles_come_back_with_the_same_labels_and_nearly_the_same_images():
    ramp = np.broadcast_to(np.arange(0, 128, 2, dtype=np.uint8), (2, 3, 64, 64))
    replay = Replay(images=ramp.copy(), labels=small_replay(2).labels)

    packed, lengths = replay.pack()
    found = Replay.unpack(packed, lengths)

    assert packed.numel() == sum(map(sum, lengths)) < ramp.size / 4
    assert np.array_equal(found.labels, replay.labels)
    assert np.abs(found.images.astype(int) - ramp).max() <= 4
