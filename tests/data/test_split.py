from pathlib import Path

import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from earthgate_geo.data.pairs import Pair
from earthgate_geo.data.patches import Patch
from earthgate_geo.data.split import off_ground, split_by_ground
from earthgate_geo.raster.grid import Grid, Size, Window

UTM = CRS.from_epsg(32633)


def patches_of(name, *, left=500_000, top=5_200_000, gsd_m=1.0, side=4, crs=UTM, px=100):
    """Return the patches of a square scene and its grid for each."""
    size = Size(side * px, side * px)
    grid = Grid(size, Affine(gsd_m, 0, left, 0, -gsd_m, top), crs) if crs else None
    spots = [(row, col) for row in range(side) for col in range(side)]
    windows = [Window(row * px, col * px, Size(px, px)) for row, col in spots]
    patches = [Patch(Pair(Path(f"{name}.tif")), window) for window in windows]
    return patches, [grid] * len(patches)


def joined(*scenes):
    return [p for patches, _ in scenes for p in patches], [g for _, grids in scenes for g in grids]


def box_of(patch, grid):
    x, y = grid.transform @ (patch.window.col, patch.window.row)
    x_stop, y_stop = grid.transform @ (patch.window.col_stop, patch.window.row_stop)
    return min(x, x_stop), min(y, y_stop), max(x, x_stop), max(y, y_stop)


def common_m2(one, other):
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def test_a_share_of_the_patches_of_one_scene_is_held_out_and_none_is_lost():
    split = split_by_ground(*patches_of("a"), share=0.25, seed=0)

    assert (len(split.trained), len(split.held_out), split.left_out) == (12, 4, 0)
    assert not set(split.trained) & set(split.held_out)


@settings(max_examples=25, deadline=None)
@given(
    shift_m=st.integers(-250, 250),
    gsd_m=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_no_ground_trains_and_is_held_out(shift_m, gsd_m, seed):
    patches, grids = joined(patches_of("a"), patches_of("b", left=500_000 + shift_m, gsd_m=gsd_m))

    split = split_by_ground(patches, grids, share=0.2, seed=seed)

    boxes = {patch: box_of(patch, grid) for patch, grid in zip(patches, grids, strict=True)}
    held_out = [boxes[patch] for patch in split.held_out]
    for patch in split.trained:
        for other in held_out:
            smaller_m2 = min(common_m2(boxes[patch], boxes[patch]), common_m2(other, other))
            assert common_m2(boxes[patch], other) <= 0.011 * smaller_m2
    assert split.trained
    assert len(split.trained) + len(split.held_out) + split.left_out == len(patches)


def test_scenes_of_one_place_share_their_ground_whatever_their_crs():
    there = CRS.from_proj4("+proj=utm +zone=33 +datum=WGS84 +units=m +no_defs")
    patches, grids = joined(patches_of("may"), patches_of("june", crs=there))

    split = split_by_ground(patches, grids, share=0.25, seed=3)

    windows = {
        name: {p.window for p in split.held_out if p.pair.image.stem == name}
        for name in ("may", "june")
    }
    assert windows["may"] == windows["june"] != set()
    assert split.left_out == 0


def test_a_patch_on_both_sides_neither_trains_nor_counts():
    patches, grids = joined(patches_of("a", side=2), patches_of("b", left=500_050, side=1))

    split = split_by_ground(patches, grids, share=0.2, seed=1)

    assert len(split.held_out) == 1
    assert split.left_out >= 1


def test_tiles_of_several_zooms_are_held_out_together():
    patches, grids = joined(
        patches_of("coarse", side=8, px=50, gsd_m=4.0),
        patches_of("middle", side=16, px=50, gsd_m=2.0),
        patches_of("fine", side=32, px=50, gsd_m=1.0),
    )

    split = split_by_ground(patches, grids, share=0.2, seed=0)

    assert len(split.held_out) >= 0.2 * len(patches)
    assert split.left_out <= 0.02 * len(patches)


def test_a_satellites_patch_does_not_take_all_drones_with_it():
    drones = [patches_of(str(n), left=500_000 + 500 * n, side=2) for n in range(4)]
    patches, grids = joined(*drones, patches_of("satellite", side=1, gsd_m=50.0))

    split = split_by_ground(patches, grids, share=0.25, seed=0)

    assert (len(split.trained), len(split.held_out), split.left_out) == (12, 4, 1)


def test_images_without_a_place_are_held_out_whole():
    patches, grids = joined(*(patches_of(str(n), crs=None, side=2) for n in range(5)))

    split = split_by_ground(patches, grids, share=0.2, seed=0)

    held_out = {patch.pair.image for patch in split.held_out}
    assert len(split.held_out) == 4
    assert len(held_out) == 1
    assert not held_out & {patch.pair.image for patch in split.trained}


@pytest.mark.parametrize("crs", [UTM, None])
def test_where_all_share_their_ground_nothing_is_held_out(crs):
    patches, grids = patches_of("a", side=1, crs=crs)

    split = split_by_ground(patches * 3, grids * 3, share=0.5, seed=0)

    assert (len(split.trained), split.held_out, split.left_out) == (3, (), 0)


def test_the_seed_chooses_the_places():
    places = [
        {
            patch.window
            for patch in split_by_ground(*patches_of("a", side=6), share=0.2, seed=seed).held_out
        }
        for seed in (0, 0, 1)
    ]

    assert places[0] == places[1] != places[2]


def test_images_over_the_antimeridian_are_held_out_whole():
    fields = patches_of("field", side=3)
    over = patches_of("over", left=179.95, top=10, gsd_m=0.001, crs=CRS.from_epsg(4326), side=4)
    there = [index for index, patch in enumerate(over[0]) if not patch.window.col]
    column = [over[0][index] for index in there], [over[1][index] for index in there]
    patches, grids = joined(fields, column)

    splits = [split_by_ground(patches, grids, share=0.3, seed=seed) for seed in range(10)]

    held_out = [[p for p in split.held_out if p.pair.image.stem == "over"] for split in splits]
    assert {len(found) for found in held_out} == {0, 4}
    assert all(split.trained and not split.left_out for split in splits)


def test_off_held_out_ground_lies_what_shares_none_of_it_in_any_crs():
    lonlat = CRS.from_epsg(4326)
    held_out, held_out_grids = patches_of("held", side=1)
    patches, grids = joined(
        patches_of("beside", left=500_100, side=1),
        patches_of("half", left=500_050, side=1),
        patches_of("inside", left=15, top=46.9535, gsd_m=3e-6, crs=lonlat, side=2),
        patches_of("nowhere", crs=None, side=1),
    )

    kept = off_ground(patches, grids, held_out=held_out, held_out_grids=held_out_grids)

    assert [patch.pair.image.stem for patch in kept] == ["beside", "nowhere"]


def test_an_image_without_a_place_is_the_same_ground_under_any_path():
    held_out, _ = patches_of("folder/../held", side=1, crs=None)
    patches, grids = joined(
        *(patches_of(name, crs=None, side=2) for name in ("held", "folder/held"))
    )

    kept = off_ground(patches, grids, held_out=held_out, held_out_grids=[None])

    assert {patch.pair.image for patch in kept} == {Path("folder/held.tif")}
