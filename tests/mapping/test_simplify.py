import hypothesis.strategies as st
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from earthgate_geo.mapping import simplify as module
from earthgate_geo.mapping.simplify import Simplifier
from earthgate_geo.mapping.trace import Regions, Tracer
from earthgate_geo.raster.classes import NODATA
from earthgate_geo.raster.grid import Gsd, Size, Window

Classes = NDArray[np.uint8]

SMALL = arrays(
    np.uint8,
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    elements=st.sampled_from([0, 1, 1, 2, NODATA]),
    fill=st.nothing(),
)
SQUARE = Gsd(1, 1)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_PX", 8)
    monkeypatch.setattr(module, "MOST_EDGES", 30)


def slope(*, side: int = 64, rise: float = 0.3) -> Classes:
    rows, cols = np.mgrid[:side, :side]
    return (rows > 20 + rise * cols).astype(np.uint8)


def outlines(
    classes: Classes, tolerance_m: float, *, gsd: Gsd = SQUARE, strip: int = module.BLOCK_PX
) -> Regions:
    """Trace with simplified outlines; strips do not reach over the rows of blocks."""
    rows, cols = classes.shape
    simplifier = Simplifier(
        lambda w: classes[w.row : w.row_stop, w.col : w.col_stop], gsd, tolerance_m
    )
    tracer, parts = Tracer(cols), []
    for row in range(0, rows, module.BLOCK_PX):
        stop = min(row + module.BLOCK_PX, rows)
        kept = simplifier.kept(Window(row, 0, Size(stop - row, cols)))
        for first in range(row, stop, strip):
            last = min(first + strip, stop)
            parts.append(tracer.add(classes[first:last], kept=kept[first - row : last - row]))
    parts.append(tracer.finish())
    return Regions(
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.sums for part in parts], axis=1),
        np.concatenate([part.polygons for part in parts]),
    )


@settings(max_examples=100, deadline=None)
@given(SMALL, st.sampled_from([0.8, 1.5, 4.0, 30.0]))
def test_polygons_are_valid_and_neighbours_keep_one_line(
    classes: Classes, tolerance_m: float
) -> None:
    regions = outlines(classes, tolerance_m)

    assert shapely.is_valid(regions.polygons).all()
    assert shapely.coverage_is_valid(regions.polygons)


@settings(max_examples=50, deadline=None)
@given(SMALL, st.sampled_from([0.8, 4.0]))
def test_no_gap_opens_and_nothing_overlaps(classes: Classes, tolerance_m: float) -> None:
    full = np.where(classes == NODATA, 3, classes).astype(np.uint8)

    regions = outlines(full, tolerance_m)

    assert shapely.area(regions.polygons).sum() == pytest.approx(full.size)
    assert shapely.union_all(regions.polygons).area == pytest.approx(full.size)


@settings(max_examples=50, deadline=None)
@given(SMALL, st.integers(1, 7))
def test_strips_leave_no_trace(classes: Classes, strip: int) -> None:
    whole = outlines(classes, 1.5)

    cut = outlines(classes, 1.5, strip=strip)

    assert sorted(shapely.to_wkb(shapely.normalize(whole.polygons))) == sorted(
        shapely.to_wkb(shapely.normalize(cut.polygons))
    )


@settings(max_examples=50, deadline=None)
@given(SMALL)
def test_every_region_stays_with_its_pixels_counted(classes: Classes) -> None:
    exact, simple = outlines(classes, 1e-6), outlines(classes, 30.0)

    assert np.array_equal(exact.classes, simple.classes)
    assert np.array_equal(exact.pixels, simple.pixels)
    assert (shapely.area(simple.polygons) > 0).all()


@settings(max_examples=50, deadline=None)
@given(SMALL)
def test_a_small_tolerance_changes_no_area(classes: Classes) -> None:
    regions = outlines(classes, 0.1)

    assert np.array_equal(shapely.area(regions.polygons), regions.pixels)


def test_a_staircase_becomes_a_line_through_every_block() -> None:
    upper, lower = outlines(slope(), 1.5).polygons

    assert shapely.coverage_is_valid([upper, lower])
    # A point at each line of blocks that it crosses, and little else.
    assert shapely.get_num_coordinates(lower) < 30
    exact = shapely.LineString([(0, 20.5), (64, 20.5 + 0.3 * 64)])
    edge = shapely.intersection(upper, lower)
    assert shapely.hausdorff_distance(shapely.line_merge(edge), exact) < 1.5


def test_the_tolerance_is_in_metres_on_the_ground() -> None:
    bump = np.zeros((8, 8), np.uint8)
    bump[4:] = 1
    bump[3, 2:4] = 1

    fine = outlines(bump, 1.5, gsd=Gsd(0.5, 2))
    coarse = outlines(bump, 1.5, gsd=Gsd(2, 4))

    assert shapely.area(fine.polygons).tolist() == [32, 32]
    assert shapely.area(coarse.polygons).tolist() == [30, 34]
