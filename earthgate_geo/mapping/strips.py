"""Finished parts of a map on disk: what a killed run leaves to the next."""

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.errors import OutputError, StorageError
from earthgate_geo.mapping.layout import Cell, Layout
from earthgate_geo.raster.destination import storage_error

Planes = NDArray[np.uint8]

_ENDING = ".cell"
_STATE = "state.json"


class StripFolder:
    """The finished cells of one map, a file each, of all of its layers.

    A cell appears under its name when it is complete and on the disk. Several processes may
    write at once. Memory: one cell; ``read`` a band over the whole width.

    Args:
        folder: Where the files are; made by ``begin``.
        layout: The cells.
        planes: Bands of all layers together.
    """

    def __init__(self, folder: Path, layout: Layout, *, planes: int) -> None:
        self.folder, self.layout, self.planes = folder, layout, planes

    def begin(self, facts: Mapping[str, str], *, resume: bool) -> None:
        """Go on with what an earlier run finished, or start anew.

        Args:
            facts: What decides the map, by a name that the user can read.
            resume: Whether to go on; otherwise what is there is removed.

        Raises:
            OutputError: What is there is of another map.
            StorageError: The folder cannot be written.
        """
        state = self.folder / _STATE
        if not resume or not state.is_file():
            self.clear()
        else:
            before = json.loads(state.read_text(encoding="utf-8"))
            for name, value in facts.items():
                if before.get(name) != value:
                    raise OutputError(
                        found=f"an unfinished map here with {name} {before.get(name)}",
                        expected=value,
                        fix="Pass --no-resume to discard it, or give another --dst",
                    )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.part"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.folder, 0) from error
        self._keep(_STATE, json.dumps(dict(facts)).encode())

    def missing(self) -> set[Cell]:
        """Return the cells that are not finished."""
        names = {path.name for path in self.folder.glob(f"*{_ENDING}")}
        return {cell for cell in self.layout.cells() if _name(cell) not in names}

    def write(self, band: int, units: range, rows: Planes) -> None:
        """Keep one band of adjacent units, of shape (plane, row, col).

        Raises:
            StorageError: The disk refuses.
        """
        first = self.layout.cols(units).start
        for unit in units:
            cols = self.layout.cols(range(unit, unit + 1))
            cell = np.ascontiguousarray(rows[..., cols.start - first : cols.stop - first])
            # Level 1: three times as fast as level 2 on confidences, and hardly larger.
            self._keep(_name((band, unit)), zlib.compress(cell.data, 1))

    def read(self, band: int) -> Planes:
        """Return a finished band over the whole width, of shape (plane, row, col).

        Raises:
            StorageError: A cell is damaged; it is removed, and so mapped anew by the next run.
        """
        return np.concatenate([self._read((band, u)) for u in range(self.layout.units)], axis=2)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, cell: Cell) -> Planes:
        rows, cols = self.layout.rows(cell[0]), self.layout.cols(range(cell[1], cell[1] + 1))
        shape = (self.planes, rows.stop - rows.start, cols.stop - cols.start)
        path = self.folder / _name(cell)
        try:
            content = zlib.decompress(path.read_bytes())
            return np.frombuffer(content, np.uint8).reshape(shape)
        except (OSError, zlib.error, ValueError) as error:
            path.unlink(missing_ok=True)
            raise StorageError(
                found=f"{path} did not come back from the disk as it was written",
                expected="a finished part of the map",
                fix="Run the same command again: this part is mapped anew",
            ) from error

    def _keep(self, name: str, content: bytes) -> None:
        part = self.folder / f"{name}.{uuid.uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a machine that loses power must not leave an empty cell
            part.replace(self.folder / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            left = self.planes * self.layout.tiling.raster.rows * self.layout.tiling.raster.cols
            raise storage_error(self.folder, left) from error


def _name(cell: Cell) -> str:
    return f"{cell[0]:06d}_{cell[1]:04d}{_ENDING}"
