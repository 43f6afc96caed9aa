import hypothesis.strategies as st
from hypothesis import given, settings

from earthgate_geo.mapping.layout import Layout, Piece
from earthgate_geo.raster.grid import Size, Tiling


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Up to some hundred cells, with tiles of any overlap."""
    axes = []
    for most in (3_000, 60_000):
        length, tile = draw(st.integers(1, most)), draw(st.integers(most // 30, most // 3))
        axes.append((length, tile, draw(st.integers(tile // 3, tile))))
    rasters, tiles, strides = zip(*axes, strict=True)
    return Layout(Tiling(Size(*rasters), Size(*tiles), Size(*strides)))


def ends(slices: list[slice]) -> list[int]:
    return [edge for each in slices for edge in (each.start, each.stop)]


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_cells_cover_the_raster_without_overlap(layout: Layout) -> None:
    raster = layout.tiling.raster
    rows = ends([layout.rows(band) for band in range(layout.bands)])
    cols = ends([layout.cols(range(unit, unit + 1)) for unit in range(layout.units)])

    for edges, length in ((rows, raster.rows), (cols, raster.cols)):
        assert (edges[0], edges[-1]) == (0, length)
        assert edges[1:-1:2] == edges[2:-1:2]
        assert edges == sorted(edges)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.data())
def test_pieces_hold_every_missing_cell_and_no_band_without_one(
    layout: Layout, data: st.DataObject
) -> None:
    missing = data.draw(st.sets(st.sampled_from(sorted(layout.cells()))))
    at_once = {
        "units_at_once": data.draw(st.integers(1, 9)),
        "bands_at_once": data.draw(st.none() | st.integers(1, 9)),
    }

    pieces = list(layout.pieces(missing, **at_once))

    held = [(band, unit) for piece in pieces for band in piece.bands for unit in piece.units]
    assert len(held) == len(set(held))
    assert missing <= set(held)
    for piece in pieces:
        assert len(piece.units) <= at_once["units_at_once"]
        assert len(piece.bands) <= (at_once["bands_at_once"] or layout.bands)
        for band in piece.bands:
            assert any((band, unit) in missing for unit in piece.units)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.data())
def test_the_tiles_of_a_piece_are_those_that_touch_it_in_the_order_of_all(
    layout: Layout, data: st.DataObject
) -> None:
    band = data.draw(st.integers(0, layout.bands - 1))
    unit = data.draw(st.integers(0, layout.units - 1))
    piece = Piece(range(band, layout.bands), range(unit, layout.units))
    rows, cols = layout.rows(band), layout.cols(piece.units)

    found = layout.tiles(piece)

    every = list(layout.tiling)
    assert found == [w for w in every if w.row_stop > rows.start and w.col_stop > cols.start]
