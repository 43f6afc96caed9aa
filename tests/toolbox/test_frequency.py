import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from earthgate_geo.errors import InputError
from earthgate_geo.toolbox.base import Kind, Slot, ToolboxConfig
from earthgate_geo.toolbox.frequency import (
    FrequencyPath,
    TokenGrid,
    low_band_by_products,
    split_bands,
)


def _noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _split_by_the_text(patches, rho):
    rows, cols = patches.shape[1:3]
    half = math.floor(min(rows, cols) * rho / 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(patches, dim=(1, 2), norm="ortho"), dim=(1, 2))
    mask = torch.zeros(rows, cols, 1)
    row, col = rows // 2, cols // 2
    mask[row - half : row + half, col - half : col + half] = 1

    def back(masked):
        unshifted = torch.fft.ifftshift(masked, dim=(1, 2))
        return torch.fft.ifft2(unshifted, dim=(1, 2), norm="ortho").real

    return back(spectrum * mask), back(spectrum * (1 - mask))


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 20), cols=st.integers(1, 20), rho=st.sampled_from([0, 0.2, 0.3, 0.7, 1]))
def test_bands_are_those_of_a_centred_square_in_the_shifted_spectrum(rows, cols, rho):
    patches = _noise(2, rows, cols, 3)

    low, high = split_bands(patches, rho=rho)

    expected_low, expected_high = _split_by_the_text(patches, rho)
    torch.testing.assert_close(low, expected_low, atol=1e-5, rtol=0)
    torch.testing.assert_close(high, expected_high, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 20), cols=st.integers(1, 20), rho=st.sampled_from([0, 0.2, 0.3, 0.7, 1]))
def test_two_real_products_give_the_same_low_band(rows, cols, rho):
    patches = _noise(2, rows, cols, 3)

    low = low_band_by_products(patches, int(min(rows, cols) * rho / 2))

    torch.testing.assert_close(low, split_bands(patches, rho=rho)[0], atol=1e-5, rtol=0)


def test_a_traced_split_has_no_transform():
    patches = _noise(1, 6, 9, 3)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of shapes that become constants
        traced = torch.jit.trace(lambda x: split_bands(x, rho=0.7), patches)

    assert "fft" not in str(traced.inlined_graph)
    for found, expected in zip(traced(patches), split_bands(patches, rho=0.7), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_flat_map_is_all_low_and_a_chequered_one_all_high():
    flat = torch.full((1, 8, 10, 1), 3.0)
    chequered = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 5).view(1, 8, 10, 1)

    torch.testing.assert_close(split_bands(flat, rho=0.3)[0], flat)
    torch.testing.assert_close(split_bands(chequered, rho=0.3)[1], chequered)


def test_bands_are_split_in_float32_under_autocast():
    patches = _noise(1, 8, 8, 2)

    with torch.autocast("cpu", torch.bfloat16):
        low, high = split_bands(patches, rho=0.3)

    assert low.dtype == high.dtype == torch.float32
    torch.testing.assert_close(low + high, patches)


def _path(*, dim=8, prefix_tokens=0, grid=None):
    path = FrequencyPath(
        dim,
        prefix_tokens=prefix_tokens,
        grid=grid or TokenGrid(),
        config=ToolboxConfig(frequency_bottleneck=4),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for index, parameter in enumerate(path.parameters()):
            parameter.add_(_noise(*parameter.shape, seed=index))
    path.used = True
    return path


@torch.no_grad()
def test_three_adapters_are_mixed_per_token():
    path, patches = _path(), _noise(2, 7, 9, 8)

    update = path(patches)

    p = path.adapter_parameters()
    weights = functional.linear(patches, p["router.weight"], p["router.bias"]).softmax(-1)
    expected = torch.zeros_like(patches)
    bands = (patches, *split_bands(patches, rho=0.3))
    for index, (name, band) in enumerate(zip(("whole", "low", "high"), bands, strict=True)):
        inner = functional.linear(band, p[f"{name}.down.weight"], p[f"{name}.down.bias"]).relu()
        outer = functional.linear(inner, p[f"{name}.up.weight"], p[f"{name}.up.bias"])
        expected += weights[..., index, None] * outer
    torch.testing.assert_close(update, p["scale"] * expected)


@torch.no_grad()
def test_prefix_tokens_pass_and_patch_tokens_lie_on_the_grid_of_the_image():
    grid = TokenGrid()
    path, block = _path(prefix_tokens=2, grid=grid), nn.Identity()
    path.join(block)
    grid.rows, grid.cols = 3, 5
    tokens = _noise(2, 2 + 15, 8)

    result = block(tokens)

    patches = tokens[:, 2:].reshape(2, 3, 5, 8)
    assert torch.equal(result[:, :2], tokens[:, :2])
    torch.testing.assert_close(result[:, 2:].reshape(2, 3, 5, 8), patches + path(patches))


@torch.no_grad()
def test_tokens_that_lie_on_a_grid_need_no_other():
    path, block = _path(), nn.Identity()
    path.join(block)
    tokens = _noise(2, 3, 5, 8)

    torch.testing.assert_close(block(tokens), tokens + path(tokens))


def test_the_grid_follows_the_shape_of_the_image(plain, toolbox, disturb):
    slots = {slot for slot in toolbox.slots if slot.kind is Kind.FREQUENCY}
    toolbox.open(slots)
    disturb(toolbox, slots)
    path = toolbox.slots[Slot(0, Kind.FREQUENCY)]
    for rows, cols in ((2, 6), (6, 2), (3, 4)):
        plain(_noise(1, 3, rows * 16, cols * 16))

        assert (path._grid.rows, path._grid.cols) == (rows, cols)


def test_tokens_without_an_image_are_refused():
    path, block = _path(), nn.Identity()
    path.join(block)

    with pytest.raises(InputError) as error:
        block(_noise(1, 15, 8))

    assert str(error.value) == (
        "15 patch tokens; expected 0 x 0, the grid of the last image that the backbone was given."
    )


def test_the_up_projections_start_at_zero_and_the_scale_at_a_tenth(toolbox):
    parameters = toolbox.parameters(Slot(0, Kind.FREQUENCY))

    silent = {name for name, parameter in parameters.items() if not parameter.any()}
    branches = ("whole", "low", "high")
    assert silent == {f"{b}.up.{part}" for b in branches for part in ("weight", "bias")}
    assert parameters["scale"].item() == pytest.approx(0.1)
