"""The geometry of a town: painted faces in metres, x to the east, y to the south."""

import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.data.synthetic.materials import BARE, VEGETATION, Color, Land, vary

Points = NDArray[np.float64]
"""(point, 2): x and y in metres."""


class Layer(IntEnum):
    """Painting order; ground layers get frayed edges, canopy layers leafy ones."""

    GROUND = 0
    FIELD = 1
    YARD = 2
    WATER = 3
    PATH = 4
    KERB = 5
    ROAD = 6
    MARKING = 7
    THING = 8
    ROOF = 9
    ROOF_DETAIL = 10
    CANOPY = 11


COLUMNS = (
    "kind", "worn_kind",
    "red", "green", "blue", "nir",
    "worn_red", "worn_green", "worn_blue", "worn_nir",
    "wear", "soft", "season",
    "height", "slope_x", "slope_y", "center_x", "center_y", "dome", "dome_radius",
    "stripe_x", "stripe_y", "stripe", "variety",
    "relief", "stain", "grain",
)  # fmt: skip
"""What is known of a face: classes, colours, wear (share) and how soft its edge is, height (m) with
slopes or a dome, stripes (cycles per metre, contrast, variety), bumps (m), stains, grain."""

COLUMN = {name: position for position, name in enumerate(COLUMNS)}
_COLOR, _WORN = COLUMN["red"], COLUMN["worn_red"]


@dataclass(frozen=True, kw_only=True)
class TownPlan:
    """A town drawn from a seed; sensors see it through ``render``."""

    seed: int
    """Seed of the plan and of every texture fixed to the ground."""

    extent_m: float
    """Side of the square town; x and y run from 0 to it."""

    style: str
    """Settlement style."""

    rings: tuple[Points, ...]
    """Outline of every face, in painting order. Face 0 is the ground everywhere."""

    layers: NDArray[np.int8]
    """Layer of every face."""

    faces: NDArray[np.float32]
    """(face, column): what ``COLUMNS`` names."""


@dataclass(kw_only=True)
class Draft:
    """A plan being drawn."""

    rng: np.random.Generator
    extent_m: float
    land: Land
    palm_share: float
    """Share of palms among the trees."""
    rings: list[Points] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    houses: Points = field(default_factory=lambda: np.empty((0, 6)))
    """Centre, cosine, sine, half length and half width of every house."""
    waters: Points = field(default_factory=lambda: np.empty((0, 3)))
    """x and y of points along the middle of all waters, and the distance to the shore."""
    bridge_m: float = 0.0
    """Longest bridge."""
    roads: Points = field(default_factory=lambda: np.empty((0, 3)))
    """x and y of points along the middle of all roads, and their half width."""

    def face(self, layer: Layer, ring: Points, color: Color, **facts: float) -> None:
        """Add one face; ``facts`` are columns. The worn colour is set by ``worn``."""
        row = [0.0] * len(COLUMNS)
        row[_COLOR : _COLOR + 4] = color
        row[_WORN : _WORN + 4] = color
        row[COLUMN["soft"]] = 0.4
        for name, value in facts.items():
            row[COLUMN[name]] = value
        if "worn_kind" not in facts:
            row[1] = row[0]
        self.rings.append(ring)
        self.layers.append(layer)
        self.rows.append(row)

    def worn(self, color: Color) -> None:
        """Set the worn colour of the last face."""
        self.rows[-1][_WORN : _WORN + 4] = color

    def shore_m(self, points: Points) -> NDArray[np.float64]:
        """Return the distance of ``points`` to the next water, negative inside."""
        return _gap_m(points, self.waters)

    def clear_m(self, points: Points) -> NDArray[np.float64]:
        """Return the distance of ``points`` to the next house, negative inside."""
        if not len(self.houses):
            return np.full(len(points), 1e6)
        x, y, c, s, a, b = self.houses.T
        dx, dy = points[:, :1] - x, points[:, 1:] - y
        gaps: NDArray[np.float64] = np.maximum(
            np.abs(dx * c + dy * s) - a, np.abs(dy * c - dx * s) - b
        ).min(1)
        return gaps

    def is_site(self, ring: Points) -> bool:
        """Tell whether ``ring`` keeps off water and roads."""
        middle = ring.mean(0, keepdims=True)
        reach = float(np.hypot(*(ring - middle).T).max())
        gap = min(self.shore_m(middle)[0], _gap_m(middle, self.roads)[0])
        if not 0.5 < gap < reach + 0.5:  # settled without looking at the outline
            return bool(gap > 0.5)
        points = np.vstack([ring, (ring + np.roll(ring, 1, 0)) / 2])
        return bool(min(self.shore_m(points).min(), _gap_m(points, self.roads).min()) > 0.5)

    def is_free(self, x: float, y: float, radius_m: float) -> bool:
        """Tell whether a thing of ``radius_m`` at (x, y) is in the extent, dry and off houses."""
        if not (
            -radius_m < x < self.extent_m + radius_m and -radius_m < y < self.extent_m + radius_m
        ):
            return False
        point = np.array([[x, y]])
        return bool(self.shore_m(point)[0] > radius_m and self.clear_m(point)[0] > radius_m)

    def finish(self, *, seed: int, style: str) -> TownPlan:
        """Return the plan, faces sorted by layer and crowns by height."""
        layers = np.array(self.layers, dtype=np.int8)
        faces = np.array(self.rows, dtype=np.float32).reshape(-1, len(COLUMNS))
        top = np.where(layers == Layer.CANOPY, faces[:, COLUMN["dome"]], 0.0)
        order = np.lexsort((np.arange(len(layers)), top, layers))
        return TownPlan(
            seed=seed,
            extent_m=self.extent_m,
            style=style,
            rings=tuple(self.rings[i] for i in order),
            layers=layers[order],
            faces=faces[order],
        )


def widened(line: Points, half_width: float) -> Points:
    """Return ``line`` with its half width as the third column."""
    return np.column_stack([line, np.full(len(line), half_width)])


def _gap_m(points: Points, disks: Points) -> NDArray[np.float64]:
    if not len(disks):
        return np.full(len(points), 1e6)
    across, down = points[:, :1] - disks[:, 0], points[:, 1:] - disks[:, 1]
    gaps: NDArray[np.float64] = (np.sqrt(across**2 + down**2) - disks[:, 2]).min(1)
    return gaps


@dataclass(frozen=True, slots=True)
class Box:
    """An oriented rectangle."""

    x: float
    y: float
    angle: float
    """Direction of the length axis, radians."""
    length_m: float
    width_m: float

    @property
    def axes(self) -> tuple[float, float]:
        """Cosine and sine of the angle."""
        return math.cos(self.angle), math.sin(self.angle)

    def at(self, along: float, across: float) -> tuple[float, float]:
        """Return the point at ``along`` and ``across`` metres from the centre."""
        c, s = self.axes
        return self.x + along * c - across * s, self.y + along * s + across * c

    def ring(self, corners: list[tuple[float, float]] | None = None) -> Points:
        """Return the outline, or the polygon of ``corners`` in box metres."""
        a, b = self.length_m / 2, self.width_m / 2
        local = np.array(corners or [(-a, -b), (a, -b), (a, b), (-a, b)])
        c, s = self.axes
        turned: Points = local @ np.array([[c, s], [-s, c]]) + (self.x, self.y)
        return turned

    def part(self, along: float, across: float, length_m: float, width_m: float) -> "Box":
        """Return a box of this orientation about a point of this one."""
        return Box(*self.at(along, across), self.angle, length_m, width_m)


def blob(
    rng: np.random.Generator, x: float, y: float, radius_m: float, *, wobble: float = 1.0
) -> Points:
    """Return a disk, uneven by ``wobble``."""
    turn = np.linspace(0.0, 2 * np.pi, 17)[:-1]
    phases = rng.uniform(0, 2 * np.pi, 3)
    waves = np.sin(np.outer(turn, [2, 3, 5]) + phases) @ np.array([0.18, 0.10, 0.06])
    reach = radius_m * (1 + wobble * waves)
    ring: Points = reach[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1) + (x, y)
    return ring


def normals_of(line: Points) -> Points:
    """Return the unit vector to the right of ``line`` at each of its points."""
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    return np.stack([-along[:, 1], along[:, 0]], 1)


def band(line: Points, half_width: NDArray[np.float64] | float) -> Points:
    """Return the strip of ``half_width`` metres to both sides of ``line``."""
    side = normals_of(line) * np.reshape(half_width, (-1, 1))
    return np.concatenate([line + side, (line - side)[::-1]])


def scatter(
    rng: np.random.Generator, box: Box, spacing_m: float, *, regular: float = 0.0
) -> Points:
    """Return points about ``spacing_m`` apart in ``box``; ``regular`` 1 makes rows."""
    nx = max(1, round(box.length_m / spacing_m))
    ny = max(1, round(box.width_m / spacing_m))
    u = (np.arange(nx) + 0.5) / nx - 0.5
    v = (np.arange(ny) + 0.5) / ny - 0.5
    grid = np.stack(np.meshgrid(u * box.length_m, v * box.width_m), -1).reshape(-1, 2)
    grid += rng.uniform(-0.5, 0.5, grid.shape) * spacing_m * (1 - regular)
    c, s = box.axes
    points: Points = grid @ np.array([[c, s], [-s, c]]) + (box.x, box.y)
    return points


def soil_mix(draft: Draft, layer: Layer, ring: Points, grass_share: float, **facts: float) -> None:
    """Paint ground where grass covers ``grass_share`` and soil shows in between."""
    rng, land = draft.rng, draft.land
    common = {"stain": 0.17, "grain": 0.06, "relief": 0.09, "season": float(rng.uniform(0.4, 1.0))}
    draft.face(
        layer,
        ring,
        vary(rng, land.grass, 0.03),
        **(common | {"kind": VEGETATION, "worn_kind": BARE, "wear": 1 - grass_share} | facts),
    )
    draft.worn(vary(rng, land.soil, 0.03))


def split(rng: np.random.Generator, box: Box, largest_m: float) -> list[Box]:
    """Cut ``box`` in two, again and again, until no side is longer than about ``largest_m``."""
    todo, done = [box], []
    while todo:
        part = todo.pop()
        if max(part.length_m, part.width_m) < largest_m * rng.uniform(0.8, 1.3):
            done.append(part)
            continue
        share = float(rng.uniform(0.38, 0.62))
        if part.length_m >= part.width_m:
            first = share * part.length_m
            todo.append(part.part((first - part.length_m) / 2, 0, first, part.width_m))
            todo.append(part.part(first / 2, 0, part.length_m - first, part.width_m))
        else:
            first = share * part.width_m
            todo.append(part.part(0, (first - part.width_m) / 2, part.length_m, first))
            todo.append(part.part(0, first / 2, part.length_m, part.width_m - first))
    return done
