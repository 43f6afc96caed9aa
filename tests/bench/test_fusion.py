import numpy as np
import pytest
import torch
from PIL import Image
from rasters import RasterSpec, write_raster

from benchmarks import fusion
from benchmarks.fusion import WAYS

SIDE = fusion.SIDE_PX


def test_a_fourth_channel_starts_as_the_image_alone():
    images = torch.rand(1, 4, 64, 64)
    mixed, alone = (fusion.network(WAYS[way], seed=3).eval() for way in ("channel", "image"))

    with torch.no_grad():
        torch.testing.assert_close(mixed(images), alone(images[:, :3]))


def test_a_fourth_channel_can_learn_from_the_heights():
    mixed = fusion.network(WAYS["channel"], seed=3)

    mixed(torch.rand(1, 4, 64, 64)).square().mean().backward()

    assert mixed.mix.weight.grad[:, 3].abs().sum() > 0


@pytest.mark.parametrize("way", WAYS)
def test_every_way_sees_what_it_says_and_never_the_bands_that_are_the_answer(tmp_path, way):
    bands = np.random.default_rng(0).integers(0, 3000, (12, SIDE, SIDE)).astype(np.int16)
    spec = RasterSpec(crs=None, transform=None)
    write_raster(tmp_path / "a.tif", spec, values=bands)
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "a.png")
    row = {"image": "a.tif", "label": "a.png"}

    pair = fusion._pair(tmp_path, tmp_path, row, WAYS[way])
    image = fusion._dataset([pair], WAYS[way])[0]["image"].numpy()

    seen = [
        next(
            (band for band in range(12) if np.corrcoef(part.flat, bands[band].flat)[0, 1] > 0.99),
            None,
        )
        if part.min() >= 0
        else None
        for part in image
    ]
    colours = [9, 9, 9] if way == "heights" else [3, 2, 1]
    assert seen == [*colours, None if way in ("image", "heights") else 9]


def test_differences_are_taken_seed_by_seed_and_a_missing_run_is_left_out():
    document = {"trained_parameters": 1000, "seconds": 60.0}
    scores = {"image": (0.4, 0.6, 0.5), "separate": (0.5, 0.7), "mmadapter": (0.52, 0.71)}
    found = {
        (way, seed): document | {"iou": iou}
        for way, ious in scores.items()
        for seed, iou in enumerate(ious)
    }

    lines = fusion.water_table(found).splitlines()[2:]

    assert lines == [
        "| image alone | 50.0 ± 10.0 | 0.0 ± 0.0 | -10.0 ± 0.0 | 1,000 | 60 |",
        "| both, separate adapters | 60.0 ± 14.1 | 10.0 ± 0.0 | 0.0 ± 0.0 | 1,000 | 60 |",
        "| both, `mmadapter` | 61.5 ± 13.4 | 11.5 ± 0.7 | 1.5 ± 0.7 | 1,000 | 60 |",
    ]
