import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from earthgate_geo.metrics import OTHER, UNKNOWN, Confusion
from earthgate_geo.training.scoring import Sliding, score


class Threshold(nn.Module):
    """Class 1 where the first channel is above a half; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return torch.stack([0.5 - images[:, 0], images[:, 0] - 0.5], 1)


class Edges(nn.Module):
    """Sure of class 1 in the first two columns of a window, hardly of class 0 elsewhere."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 2, *images.shape[-2:])
        logits[:, 0] = 0.5
        logits[:, 1, :, :2] = 5.0
        return logits


def item(rows: int, cols: int, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, rows, cols, generator=generator)
    return {"image": image, "mask": (image[0] > 0.5).long()}


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    stride=st.integers(1, 12),
    batch=st.integers(1, 5),
)
def test_every_pixel_counts_once_whatever_the_windows(rows, cols, stride, batch) -> None:
    confusion = Confusion(["low", "high"])
    items = [item(rows, cols), item(cols, rows, seed=1)]

    score(Threshold(), items, confusion, sliding=Sliding(crop_px=12, stride_px=stride, batch=batch))

    assert confusion.pixels == 2 * rows * cols
    assert confusion.accuracy() == 1.0


def test_windows_of_several_images_share_a_batch() -> None:
    network = Threshold()

    sliding = Sliding(crop_px=8, stride_px=8, batch=4)
    score(network, [item(8, 8)] * 6, Confusion(["low", "high"]), sliding=sliding)

    assert network.shapes == [(4, 3, 8, 8), (2, 3, 8, 8)]


def test_overlapping_windows_add_their_probabilities() -> None:
    confusion = Confusion(["low", "high"])
    image = {"image": torch.zeros(3, 4, 6), "mask": torch.ones(4, 6, dtype=torch.long)}

    score(Edges(), [image], confusion, sliding=Sliding(crop_px=4, stride_px=2))

    # Columns 2 and 3 lie in the first window's rest and in the second window's edge: 0.62 + 0.01
    # for class 0 against 0.38 + 0.99 for class 1.
    assert confusion.map_pixels.tolist() == [8, 16]


def test_unknown_pixels_are_left_out_and_other_ones_kept() -> None:
    confusion = Confusion(["low", "high"], named={1})
    mask = torch.tensor([[UNKNOWN, OTHER, 1, OTHER]])
    image = torch.tensor([[0.9, 0.9, 0.9, 0.1]]).expand(3, 1, 4)

    score(
        Threshold(),
        [{"image": image, "mask": mask}],
        confusion,
        sliding=Sliding(crop_px=8, stride_px=8),
    )

    assert confusion.pixels == 3
    assert confusion.iou()[1] == pytest.approx(1 / 2)
    np.testing.assert_array_equal(confusion.on_other, [1, 1])


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_it_came_in(training) -> None:
    network = Threshold().train(training)

    sliding = Sliding(crop_px=8, stride_px=8)
    score(network, [item(8, 8)], Confusion(["low", "high"]), sliding=sliding)

    assert network.training is training
