"""Finished parts of a map on disk: what a killed run leaves to the next."""

import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
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
        folder: Where the files are, as ``open_strips`` makes it.
        layout: The cells.
        planes: Bands of all layers together.
    """

    def __init__(self, folder: Path, layout: Layout, *, planes: int) -> None:
        self.folder, self.layout, self.planes = folder, layout, planes

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
            self.keep(_name((band, unit)), zlib.compress(cell.data, 1))

    def read(self, band: int) -> Planes:
        """Return a finished band over the whole width, of shape (plane, row, col).

        Raises:
            StorageError: A cell is damaged; it is removed, and so mapped anew by the next run.
        """
        rows, cols = self.layout.rows(band), self.layout.tiling.raster.cols
        planes = np.empty((self.planes, rows.stop - rows.start, cols), np.uint8)
        for unit in range(self.layout.units):
            planes[..., self.layout.cols(range(unit, unit + 1))] = self._read((band, unit))
        return planes

    def raw_bytes(self, cells: Collection[Cell]) -> int:
        """Return what cells take on the disk at most."""
        pixels = 0
        for band, unit in cells:
            rows, cols = self.layout.rows(band), self.layout.cols(range(unit, unit + 1))
            pixels += (rows.stop - rows.start) * (cols.stop - cols.start)
        return pixels * self.planes

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # cells of another map may be beside it
            self.folder.parent.rmdir()

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

    def keep(self, name: str, content: bytes) -> None:
        """Write a file of the folder, whole or not at all.

        Raises:
            StorageError: The disk refuses.
        """
        part = self.folder / f"{name}.{uuid.uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a machine that loses power must not leave an empty cell
            part.replace(self.folder / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise storage_error(self.folder, self.raw_bytes(self.missing())) from error


def open_strips(
    root: Path, layout: Layout, *, planes: int, facts: Mapping[str, str], resume: bool
) -> StripFolder:
    """Go on with what an earlier run finished of a map, or start it anew.

    The cells lie in a folder that is named by what decides them: those of another map, which a
    program may hold open or a lost worker may still write, are never taken for theirs.

    Args:
        root: Folder of the cells of one output.
        layout: The cells.
        planes: Bands of all layers together.
        facts: What decides the map, by a name that the user can read.
        resume: Whether to go on; otherwise what is there is removed.

    Raises:
        OutputError: What is there is of another map.
        StorageError: The folder cannot be written.
    """
    about = json.dumps(dict(facts), sort_keys=True)
    folder = root / hashlib.sha256(about.encode()).hexdigest()[:16]
    strips = StripFolder(folder, layout, planes=planes)
    if not resume:
        shutil.rmtree(root, ignore_errors=True)
    for state in root.glob(f"*/{_STATE}"):
        if state.parent != folder:
            raise _of_another(json.loads(state.read_text(encoding="utf-8")), facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part"):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(folder, len(about)) from error
    strips.keep(_STATE, about.encode())
    return strips


def _of_another(before: Mapping[str, str], facts: Mapping[str, str]) -> OutputError:
    name = next(n for n in [*facts, *before] if before.get(n) != facts.get(n))
    return OutputError(
        found=f"an unfinished map here with {name} {before.get(name, 'none')}",
        expected=facts.get(name, "none"),
        fix="Pass --no-resume to discard it, or give another --dst",
    )


def _name(cell: Cell) -> str:
    return f"{cell[0]:06d}_{cell[1]:04d}{_ENDING}"
