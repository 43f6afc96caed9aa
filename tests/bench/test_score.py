from dataclasses import replace

import pytest
import torch
from benchmark_files import write_image, write_label
from torch import Tensor, nn

from earthgate_geo.bench.score import Examination
from earthgate_geo.bench.settings import find_setting
from earthgate_geo.data.label_codes import LabelCodes
from earthgate_geo.data.pairs import Pair
from earthgate_geo.data.patches import Patch, PatchDataset
from earthgate_geo.training.scoring import Sliding


class Constant(nn.Module):
    """Always the same class of three."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3, *images.shape[-2:])
        logits[:, self.value] = 9.0
        return logits


@pytest.fixture
def examination(tmp_path) -> Examination:
    """An image of two rows of ``tree`` and one each of ``building`` and ``clutter``."""
    write_image(tmp_path / "image.tif", side_px=4)
    write_label(tmp_path / "label.tif", (0, 1, 2, 2), side_px=4)
    pair = Pair(tmp_path / "image.tif", tmp_path / "label.tif")
    setting = replace(
        find_setting("places-zanzibar-kampala"),
        classes=("building", "tree", "clutter"),
        unscored=("clutter",),
    )
    return Examination(
        test=PatchDataset([Patch(pair)], codes=LabelCodes(values={0: 1, 1: 2, 2: 0})),
        names=("tree", "building", "clutter"),
        setting=setting,
        sliding=Sliding(crop_px=4, stride_px=4),
    )


def test_the_mean_leaves_out_classes_that_do_not_count(examination) -> None:
    examination(Constant(0), 3)

    assert examination.iou(3) == {"building": 0.0, "tree": 0.5, "clutter": 0.0}
    assert examination.mean_iou(3) == 0.25


def test_f1_leaves_out_what_the_mean_does_and_accuracy_counts_all_classes(examination) -> None:
    examination(Constant(0), 3)

    assert examination.mean_f1(3) == pytest.approx((0 + 2 / 3) / 2)
    assert examination.accuracy(3) == 0.5


def test_a_class_in_neither_truth_nor_map_has_no_score(examination) -> None:
    codes = LabelCodes(values={0: 1, 1: 1, 2: 0})
    examination.test = PatchDataset(examination.test.patches, codes=codes)

    examination(Constant(0), 3)

    assert examination.iou(3) == {"building": 0.0, "tree": 0.5, "clutter": None}


def test_the_best_step_is_the_first_of_the_best_and_never_the_start(examination) -> None:
    for step, value in enumerate([0, 2, 1, 1]):
        examination(Constant(value), step)

    assert [examination.mean_iou(step) for step in range(4)] == [0.25, 0.0, 0.125, 0.125]
    assert examination.best_step == 2


def test_a_step_is_scored_once(examination) -> None:
    examination(Constant(0), 1)
    examination(Constant(1), 1)

    assert examination.mean_iou(1) == 0.25
