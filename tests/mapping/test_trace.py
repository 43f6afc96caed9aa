import hypothesis.strategies as st
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.features import shapes

from earthgate_geo.mapping.trace import Regions, Tracer
from earthgate_geo.raster.classes import NODATA

Classes = NDArray[np.uint8]

SMALL = arrays(
    np.uint8,
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    elements=st.sampled_from([0, 1, 1, 2, NODATA]),
    fill=st.nothing(),
)


def speckle(*, side: int = 160, seed: int = 0) -> Classes:
    return np.random.default_rng(seed).choice([0, 1, 2, NODATA], (side, side)).astype(np.uint8)


def blobs(*, side: int = 400, seed: int = 0) -> Classes:
    """Large patches that cross many rows, with lakes and speckle in them."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:side, :side]
    waves = sum(
        np.sin(rows * rng.uniform(0.01, 0.1) + cols * rng.uniform(-0.1, 0.1)) for _ in range(6)
    )
    classes = np.digitize(waves, [-1.5, 0, 1.5]).astype(np.uint8)
    return np.where(rng.random((side, side)) < 0.02, np.uint8(3), classes)


def traced(classes: Classes, *, strip: int, measures: tuple[Classes, ...] = ()) -> Regions:
    tracer = Tracer(classes.shape[1], measures=len(measures))
    cuts = [slice(row, row + strip) for row in range(0, len(classes), strip)]
    parts = [tracer.add(classes[cut], *(plane[cut] for plane in measures)) for cut in cuts]
    parts.append(tracer.finish())
    return Regions(
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.sums for part in parts], axis=1),
        np.concatenate([part.polygons for part in parts]),
    )


def listed(regions: Regions) -> list[tuple[int, bytes]]:
    outlines = shapely.to_wkb(shapely.normalize(regions.polygons))
    return sorted(zip(regions.classes.tolist(), outlines, strict=True))


def polygonized(classes: Classes) -> list[tuple[int, bytes]]:
    """The same by GDAL, which needs the whole raster at once."""
    found = list(shapes(classes, mask=classes != NODATA, connectivity=4))
    outlines = [shapely.geometry.shape(outline) for outline, _ in found]
    values = [int(value) for _, value in found]
    return sorted(zip(values, shapely.to_wkb(shapely.normalize(outlines)), strict=True))


@settings(max_examples=40, deadline=None)
@given(SMALL, st.integers(1, 8))
def test_regions_are_those_that_gdal_finds_in_the_whole_raster(
    classes: Classes, strip: int
) -> None:
    regions = traced(classes, strip=strip)

    assert listed(regions) == polygonized(classes)


@settings(max_examples=40, deadline=None)
@given(SMALL, st.integers(1, 8))
def test_every_region_is_one_valid_polygon_of_its_pixels(classes: Classes, strip: int) -> None:
    regions = traced(classes, strip=strip)

    assert shapely.is_valid(regions.polygons).all()
    assert np.array_equal(shapely.area(regions.polygons), regions.pixels)


@pytest.mark.parametrize("classes", [speckle(), blobs()], ids=["speckle", "blobs"])
@pytest.mark.parametrize("strip", [1, 64, 512])
def test_strips_leave_no_trace(classes: Classes, strip: int) -> None:
    regions = traced(classes, strip=strip)

    assert listed(regions) == polygonized(classes)


def test_a_lake_in_an_island_in_a_lake_keeps_every_hole() -> None:
    rings = np.minimum.outer(np.r_[:5, 5:-1:-1], np.r_[:5, 5:-1:-1]) // 2 % 2
    classes = rings.astype(np.uint8)

    regions = traced(classes, strip=3)

    assert sorted(shapely.get_num_interior_rings(regions.polygons)) == [0, 1, 1]
    assert sorted(regions.pixels) == [9, 40, 72]


def test_a_region_that_touches_its_own_corner_stays_valid() -> None:
    # Two lakes touch in a corner, and the lower one touches the outside in another.
    classes = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, NODATA]], np.uint8)

    regions = traced(classes, strip=1)

    assert listed(regions) == polygonized(classes)
    assert shapely.is_valid(regions.polygons).all()


def test_a_region_comes_out_as_soon_as_no_row_can_touch_it() -> None:
    tracer = Tracer(3)

    first = tracer.add(np.array([[1, 0, 2], [0, 0, 2]], np.uint8))
    second = tracer.add(np.array([[2, 2, 2]], np.uint8))
    last = tracer.finish()

    assert first.classes.tolist() == [1]
    assert second.classes.tolist() == [0]
    assert last.classes.tolist() == [2]


@settings(max_examples=40, deadline=None)
@given(SMALL, st.integers(1, 8))
def test_measures_are_summed_over_the_pixels_of_a_region(classes: Classes, strip: int) -> None:
    ones = np.ones_like(classes)
    rows = np.broadcast_to(np.arange(len(classes), dtype=np.uint8)[:, None], classes.shape)

    regions = traced(classes, strip=strip, measures=(ones, rows))

    # The mean row of a region is the centre of its polygon, half a pixel further.
    centres = shapely.get_y(shapely.centroid(regions.polygons))
    assert np.array_equal(regions.sums[0], regions.pixels)
    assert np.allclose(regions.sums[1] / regions.pixels + 0.5, centres)


def test_a_raster_without_data_has_no_regions() -> None:
    regions = traced(np.full((5, 7), NODATA, np.uint8), strip=2)

    assert len(regions.polygons) == len(regions.classes) == 0
