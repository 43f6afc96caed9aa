from collections.abc import Callable, Collection, Iterable
from itertools import accumulate

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from earthgate_geo.errors import InputError
from earthgate_geo.mapping.blend import STRIP_ROWS, Strip, StripBlender
from earthgate_geo.raster.grid import Size, Tiling, Window

Tile = Callable[[Window], Tensor]


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    """At most eight tiles along an axis: any remainder, any overlap, smaller than a tile."""
    axes = []
    for _ in range(2):
        length, tile = draw(st.integers(1, 60)), draw(st.integers(1, 24))
        least = min(tile, 1 + max(0, length - tile) // 6)
        axes.append((length, tile, draw(st.integers(least, tile))))
    rasters, tiles, strides = zip(*axes, strict=True)
    return Tiling(Size(*rasters), Size(*tiles), Size(*strides))


def scene_of(size: Size, *, classes: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(classes, size.rows, size.cols, generator=generator)


def cut(scene: Tensor) -> Tile:
    """Tiles of a scene, zero past its edges."""

    def tile(window: Window) -> Tensor:
        values = torch.zeros(*scene.shape[:-2], window.size.rows, window.size.cols)
        part = scene[..., window.row : window.row_stop, window.col : window.col_stop]
        values[..., : part.shape[-2], : part.shape[-1]] = part
        return values

    return tile


def kept(strips: Iterable[Strip]) -> list[Strip]:
    """Strips are good until the next one only."""
    return [Strip(s.row, s.col, s.probabilities.clone(), s.valid.clone()) for s in strips]


def blended(tiling: Tiling, tile: Tile, skip: Collection[int] = ()) -> tuple[Tensor, Tensor]:
    """Probabilities (class, row, col) and validity (row, col) of the whole raster."""
    blender = StripBlender(tiling, classes=2)
    inside = cut(torch.ones(tiling.raster.rows, tiling.raster.cols))
    strips = []
    for index, window in enumerate(tiling):
        if index not in skip:
            strips += kept(blender.take(window.row))
            blender.add(window, tile(window), inside(window) > 0)
    strips += kept(blender.take(tiling.raster.rows))

    assert [s.row for s in strips] == [0, *accumulate(len(s.valid) for s in strips)][:-1]
    return torch.cat([s.probabilities for s in strips], 1), torch.cat([s.valid for s in strips])


@settings(max_examples=40, deadline=None)
@given(tilings())
def test_an_identity_model_gives_the_scene_back(tiling: Tiling) -> None:
    scene = scene_of(tiling.raster)

    probabilities, valid = blended(tiling, cut(scene))

    assert valid.all()
    assert torch.allclose(probabilities, scene, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(tilings())
def test_weights_sum_to_one_at_every_pixel(tiling: Tiling) -> None:
    ones = torch.ones(2, tiling.tile.rows, tiling.tile.cols)

    probabilities, _ = blended(tiling, lambda _: ones)

    assert torch.allclose(probabilities, torch.ones(()), atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(tilings(), st.integers(1, 30), st.integers(1, 30))
def test_moving_the_origin_of_the_grid_changes_nothing_for_a_pointwise_model(
    tiling: Tiling, row: int, col: int
) -> None:
    larger = Size(tiling.raster.rows + row, tiling.raster.cols + col)
    scene = scene_of(larger)

    whole, _ = blended(Tiling(larger, tiling.tile, tiling.stride), cut(scene))
    moved, _ = blended(tiling, cut(scene[:, row:, col:]))

    assert torch.allclose(whole[:, row:, col:], moved, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(tilings(), st.data())
def test_a_pixel_is_valid_exactly_where_a_tile_lay(tiling: Tiling, data: st.DataObject) -> None:
    skip = data.draw(st.sets(st.integers(0, len(tiling) - 1)))
    expected = torch.zeros(tiling.raster.rows, tiling.raster.cols, dtype=torch.bool)
    for index, window in enumerate(tiling):
        if index not in skip:
            expected[window.row : window.row_stop, window.col : window.col_stop] = True

    _, valid = blended(tiling, cut(scene_of(tiling.raster)), skip)

    assert torch.equal(valid, expected)


@settings(max_examples=40, deadline=None)
@given(tilings(), st.data())
def test_a_skipped_tile_changes_no_pixel_outside_it(tiling: Tiling, data: st.DataObject) -> None:
    skipped = data.draw(st.integers(0, len(tiling) - 1))
    window = list(tiling)[skipped]
    outside = torch.ones(tiling.raster.rows, tiling.raster.cols, dtype=torch.bool)
    outside[window.row : window.row_stop, window.col : window.col_stop] = False
    scene = scene_of(tiling.raster)

    whole, _ = blended(tiling, cut(scene))
    without, _ = blended(tiling, cut(scene), {skipped})

    assert torch.equal(whole[:, outside], without[:, outside])


def test_a_step_between_two_tiles_becomes_a_smooth_ramp() -> None:
    tiling = Tiling(Size(8, 56), Size(8, 32), Size(8, 24))
    high, low = torch.ones(2, 8, 32), torch.zeros(2, 8, 32)

    probabilities, _ = blended(tiling, lambda window: low if window.col else high)

    across = probabilities[0, 0]
    assert (across[:24] == 1).all()
    assert (across[32:] == 0).all()
    assert (across[23:32].diff() < 0).all()
    assert across[23:33].diff().abs().max() < 0.25


def test_rows_come_out_as_soon_as_no_tile_touches_them() -> None:
    tiling = Tiling(Size(1000, 40), Size(400, 40), Size(300, 40))
    blender = StripBlender(tiling, classes=2)
    taken = []
    for window in tiling:
        taken.append(sum(len(strip.valid) for strip in blender.take(window.row)))
        blender.add(window, torch.ones(2, 400, 40), torch.ones(400, 40, dtype=torch.bool))
    strips = list(blender.take(1000))

    assert taken == [0, 300, 300]
    assert sum(len(strip.valid) for strip in strips) == 400
    assert max(len(strip.valid) for strip in strips) == STRIP_ROWS


def test_a_tile_out_of_order_is_refused() -> None:
    tiling = Tiling(Size(90, 20), Size(16, 16), Size(12, 12))
    blender = StripBlender(tiling, classes=2)
    tile = Window(12, 0, tiling.tile)

    with pytest.raises(InputError) as refused:
        blender.add(tile, torch.ones(2, 16, 16), torch.ones(16, 16, dtype=torch.bool))

    assert str(refused.value) == (
        "a tile at row 12, column 0; expected a tile of the tiling at row 0."
    )


def test_memory_does_not_depend_on_the_height_of_the_raster() -> None:
    def bytes_held(rows: int) -> int:
        blender = StripBlender(Tiling(Size(rows, 50), Size(32, 32), Size(24, 24)), classes=2)
        return sum(v.nbytes for v in vars(blender).values() if isinstance(v, torch.Tensor))

    sums, validity, product = 32 * 50 * 2 * 4, 32 * 50, 32 * 32 * 2 * 4
    assert bytes_held(100_000) == bytes_held(100) == sums + validity + product
