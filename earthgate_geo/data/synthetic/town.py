"""Towns from a seed: roads, blocks, and what stands in each kind of block."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from earthgate_geo.data.synthetic.materials import (
    ROAD,
    draw_land,
    mix,
    vary,
)
from earthgate_geo.data.synthetic.plan import (
    Box,
    Draft,
    Layer,
    Points,
    TownPlan,
    band,
    normals_of,
    soil_mix,
    widened,
)
from earthgate_geo.data.synthetic.rural import fields, flood, forest, homesteads, open_land, orchard
from earthgate_geo.data.synthetic.things import car, draw
from earthgate_geo.data.synthetic.urban import crowded, industry, modern, suburb
from earthgate_geo.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Style:
    """A settlement style."""

    blocks: dict[str, float]
    """Kinds of block and their weights."""

    length_m: tuple[float, float]
    """Smallest and largest block length."""

    depth_m: tuple[float, float]
    """Smallest and largest block depth."""

    paved: float
    """Share of roads with asphalt."""

    road_m: tuple[float, float]
    """Narrowest and widest road."""

    bend: float = 0.3
    """How much roads curve."""

    grass: tuple[float, float] = (0.3, 0.9)
    """Share of grass on open ground."""


STYLES = {
    "suburb": Style(
        blocks={"suburb": 8, "open": 1, "modern": 0.4},
        length_m=(70, 150),
        depth_m=(45, 75),
        paved=0.9,
        road_m=(5, 8),
        bend=0.35,
        grass=(0.6, 0.97),
    ),
    "informal": Style(
        blocks={"crowded": 8, "homesteads": 1, "open": 0.6},
        length_m=(40, 90),
        depth_m=(25, 50),
        paved=0.15,
        road_m=(2.5, 5),
        bend=0.6,
        grass=(0.05, 0.4),
    ),
    "village": Style(
        blocks={"homesteads": 6, "orchard": 1, "fields": 1.5, "open": 1, "forest": 0.6},
        length_m=(60, 130),
        depth_m=(50, 100),
        paved=0.1,
        road_m=(2.6, 5),
        bend=0.8,
        grass=(0.25, 0.85),
    ),
    "town": Style(
        blocks={"suburb": 5, "homesteads": 6, "crowded": 4, "modern": 1.5, "open": 2, "orchard": 1},
        length_m=(50, 110),
        depth_m=(40, 75),
        paved=0.45,
        road_m=(3.5, 7),
        bend=0.5,
        grass=(0.2, 0.8),
    ),
    "city": Style(
        blocks={"modern": 6, "suburb": 1, "open": 1.2, "industry": 0.6},
        length_m=(70, 130),
        depth_m=(60, 100),
        paved=1.0,
        road_m=(7, 12),
        bend=0.15,
        grass=(0.4, 0.9),
    ),
    "industry": Style(
        blocks={"industry": 6, "open": 1.2, "modern": 0.5},
        length_m=(90, 180),
        depth_m=(70, 120),
        paved=0.85,
        road_m=(6, 10),
        bend=0.15,
        grass=(0.3, 0.8),
    ),
    "country": Style(
        blocks={"fields": 5, "orchard": 1.2, "forest": 1.5, "open": 1, "homesteads": 0.8},
        length_m=(90, 200),
        depth_m=(80, 160),
        paved=0.25,
        road_m=(2.6, 5),
        bend=0.7,
        grass=(0.3, 0.95),
    ),
    "forest": Style(
        blocks={"forest": 6, "open": 1, "homesteads": 0.5},
        length_m=(90, 200),
        depth_m=(80, 160),
        paved=0.1,
        road_m=(2.6, 4),
        bend=0.8,
        grass=(0.5, 0.95),
    ),
}
"""Every settlement style ``draw_town`` knows."""

_SHARES = {
    "suburb": 0.15, "informal": 0.17, "village": 0.26, "town": 0.18,
    "city": 0.06, "industry": 0.05, "country": 0.08, "forest": 0.05,
}  # fmt: skip

_BUILDERS: dict[str, Callable[[Draft, Box], None]] = {
    "suburb": suburb,
    "crowded": crowded,
    "homesteads": homesteads,
    "modern": modern,
    "industry": industry,
    "fields": fields,
    "orchard": orchard,
    "forest": forest,
    "open": open_land,
}


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """From straight block coordinates (u, v) to the bent, turned ground (x, y)."""

    center_m: float
    angle: float
    amplitude: float
    waves: tuple[float, float, float, float]

    def map(self, uv: Points) -> Points:
        ku, pu, kv, pv = self.waves
        u = uv[:, 0] + self.amplitude / ku * np.sin(ku * uv[:, 1] + pu)
        v = uv[:, 1] + self.amplitude / kv * np.sin(kv * uv[:, 0] + pv)
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.stack([u * c - v * s, u * s + v * c], 1) + self.center_m

    def box(self, u: tuple[float, float], v: tuple[float, float]) -> Box:
        middle = np.array([[(u[0] + u[1]) / 2, (v[0] + v[1]) / 2]])
        start, stop = self.map(middle + np.array([(-1.0, 0.0), (1.0, 0.0)]))
        x, y = self.map(middle)[0]
        angle = math.atan2(stop[1] - start[1], stop[0] - start[0])
        return Box(float(x), float(y), angle, u[1] - u[0], v[1] - v[0])


def draw_town(seed: int, extent_m: float, *, style: str | None = None) -> TownPlan:
    """Return the town of ``seed``.

    Args:
        seed: Same seed, extent and style: same town.
        extent_m: Side of the square town.
        style: One of ``STYLES``; drawn when None.

    Raises:
        InputError: There is no such style.
    """
    if style is not None and style not in STYLES:
        raise InputError(found=f"style {style!r}", expected=f"one of {', '.join(STYLES)}")
    rng = np.random.default_rng(seed)
    drawn = draw(rng, _SHARES)
    style = style or drawn
    manner = STYLES[style]
    draft = Draft(
        rng=rng, extent_m=extent_m, land=draw_land(rng), palm_share=float(rng.random() ** 2)
    )
    whole = np.array([(-99, -99), (1, -99), (1, 1), (-99, 1)]) * 1e-3 - 1e5  # face 0 is everywhere
    soil_mix(draft, Layer.GROUND, whole, float(rng.uniform(*manner.grass)))
    frame = _Frame(
        center_m=extent_m / 2,
        angle=float(rng.uniform(0, np.pi)),
        amplitude=manner.bend * float(rng.uniform(0, 0.5)),
        waves=(*rng.uniform((0.012, 0), (0.03, 6.3)), *rng.uniform((0.012, 0), (0.03, 6.3))),
    )
    flood(draft)
    _layout(draft, manner, frame)
    return draft.finish(seed=seed, style=style)


def _layout(draft: Draft, style: Style, frame: _Frame) -> None:
    rng, reach = draft.rng, draft.extent_m * 0.72 + 20
    columns = _lines(rng, reach, style.length_m)
    rows = _lines(rng, reach, style.depth_m)
    across = rng.uniform(*style.road_m, len(columns))
    along = rng.uniform(*style.road_m, len(rows))
    steps = np.arange(-reach, reach, 4.0)
    lines = [np.stack([np.full_like(steps, at), steps], 1) for at in columns]
    lines += [np.stack([steps, np.full_like(steps, at)], 1) for at in rows]
    for line, width in zip(lines, [*across, *along], strict=True):
        paved = rng.random() < style.paved
        for part in _dry_parts(draft, frame.map(line)):
            draft.roads = np.vstack([draft.roads, widened(part, width / 2)])
            _road(draft, part, float(width), paved=paved)
    for i, j in np.ndindex(len(columns) - 1, len(rows) - 1):
        verge = float(rng.uniform(0.5, 2.5))
        west, east = columns[i] + across[i] / 2 + verge, columns[i + 1] - across[i + 1] / 2 - verge
        north, south = rows[j] + along[j] / 2 + verge, rows[j + 1] - along[j + 1] / 2 - verge
        box = frame.box((float(west), float(east)), (float(north), float(south)))
        if _near(draft, box):
            _BUILDERS[draw(rng, style.blocks)](draft, box)


def _lines(rng: np.random.Generator, reach: float, spacing: tuple[float, float]) -> list[float]:
    at, lines = -reach - float(rng.uniform(0, spacing[1])), []
    while at < reach + spacing[1]:
        lines.append(at)
        at += float(rng.uniform(*spacing))
    return lines


def _near(draft: Draft, box: Box) -> bool:
    reach = math.hypot(box.length_m, box.width_m) / 2
    inside = all(-reach < at < draft.extent_m + reach for at in (box.x, box.y))
    return inside and min(box.length_m, box.width_m) > 8


def _dry_parts(draft: Draft, line: Points) -> list[Points]:
    """Return the stretches of ``line`` in the extent; narrow water is bridged, wide is not."""
    line = line[((line > -15) & (line < draft.extent_m + 15)).all(1)]
    if not len(line):
        return []
    wet = draft.shore_m(line) < 2
    ends = [0, *(np.flatnonzero(np.diff(wet)) + 1).tolist(), len(line)]
    for start, stop in pairwise(ends):
        if stop - start < draft.bridge_m / 4:
            wet[start:stop] = False
    cuts = (np.flatnonzero(np.diff(wet)) + 1).tolist()
    parts = zip([0, *cuts], [*cuts, len(line)], strict=True)
    return [line[start:stop] for start, stop in parts if stop - start > 2 and not wet[start]]


def _road(draft: Draft, line: Points, width: float, *, paved: bool) -> None:
    rng, land = draft.rng, draft.land
    if not paved:
        half = width / 2 * (1 + 0.12 * np.sin(0.4 * np.arange(len(line)) + rng.uniform(0, 6)))
        tone = vary(rng, mix(land.soil, (0.75, 0.68, 0.56, 0.80), 0.25), 0.03)
        draft.face(
            Layer.PATH, band(line, half), tone, kind=ROAD, stain=0.10, grain=0.05, relief=0.05,
            wear=float(rng.uniform(0, 0.25)), worn_kind=ROAD, soft=0.8,
        )  # fmt: skip
        draft.worn(mix(tone, (0.4, 0.34, 0.28, 0.48), 0.4))
        for side in (-0.9, 0.9):
            track = line + side * normals_of(line)
            draft.face(
                Layer.PATH, band(track, 0.3), mix(tone, (1, 1, 1, 1), 0.12), kind=ROAD, stain=0.1
            )
        return
    tone = vary(rng, land.asphalt, 0.02)
    if rng.random() < 0.5:
        edge = mix(tone, (0.72, 0.70, 0.66, 0.66), 0.7)
        draft.face(Layer.KERB, band(line, width / 2 + 1.2), edge, kind=ROAD, stain=0.06, grain=0.03)
    draft.face(
        Layer.ROAD, band(line, width / 2), tone, kind=ROAD, stain=0.06, grain=0.03, worn_kind=ROAD,
        wear=float(rng.uniform(0, 0.3)), soft=1.2,
    )  # fmt: skip
    draft.worn(mix(tone, land.soil, float(rng.uniform(0, 0.35))))
    _traffic(draft, line, width)


def _traffic(draft: Draft, line: Points, width: float) -> None:
    rng = draft.rng
    normals = normals_of(line)
    dashes = width > 6 and rng.random() < 0.6
    for n in range(len(line) - 1):
        heading = math.atan2(*(line[n + 1] - line[n])[::-1])
        if dashes and n % 2 == 0:
            dash = Box(float(line[n, 0]), float(line[n, 1]), heading, 2.6, 0.16)
            draft.face(Layer.MARKING, dash.ring(), (0.85, 0.84, 0.8, 0.8), kind=ROAD, stain=0.2)
        if rng.random() < 0.06:
            x, y = line[n] + normals[n] * width * 0.27 * rng.choice((-1, 1))
            car(draft, Box(float(x), float(y), heading, 4.4, 1.8))
