from dataclasses import replace

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import NORTH_UP, RasterSpec, write_raster

from earthgate_geo.data.heights import UNSCALED, open_heights
from earthgate_geo.data.labels import LabelOptions, open_labels
from earthgate_geo.data.scenes import SceneDataset, TilePlan
from earthgate_geo.data.synthetic import CLASSES
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.raster.grid import Size, Window
from earthgate_geo.raster.read import Radiometry, open_scene
from earthgate_geo.training.tiles import SceneTiles, SceneView, SceneWindow

TILE_PX = 64
SIDE = Size(4 * TILE_PX, 4 * TILE_PX)
FAR = NORTH_UP @ Affine.translation(1000, 0)


def _view(path, *, brightness, size=SIDE, transform=NORTH_UP, labels=None, **changes):
    """Return a scene of one brightness, of which the lower half is ``hollow`` on request."""
    mask = np.ones((size.rows, size.cols), np.bool_)
    if changes.get("hollow"):
        mask[size.rows // 2 :] = False
    values = np.full((3, size.rows, size.cols), brightness, np.uint8)
    write_raster(path, RasterSpec(transform=transform), values=values, mask=mask)
    scene = open_scene(path)
    scale = changes.get("scale", 1)
    return SceneView(
        dataset=SceneDataset(
            scene,
            bands=(1, 2, 3),
            labels=labels and open_labels(labels, scene.grid, CLASSES, LabelOptions()),
        ),
        plan=TilePlan(
            tile=Size(TILE_PX * scale, TILE_PX * scale),
            stride=Size(TILE_PX * scale, TILE_PX * scale),
            network=Size(TILE_PX, TILE_PX),
        ),
        radiometry=changes.get("radiometry", Radiometry((0,) * 3, (255,) * 3)),
    )


def _labels(path, values, *, transform=NORTH_UP):
    write_raster(path, RasterSpec(transform=transform), values=values.astype(np.uint8)[None])
    return path


def _halves(path, size=SIDE, transform=NORTH_UP):
    values = np.zeros((size.rows, size.cols))
    values[:, size.cols // 2 :] = 3
    return _labels(path, values, transform=transform)


def _tiles(*views, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SceneTiles(views, size_px=TILE_PX, generator=generator)


def _known(tiles, place, size, *, held_back):
    """Return (row, col), True where a scene's labels are used."""
    known = np.zeros((size.rows, size.cols), np.bool_)
    for row in range(0, size.rows, TILE_PX):
        for col in range(0, size.cols, TILE_PX):
            window = Window(row, col, Size(TILE_PX, TILE_PX))
            read = tiles.read([SceneWindow(place, window)], held_back=held_back).labels[0]
            inside = window.clipped(size).size
            part = (read != UNKNOWN).numpy()[: inside.rows, : inside.cols]
            known[row : row + inside.rows, col : col + inside.cols] = part
    return known


def test_scenes_give_tiles_by_their_valid_area_at_the_networks_scale(tmp_path):
    tiles = _tiles(
        _view(tmp_path / "0.tif", brightness=0),  # 16 tiles
        _view(tmp_path / "1.tif", brightness=51, hollow=True),  # 8
        _view(tmp_path / "2.tif", brightness=102, size=Size(256, 512), scale=2),  # 8
    )

    seen = tiles.draw(400).images[:, :, :4].flatten(1).amax(1)

    shares = [float((seen == value).float().mean()) for value in torch.tensor([0, 51, 102]) / 255]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.07)


def test_each_scene_is_read_with_its_own_radiometry_and_scale(tmp_path):
    dark = Radiometry((0,) * 3, (100,) * 3)
    bright = Radiometry((100,) * 3, (200,) * 3)
    tiles = _tiles(
        _view(tmp_path / "dark.tif", brightness=25, radiometry=dark),
        _view(tmp_path / "bright.tif", brightness=125, radiometry=bright, scale=2),
    )
    windows = tiles.scattered_windows(8)

    batch = tiles.read(windows)

    assert batch.images.shape == (8, 3, TILE_PX, TILE_PX)
    assert torch.allclose(batch.images, torch.tensor(0.25))
    sizes = {window.scene: window.window.size for window in windows}
    assert sizes == {0: Size(64, 64), 1: Size(128, 128)}


def test_a_look_at_the_scenes_leaves_out_none_of_them(tmp_path):
    tiles = _tiles(
        _view(tmp_path / "0.tif", brightness=0, size=Size(640, 640)),
        _view(tmp_path / "1.tif", brightness=0, labels=_halves(tmp_path / "labels.tif")),
        _view(tmp_path / "2.tif", brightness=0, size=Size(64, 64)),
    )

    places = [window.scene for window in tiles.scattered_windows(4)]

    assert places == [0, 0, 0, 1, 2]  # 100, 16 and 1 tiles large


def test_a_fifth_of_the_labelled_blocks_of_all_scenes_is_held_back_and_comes_in_turn(tmp_path):
    tiles = _tiles(
        _view(tmp_path / "0.tif", brightness=0, labels=_halves(tmp_path / "a.tif")),
        _view(
            tmp_path / "1.tif",
            brightness=0,
            transform=FAR,
            labels=_halves(tmp_path / "b.tif", transform=FAR),
        ),
    )

    windows = tiles.held_back_windows()

    places = [window.scene for window in windows]
    assert len(places) == 6  # of 32
    in_turn = 2 * min(places.count(0), places.count(1))
    assert places[:in_turn] == [0, 1] * (in_turn // 2) != []
    assert torch.all(tiles.read(windows).labels == UNKNOWN)
    assert torch.all(tiles.read(windows, held_back=True).labels != UNKNOWN)


def test_each_class_is_held_back_in_turn_and_keeps_labels_to_train(tmp_path):
    size = Size(5 * TILE_PX, 5 * TILE_PX)
    values = np.full((size.rows, size.cols), UNKNOWN)
    values[::64, ::64] = 0
    values[0, [0, 64]] = 1  # 22 blocks of one class, two of another
    values[64, 0] = 2  # and one
    for seed in range(5):
        labels = _labels(tmp_path / f"{seed}.tif", values)
        view = _view(tmp_path / "scene.tif", brightness=0, size=size, labels=labels)
        tiles = _tiles(view, seed=seed)

        held = tiles.read(tiles.held_back_windows(), held_back=True).labels
        training = {value for *_, value in tiles._spots}

        assert torch.unique(held).tolist() == [0, 1, UNKNOWN]
        assert training == {0, 1, 2}


@pytest.mark.parametrize(("side_px", "held_back"), [(6, False), (60, True)])
def test_a_few_small_things_all_train(tmp_path, side_px, held_back):
    values = np.full((SIDE.rows, SIDE.cols), UNKNOWN)
    for block in range(10):
        row, col = TILE_PX * (block // 4), TILE_PX * (block % 4)
        values[row : row + side_px, col : col + side_px] = block % 2
    labels = _labels(tmp_path / "labels.tif", values)
    tiles = _tiles(_view(tmp_path / "scene.tif", brightness=0, labels=labels))

    assert tiles.labelled
    assert tiles.holds_back == held_back


def test_labels_train_in_every_class_wherever_they_lie(tmp_path):
    named = np.full((2, 256, 256), UNKNOWN)
    named[0, :8], named[1, :8] = 1, 2
    views = [
        _view(
            tmp_path / f"{place}.tif",
            brightness=0,
            transform=(there := NORTH_UP @ Affine.translation(1000 * place, 0)),
            labels=_labels(tmp_path / f"labels{place}.tif", values, transform=there),
        )
        for place, values in enumerate(named)
    ]
    tiles = _tiles(*views)

    windows = tiles.labelled_windows(40)

    assert tiles.labelled
    assert {1, 2} <= tiles.named
    assert {window.scene for window in windows} == {0, 1}
    assert all((tiles.read([window]).labels < len(CLASSES)).any() for window in windows)


@given(down=st.integers(0, 260), across=st.integers(-260, 260), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_ground_that_one_scene_holds_back_trains_in_no_other(tmp_path_factory, down, across, seed):
    folder = tmp_path_factory.mktemp("scenes")
    moved = NORTH_UP @ Affine.translation(across, down)
    views = [
        _view(
            folder / f"{name}.tif",
            brightness=0,
            transform=there,
            labels=_halves(folder / f"{name}_labels.tif", transform=there),
        )
        for name, there in (("first", NORTH_UP), ("second", moved))
    ]

    tiles = _tiles(*views, seed=seed)

    ground = np.zeros((4, 520, 780), np.bool_)  # two scenes, training and held back
    for place, (row, col) in enumerate([(0, 260), (down, 260 + across)]):
        for which in (0, 1):
            known = _known(tiles, place, SIDE, held_back=bool(which))
            ground[2 * which + place, row : row + 256, col : col + 256] = known
    training, held_back = ground[:2].any(0), ground[2:].any(0)
    assert held_back.any()
    assert training.any()
    assert not (training & held_back).any()


def test_pictures_of_one_small_place_train_on_all_their_labels(tmp_path):
    size = Size(TILE_PX, TILE_PX)
    labels = _halves(tmp_path / "labels.tif", size)
    tiles = _tiles(
        *(
            _view(tmp_path / f"{day}.tif", brightness=day, size=size, labels=labels)
            for day in range(5)
        )
    )

    assert tiles.labelled
    assert not tiles.holds_back
    assert all(_known(tiles, day, size, held_back=False).all() for day in range(5))


def test_tiles_for_a_network_with_heights_have_a_channel_of_them(tmp_path):
    rising = np.repeat(np.linspace(0, 1, SIDE.cols, dtype=np.float32)[None], SIDE.rows, axis=0)
    write_raster(tmp_path / "dsm.tif", values=rising[None])
    with_heights, without = (_view(tmp_path / f"{i}.tif", brightness=51) for i in range(2))
    layer = open_heights(str(tmp_path / "dsm.tif"), with_heights.dataset.scene.grid)
    scene = with_heights.dataset.scene
    tiles = _tiles(
        replace(
            with_heights,
            dataset=SceneDataset(scene, bands=(1, 2, 3), heights=layer),
            height_radiometry=Radiometry((0.0,), (1.0,)),
        ),
        replace(without, height_radiometry=UNSCALED),
    )
    window = Window(10, 100, Size(TILE_PX, TILE_PX))

    batch = tiles.read([SceneWindow(0, window), SceneWindow(1, window)])

    assert torch.allclose(batch.images[:, :3], torch.tensor(0.2))
    assert torch.equal(batch.images[0, 3], torch.from_numpy(rising[10:74, 100:164]))
    assert (batch.images[1, 3] == NO_HEIGHT).all()
