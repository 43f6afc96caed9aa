"""What the position of the tiles does to a map.

Labels where the grid of tiles begins elsewhere, and where the scene is a part of another; and the
jumps in a map along the lines on which tiles begin and end, against other lines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mapping_scenes import TILE_PX, map_into, read_values, task_of, write_crop
from numpy.typing import NDArray
from pages import table

from earthgate_geo.mapping.runtime import Runtime
from earthgate_geo.raster.classes import FULL_SCALE, NODATA, ClassTable
from earthgate_geo.raster.grid import Tiling
from earthgate_geo.raster.read import Radiometry

SHIFTS_PX = (1, 7, 16, 96, 192)
BORDER_PX = TILE_PX // 2
"""From a border of the scene on, where a network sees less than it wants, labels are compared."""

PATCH_PX, NEAR_PX = 16, 2
DRAWS = 1000

Jumps = NDArray[np.float64]


@dataclass(frozen=True)
class Mapped:
    """A map of a scene or of a part of it."""

    labels: NDArray[np.uint8]
    """(row, col)."""

    probabilities: NDArray[np.uint8]
    """(class, row, col), 0..254."""

    tiling: Tiling
    """The tiles it was made of."""

    radiometry: Radiometry
    """With which the scene was scaled."""


@dataclass(frozen=True)
class Maps:
    """Makes maps."""

    folder: Path
    """Where they are written, one over the other."""

    classes: ClassTable
    """Of the network."""

    runtime: Runtime
    """The network."""

    def of(
        self, scene: Path, *, radiometry: Radiometry | None = None, overlap: bool = True
    ) -> Mapped:
        """Map a scene."""
        opened = task_of(scene, self.classes, radiometry=radiometry, overlap=overlap)
        with opened as task:
            map_into(self.folder, task, self.runtime, probs=True)
            labels, probs = (read_values(self.folder / f"{n}.tif") for n in ("map", "probs"))
            return Mapped(labels[0], probs, task.tiling, task.radiometry)

    def of_part(
        self, scene: Path, rows: slice, cols: slice, *, radiometry: Radiometry | None = None
    ) -> Mapped:
        """Map a part of a scene as a scene of its own."""
        part = write_crop(self.folder / "part.tif", scene, rows, cols)
        return self.of(part, radiometry=radiometry)


def tables(maps: Maps, scenes: Sequence[Path]) -> tuple[str, str]:
    """Return the table of agreement, and that of the jumps at tile lines."""
    agreement, energy = [], []
    for scene in scenes:
        whole = maps.of(scene)
        moved = list(moved_maps(maps, scene, whole))
        agreement += [(scene.stem, *row) for row in agreement_rows(maps, scene, whole, moved)]
        energy.append((scene.stem, "blended", *energy_row([whole, *(m for _, m in moved)])))
        apart = maps.of(scene, radiometry=whole.radiometry, overlap=False)
        energy.append((scene.stem, "side by side", *energy_row([apart])))
    inner = f"labels alike, {BORDER_PX} px from borders"
    first = table(("scene", "what differs", inner, "labels alike, all", "mean abs(dp)"), agreement)
    head = ("scene", "tiles", "lines", "jump at tile lines", "jump elsewhere", "ratio")
    others = ("of as many other lines, 95 %", "ratio to other patch lines")
    return first, table((*head, *others), energy)


def moved_maps(maps: Maps, scene: Path, whole: Mapped) -> Iterator[tuple[int, Mapped]]:
    """Yield maps without the first rows and columns, so that tiles lie elsewhere."""
    for shift in SHIFTS_PX:
        rows, cols = (slice(shift, side) for side in whole.labels.shape)
        yield shift, maps.of_part(scene, rows, cols, radiometry=whole.radiometry)


def agreement_rows(
    maps: Maps, scene: Path, whole: Mapped, moved: Sequence[tuple[int, Mapped]]
) -> Iterator[tuple[str, ...]]:
    """Compare maps of parts of a scene with the map of all of it."""
    for shift, part in moved:
        yield (f"tiles begin {shift} px later", *alike(whole, part, shift, shift))
    rows, cols = (slice(side // 4, side - side // 4) for side in whole.labels.shape)
    for radiometry, what in ((whole.radiometry, "the whole's scaling"), (None, "its own scaling")):
        part = maps.of_part(scene, rows, cols, radiometry=radiometry)
        yield (f"only its middle half, {what}", *alike(whole, part, rows.start, cols.start))


def alike(whole: Mapped, part: Mapped, row: int, col: int) -> tuple[str, ...]:
    """Return the share of labels alike inside and overall, and the mean change of a probability.

    Of pixels with data.
    """
    rows, cols = part.labels.shape
    here = (slice(row, row + rows), slice(col, col + cols))
    valid = whole.labels[here] != NODATA
    same = whole.labels[here] == part.labels
    inside = slice(BORDER_PX, -BORDER_PX)
    inner = same[inside, inside][valid[inside, inside]]
    change = np.abs(whole.probabilities[:, *here].astype(np.int16) - part.probabilities)[:, valid]
    told = f"{inner.mean():.4%}" if inner.size else "no pixel"
    return told, f"{same[valid].mean():.4%}", f"{change.mean() / 254:.5f}"


def energy_row(mapped: Sequence[Mapped]) -> tuple[str, ...]:
    """Compare the jumps at the lines where tiles begin or end with those at other lines."""
    parts = [jumps(one, axis) for one in mapped for axis in (0, 1)]
    at_tiles, elsewhere, patches = (np.concatenate(values) for values in zip(*parts, strict=True))
    generator = np.random.default_rng(0)
    count = min(len(at_tiles), len(elsewhere))
    means = [generator.choice(elsewhere, count, replace=False).mean() for _ in range(DRAWS)]
    usual = elsewhere.mean()
    low, high = np.percentile(means, (2.5, 97.5)) / usual
    return (
        str(len(at_tiles)),
        f"{at_tiles.mean():.5f}",
        f"{usual:.5f}",
        f"{at_tiles.mean() / usual:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{at_tiles.mean() / patches.mean():.3f}",
    )


def jumps(mapped: Mapped, axis: int) -> tuple[Jumps, Jumps, Jumps]:
    """Return the jumps across tile lines, all other lines, and other lines between patches.

    A jump is the mean total variation distance, 0..1, between the probabilities of the pixels on
    either side of a line, where both have data.
    """
    valid = np.moveaxis(mapped.labels != NODATA, axis, 0)
    values = np.moveaxis(mapped.probabilities, axis + 1, 1).astype(np.int16)
    both = valid[1:] & valid[:-1]
    apart = np.abs(np.diff(values, axis=1)).sum(axis=0) / (2 * FULL_SCALE)
    usable = both.any(axis=1)
    jump = (apart * both).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
    lines = np.arange(1, len(valid))
    starts = np.array((mapped.tiling.row_starts, mapped.tiling.col_starts)[axis])
    tile = (mapped.tiling.tile.rows, mapped.tiling.tile.cols)[axis]
    edges = np.concatenate([starts, starts + tile])
    distance = np.abs(lines[:, None] - edges).min(axis=1)
    other = usable & (distance > NEAR_PX)
    return jump[usable & (distance == 0)], jump[other], jump[other & (lines % PATCH_PX == 0)]
