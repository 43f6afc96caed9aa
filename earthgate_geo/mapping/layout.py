"""How a map is cut into cells that are kept on disk, and into pieces that are mapped at once."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

from earthgate_geo.raster.grid import Tiling, Window

UNIT_PX = 6144
"""Width of a cell, about: what a panel is made of."""

Cell = tuple[int, int]
"""A band and a unit."""


@dataclass(frozen=True)
class Piece:
    """What is mapped in one go: a rectangle of cells."""

    bands: range
    """Bands of rows, from top to bottom."""

    units: range
    """Units of columns, from left to right."""


class Layout:
    """The cells of a map: bands of rows by units of columns, by the tiling alone.

    Band k ends where the tiles of row k + 1 begin: it is finished once the tiles of row k are
    added. A unit is as many columns of tiles as make about ``UNIT_PX``.

    Args:
        tiling: The tiles of the scene.
    """

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        every = max(1, round(UNIT_PX / tiling.stride.cols))
        self._rows = _slices(tiling.row_starts, tiling.raster.rows)
        self._cols = _slices(tiling.col_starts[::every], tiling.raster.cols)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self._rows)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self._cols)

    def rows(self, band: int) -> slice:
        """Return the rows of a band."""
        return self._rows[band]

    def cols(self, units: range) -> slice:
        """Return the columns of adjacent units."""
        return slice(self._cols[units[0]].start, self._cols[units[-1]].stop)

    def cells(self) -> set[Cell]:
        """Return all cells."""
        return {(band, unit) for band in range(self.bands) for unit in range(self.units)}

    def tiles(self, piece: Piece) -> list[Window]:
        """Return all tiles that touch a piece, top row first."""
        cols, tile = self.cols(piece.units), self.tiling.tile
        first = self._rows[piece.bands[0]].start
        rows, starts = self.tiling.row_starts[: piece.bands.stop], self.tiling.col_starts
        rows = [row for row in rows if row + tile.rows > first]
        starts = [col for col in starts if col < cols.stop and col + tile.cols > cols.start]
        return [Window(row, col, tile) for row in rows for col in starts]

    def pieces(
        self,
        missing: Collection[Cell],
        *,
        units_at_once: int,
        bands_at_once: int | None = None,
    ) -> Iterator[Piece]:
        """Yield pieces that cover the missing cells, panel by panel from left to right.

        Args:
            missing: Cells to map; others may be mapped along with them.
            units_at_once: Most units of a panel.
            bands_at_once: Most bands of a piece, where a panel is cut into several.
        """
        panels = math.ceil(self.units / units_at_once)
        edges = [self.units * panel // panels for panel in range(panels + 1)]
        for units in (range(first, stop) for first, stop in pairwise(edges)):
            bands = sorted({band for band, unit in missing if unit in units})
            while bands:
                count = 1
                while count < min(len(bands), bands_at_once or len(bands)) and (
                    bands[count] == bands[0] + count
                ):
                    count += 1
                yield Piece(range(bands[0], bands[0] + count), units)
                bands = bands[count:]


def _slices(starts: list[int], stop: int) -> list[slice]:
    return [slice(*edges) for edges in pairwise([*starts, stop])]
