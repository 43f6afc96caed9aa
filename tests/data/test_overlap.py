import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS

from earthgate_geo.data.overlap import window_there
from earthgate_geo.raster.grid import Grid, Size, Window

UTM = CRS.from_epsg(32633)
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 5200000)
HERE = Grid(Size(100, 120), NORTH_UP, UTM)

# About the same ground: in the next zone and turned, in degrees, and from below.
THERE = {
    "turned": (CRS.from_epsg(32632), (956485, 5217333), Affine.rotation(30) @ Affine.scale(0.7)),
    "degrees": (CRS.from_epsg(4326), (14.9995, 46.955), Affine.scale(1e-5, -1e-5)),
    "south-up": (UTM, (499980, 5199930), Affine.scale(0.4)),
}


def _there(kind: str, size: Size) -> Grid:
    crs, corner, turn = THERE[kind]
    return Grid(size, Affine.translation(*corner) @ turn, crs)


def _pixels_there(window: Window, there: Grid) -> tuple[np.ndarray, np.ndarray]:
    rows, cols = np.mgrid[window.row : window.row_stop, window.col : window.col_stop] + 0.5
    way = Transformer.from_crs(HERE.crs.to_wkt(), there.crs.to_wkt(), always_xy=True)
    x, y = way.transform(*(HERE.transform @ (cols.ravel(), rows.ravel())))
    cols, rows = ~there.transform @ (x, y)
    inside = (rows >= 0) & (rows < there.size.rows) & (cols >= 0) & (cols < there.size.cols)
    return np.floor(rows[inside]), np.floor(cols[inside])


@given(
    kind=st.sampled_from(sorted(THERE)),
    row=st.integers(-10, 90),
    col=st.integers(-10, 110),
    size=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_every_pixel_of_the_window_that_the_other_grid_has_is_covered(kind, row, col, size):
    there = _there(kind, Size(300, 300))
    window = Window(row, col, Size(size, size))

    found = window_there(HERE, window, there)

    rows, cols = _pixels_there(window, there)
    if found is None:
        assert not rows.size
        return
    assert ((found.row <= rows) & (rows < found.row_stop)).all()
    assert ((found.col <= cols) & (cols < found.col_stop)).all()
    assert 0 <= found.row < found.row_stop <= 300
    assert 0 <= found.col < found.col_stop <= 300


def test_the_examples_do_meet():
    everything = Window(0, 0, HERE.size)

    for kind in THERE:
        assert _pixels_there(everything, _there(kind, Size(300, 300)))[0].size > 5000


@given(row=st.integers(0, 60), col=st.integers(0, 60), down=st.integers(-30, 30))
@settings(max_examples=20, deadline=None)
def test_on_a_moved_grid_the_window_is_the_same_ground_to_the_pixel(row, col, down):
    there = Grid(Size(200, 120), NORTH_UP @ Affine.translation(0, -down), UTM)
    window = Window(row, col, Size(40, 30))

    found = window_there(HERE, window, there)

    assert found == Window(row + down, col, Size(40, 30)).clipped(there.size)


@pytest.mark.parametrize(
    "there",
    [
        Grid(HERE.size, Affine(0.5, 0, 600000, 0, -0.5, 5200000), UTM),
        Grid(HERE.size, NORTH_UP, CRS.from_wkt('LOCAL_CS["plane",UNIT["metre",1]]')),
        Grid(HERE.size, Affine(1, 0, 0, 0, -1, 0), CRS.from_epsg(3857)),
    ],
    ids=["elsewhere", "nowhere", "across the Earth"],
)
def test_scenes_that_are_apart_share_no_window(there):
    assert window_there(HERE, Window(0, 0, HERE.size), there) is None
