from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import ROTATED, RasterSpec, write_raster
from torchgeo.samplers import GeoSampler, RandomGeoSampler

from earthgate_geo.data.sampling import TopDownSampler, ValidRandomSampler
from earthgate_geo.data.scenes import SceneDataset
from earthgate_geo.errors import EmptySceneError, InputError
from earthgate_geo.raster.grid import Size, Tiling, Window
from earthgate_geo.raster.read import open_scene


def masked_scene(path: Path, mask: np.ndarray, **options) -> SceneDataset:
    rows, cols = mask.shape
    write_raster(path, RasterSpec(bands=1, rows=rows, cols=cols, **options), mask=mask)
    return SceneDataset(open_scene(path), bands=(1,))


def windows_of(sampler, dataset: SceneDataset) -> list[Window]:
    return [dataset.window(query) for query in sampler]


def random_windows(dataset: SceneDataset, tile: Size, *, seed: int = 0, **options) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    return windows_of(
        ValidRandomSampler(dataset, tile, 20, generator=generator, **options), dataset
    )


def inside(mask: np.ndarray, window: Window) -> np.ndarray:
    return mask[max(window.row, 0) : window.row_stop, max(window.col, 0) : window.col_stop]


@given(
    rows=st.integers(1, 90),
    cols=st.integers(1, 90),
    tile_rows=st.integers(1, 40),
    tile_cols=st.integers(1, 40),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_tiles_cover_every_pixel_top_row_first_and_end_at_the_edge(
    tmp_path_factory, rows, cols, tile_rows, tile_cols, data
):
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    dataset = masked_scene(path, np.ones((rows, cols), np.bool_), transform=ROTATED)
    tile = Size(tile_rows, tile_cols)
    stride = Size(
        data.draw(st.integers(max(1, tile_rows // 2), tile_rows)),
        data.draw(st.integers(max(1, tile_cols // 2), tile_cols)),
    )

    sampler = TopDownSampler(dataset, tile, stride)
    windows = windows_of(sampler, dataset)

    seen = np.zeros((rows, cols), np.bool_)
    for window in windows:
        inside(seen, window)[:] = True
    assert seen.all()
    assert len(windows) == len(sampler)
    assert windows == sorted(windows, key=lambda w: (w.row, w.col))
    assert {w.size for w in windows} == {tile}
    assert windows[-1].row_stop == max(rows, tile_rows)
    assert windows[-1].col_stop == max(cols, tile_cols)


@given(
    rows=st.integers(10, 60),
    cols=st.integers(10, 60),
    tile=st.integers(3, 20),
    valid=st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_exactly_the_tiles_without_a_valid_pixel_are_left_out(
    tmp_path_factory, rows, cols, tile, valid
):
    mask = np.zeros((rows, cols), np.bool_)
    for row, col in valid:
        mask[row, col] = True
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    dataset = masked_scene(path, mask)

    sampler = TopDownSampler(dataset, Size(tile, tile), Size(tile, tile))
    windows = windows_of(sampler, dataset)

    every = Tiling(Size(rows, cols), Size(tile, tile), Size(tile, tile))
    assert windows == [window for window in every if inside(mask, window).any()]
    assert len(sampler) == len(windows)


def test_a_valid_pixel_that_the_overview_misses_keeps_its_tile(tmp_path):
    mask = np.zeros((3000, 2100), np.bool_)
    mask[1501, 1003] = True
    dataset = masked_scene(tmp_path / "scene.tif", mask)

    windows = windows_of(TopDownSampler(dataset, Size(512, 512), Size(512, 512)), dataset)

    assert windows == [Window(1024, 512, Size(512, 512))]


def test_a_scene_smaller_than_a_tile_gets_one_tile(tmp_path):
    dataset = masked_scene(tmp_path / "scene.tif", np.ones((20, 30), np.bool_))

    windows = windows_of(TopDownSampler(dataset, Size(64, 64), Size(48, 48)), dataset)

    assert windows == [Window(0, 0, Size(64, 64))]


def test_a_stride_longer_than_the_tile_is_refused(tmp_path):
    dataset = masked_scene(tmp_path / "scene.tif", np.ones((20, 30), np.bool_))

    with pytest.raises(InputError) as caught:
        TopDownSampler(dataset, Size(8, 8), Size(8, 9))

    assert str(caught.value) == "a stride of 8 x 9 px; expected at most the tile's 8 x 8 px."


def test_samplers_are_torchgeo_s(tmp_path):
    dataset = masked_scene(tmp_path / "scene.tif", np.ones((20, 30), np.bool_))
    tile = Size(8, 8)

    assert isinstance(TopDownSampler(dataset, tile, tile), GeoSampler)
    assert isinstance(
        ValidRandomSampler(dataset, tile, 3, generator=torch.Generator()), RandomGeoSampler
    )


@given(
    rows=st.integers(1, 80),
    cols=st.integers(1, 80),
    tile_rows=st.integers(1, 40),
    tile_cols=st.integers(1, 40),
)
@settings(max_examples=30, deadline=None)
def test_random_tiles_lie_inside_a_scene_that_holds_them(
    tmp_path_factory, rows, cols, tile_rows, tile_cols
):
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    dataset = masked_scene(path, np.ones((rows, cols), np.bool_))

    windows = random_windows(dataset, Size(tile_rows, tile_cols))

    assert len(windows) == 20
    assert all(w.size == Size(tile_rows, tile_cols) for w in windows)
    assert all(0 <= w.row <= max(0, rows - tile_rows) for w in windows)
    assert all(0 <= w.col <= max(0, cols - tile_cols) for w in windows)


def test_random_tiles_hold_enough_valid_pixels(tmp_path):
    mask = np.zeros((400, 500), np.bool_)
    mask[30:120, 330:450] = True
    dataset = masked_scene(tmp_path / "scene.tif", mask)

    windows = random_windows(dataset, Size(64, 64), min_valid=0.6)

    assert all(inside(mask, window).mean() >= 0.6 for window in windows)
    assert len(set(windows)) > 15


def test_without_enough_valid_pixels_anywhere_the_best_tiles_are_taken(tmp_path):
    mask = np.zeros((400, 500), np.bool_)
    mask[200:210, 100:110] = True
    dataset = masked_scene(tmp_path / "scene.tif", mask)

    windows = random_windows(dataset, Size(64, 64))

    assert all(inside(mask, window).sum() > 50 for window in windows)


def test_random_tiles_reach_every_edge(tmp_path):
    dataset = masked_scene(tmp_path / "scene.tif", np.ones((40, 40), np.bool_))

    windows = random_windows(dataset, Size(30, 30))

    assert {0, 10} <= {w.row for w in windows}
    assert {0, 10} <= {w.col for w in windows}


def test_random_tiles_repeat_with_their_generator(tmp_path):
    dataset = masked_scene(tmp_path / "scene.tif", np.ones((400, 500), np.bool_))

    first, again, other = (random_windows(dataset, Size(32, 32), seed=s) for s in (3, 3, 4))

    assert first == again
    assert first != other


def test_random_passes_differ_from_one_another(tmp_path):
    dataset = masked_scene(tmp_path / "scene.tif", np.ones((400, 500), np.bool_))
    sampler = ValidRandomSampler(dataset, Size(32, 32), 10, generator=torch.Generator())

    assert len(sampler) == 10
    assert windows_of(sampler, dataset) != windows_of(sampler, dataset)


def test_random_tiles_of_an_empty_scene_are_refused(tmp_path):
    dataset = masked_scene(tmp_path / "scene.tif", np.zeros((40, 50), np.bool_))

    with pytest.raises(EmptySceneError) as caught:
        ValidRandomSampler(dataset, Size(32, 32), 10, generator=torch.Generator())

    assert str(caught.value) == (
        f"{tmp_path / 'scene.tif'} shows no valid pixel in its overview; expected a scene with "
        "pixels to learn from."
    )
