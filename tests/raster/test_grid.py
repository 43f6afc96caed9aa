import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod
from rasterio.crs import CRS
from rasters import NORTH_UP, ROTATED, SOUTH_UP, UTM

from earthgate_geo.errors import InputError
from earthgate_geo.raster.grid import Grid, Size, Tiling, Window, blocks

lengths = st.integers(1, 70)


@given(lengths, lengths, st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_tiling_covers_every_pixel_with_tiles_inside_where_they_fit(rows, cols, high, wide, data):
    stride = Size(data.draw(st.integers(1, high)), data.draw(st.integers(1, wide)))
    tiling = Tiling(Size(rows, cols), Size(high, wide), stride)
    hits = np.zeros((rows, cols), int)

    tiles = list(tiling)

    for tile in tiles:
        hits[tile.row : tile.row_stop, tile.col : tile.col_stop] += 1
        assert tile.row_stop <= max(rows, high)
        assert tile.col_stop <= max(cols, wide)
    assert hits.min() >= 1
    assert len(tiles) == len(tiling)
    assert [(t.row, t.col) for t in tiles] == sorted({(t.row, t.col) for t in tiles})


def test_the_last_row_and_column_of_tiles_move_inward():
    tiling = Tiling(Size(10, 7), Size(4, 4), Size(3, 3))

    assert tiling.row_starts == [0, 3, 6]
    assert tiling.col_starts == [0, 3]


@given(rows=st.integers(1, 40), cols=st.integers(1, 40), side=st.integers(1, 17))
def test_blocks_hold_every_pixel_once(rows, cols, side):
    counts = np.zeros((rows, cols), int)

    for window in blocks(Size(rows, cols), side):
        counts[window.row : window.row_stop, window.col : window.col_stop] += 1

    assert (counts == 1).all()


def test_a_stride_wider_than_the_tile_is_refused():
    with pytest.raises(InputError) as refusal:
        Tiling(Size(10, 10), Size(4, 4), Size(5, 4))

    assert str(refusal.value) == "a stride of 5 x 4 px; expected at most the tile's 4 x 4 px."


def test_a_size_has_pixels():
    with pytest.raises(InputError) as refusal:
        Size(0, 3)

    assert str(refusal.value) == "a size of 0 x 3 px; expected 1 or more."


def test_a_window_is_clipped_to_the_raster():
    window = Window(-2, 5, Size(10, 10))

    assert window.clipped(Size(6, 8)) == Window(0, 5, Size(6, 3))


@pytest.mark.parametrize(("row", "col"), [(-3, 0), (10, 0), (0, -3), (0, 10)])
def test_a_window_outside_the_raster_is_refused(row, col):
    with pytest.raises(InputError) as refusal:
        Window(row, col, Size(3, 3)).clipped(Size(10, 10))

    assert str(refusal.value) == (
        f"a window at row {row}, column {col}; expected one that meets the raster of 10 x 10 px."
    )


@pytest.mark.parametrize(
    ("transform", "row_m", "col_m"),
    [(NORTH_UP, 0.5, 0.5), (SOUTH_UP, 0.5, 0.5), (ROTATED, 0.4, 0.5)],
)
def test_the_gsd_of_a_projected_grid_is_its_pixel_size(transform, row_m, col_m):
    gsd = Grid(Size(60, 80), transform, CRS.from_string(UTM)).gsd()

    assert gsd.row_m == pytest.approx(row_m, rel=1e-3)
    assert gsd.col_m == pytest.approx(col_m, rel=1e-3)
    assert gsd.mean_m == pytest.approx(math.sqrt(row_m * col_m), rel=1e-3)


@pytest.mark.parametrize("lon", [8.5, 179.9999])
def test_the_gsd_of_a_geographic_grid_is_taken_on_the_ground(lon):
    degree = 1e-4
    centre = (lon + 50 * degree, 60 - 50 * degree)

    gsd = Grid(Size(100, 100), Affine(degree, 0, lon, 0, -degree, 60), CRS.from_epsg(4326)).gsd()

    across = Geod(ellps="WGS84").inv(*centre, centre[0] + degree, centre[1])[2]
    assert gsd.col_m == pytest.approx(across, rel=1e-6)
    assert gsd.row_m == pytest.approx(11.14, rel=1e-3)


def test_web_mercator_is_measured_on_the_ground_not_in_its_units():
    y_at_60_degrees = 8399737.9

    gsd = Grid(Size(2, 2), Affine(1, 0, 0, 0, -1, y_at_60_degrees), CRS.from_epsg(3857)).gsd()

    assert gsd.mean_m == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize(("unit", "factor"), [('"metre",1', 1.0), ('"foot",0.3048', 0.3048)])
def test_a_crs_without_a_way_to_the_earth_counts_in_its_own_unit(unit, factor):
    local = CRS.from_wkt(f'LOCAL_CS["site",UNIT[{unit}],AXIS["x",EAST],AXIS["y",NORTH]]')

    gsd = Grid(Size(2, 2), Affine(2, 0, 0, 0, -3, 0), local).gsd()

    assert (gsd.row_m, gsd.col_m) == pytest.approx((3 * factor, 2 * factor))


def test_a_scene_centred_off_the_disk_of_the_earth_counts_in_its_own_unit():
    geostationary = CRS.from_string("+proj=geos +h=35785831 +lon_0=-75 +sweep=y")

    gsd = Grid(Size(2, 2), Affine(2000, 0, 9e6, 0, -2000, 9e6), geostationary).gsd()

    assert (gsd.row_m, gsd.col_m) == (2000, 2000)
