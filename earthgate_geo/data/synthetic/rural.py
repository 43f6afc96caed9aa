"""Outside towns: homesteads, fields, orchards, forest, waste land, water."""

import math

import numpy as np

from earthgate_geo.data.synthetic.materials import (
    BARE,
    VEGETATION,
    WATER,
    Color,
    mix,
    vary,
)
from earthgate_geo.data.synthetic.plan import (
    Box,
    Draft,
    Layer,
    Points,
    band,
    blob,
    scatter,
    soil_mix,
    split,
    widened,
)
from earthgate_geo.data.synthetic.things import (
    HOME,
    POOR,
    clutter,
    hedge,
    house,
    palette,
    plant,
    trees,
)

_COURTS: tuple[Color, ...] = ((0.30, 0.45, 0.60, 0.40), (0.62, 0.35, 0.28, 0.62))


def homesteads(draft: Draft, block: Box) -> None:
    """A village: houses apart in swept yards, with palms, plots and footpaths."""
    rng = draft.rng
    roofs = palette(rng, POOR if rng.random() < 0.65 else HOME)
    roofs["thatch"] = float(rng.random()) ** 3 * 4
    lush = float(rng.random())
    for place in scatter(rng, block, float(rng.uniform(14, 26))):
        x, y = float(place[0]), float(place[1])
        length = float(rng.uniform(5, 15))
        width = length * float(rng.uniform(0.5, 0.95))
        if rng.random() < 0.2 or not draft.is_free(x, y, 0.65 * length):
            continue
        ring = blob(rng, x, y, length * float(rng.uniform(0.8, 1.2)))
        soil_mix(draft, Layer.YARD, ring, float(rng.uniform(0.02, 0.5)))
        angle = (
            block.angle + float(rng.normal(0, 0.15)) + (math.pi / 2 if rng.random() < 0.4 else 0)
        )
        house(draft, Box(x, y, angle, length, width), roofs)
        if rng.random() < 0.4:
            shed = Box(x, y, angle, length, width).part(length * 0.2, width * 0.5 + 2.6, 3.2, 2.6)
            house(draft, shed, POOR)
    _paths(draft, block)
    for _ in range(int(rng.integers(0, 3))):
        u, v = rng.uniform(-0.4, 0.4, 2)
        plot = block.part(
            float(u) * block.length_m, float(v) * block.width_m, *rng.uniform(6, 18, 2).tolist()
        )
        if draft.is_free(plot.x, plot.y, 8):
            _field(draft, plot)
    clutter(draft, block, int(rng.integers(0, 8)))
    trees(
        draft,
        block,
        float(rng.uniform(4, 7)),
        share=0.1 + 0.5 * lush,
        size=float(rng.uniform(0.8, 1.4)),
    )
    trees(draft, block, 3.0, share=0.45 * lush, size=0.35)


def _court(draft: Draft, box: Box) -> None:
    rng = draft.rng
    tone = vary(rng, _COURTS[int(rng.integers(len(_COURTS)))], 0.03)
    draft.face(Layer.ROAD, box.ring(), tone, kind=BARE, stain=0.05, grain=0.03)
    for share, color in ((0.86, (0.85, 0.85, 0.83, 0.8)), (0.83, mix(tone, draft.land.grass, 0.3))):
        lines = box.part(0, 0, share * box.length_m, box.width_m - (1 - share) * box.length_m)
        draft.face(Layer.ROAD, lines.ring(), color, kind=BARE, stain=0.05, grain=0.03)


def _paths(draft: Draft, block: Box) -> None:
    rng = draft.rng
    for _ in range(int(rng.integers(1, 4))):
        ends = rng.uniform(-0.55, 0.55, (2, 2)) * (block.length_m, block.width_m)
        t = np.linspace(0, 1, 20)
        local = ends[0] + (ends[1] - ends[0]) * t[:, None]
        local[:, 1] += rng.uniform(-6, 6) * np.sin(np.pi * t) + rng.uniform(-2, 2) * np.sin(7 * t)
        line = np.array([block.at(float(u), float(v)) for u, v in local])
        tone = mix(draft.land.soil, (0.8, 0.73, 0.6, 0.84), 0.3)
        if draft.shore_m(line).min() < 0:
            continue
        draft.face(
            Layer.PATH, band(line, float(rng.uniform(0.4, 0.9))), tone, kind=BARE, stain=0.1,
            worn_kind=VEGETATION, wear=0.12,
        )  # fmt: skip
        draft.worn(draft.land.grass)


def fields(draft: Draft, block: Box) -> None:
    """Farmland with furrows and hedges."""
    rng = draft.rng
    for plot in split(rng, block, float(rng.uniform(20, 70))):
        _field(draft, plot.part(0, 0, plot.length_m - 1.5, plot.width_m - 1.5))
        if rng.random() < 0.35:
            hedge(draft, plot)
        if rng.random() < 0.12 and draft.is_free(plot.x, plot.y, 6):
            house(draft, plot.part(0, 0, *rng.uniform(6, 14, 2).tolist()), POOR)
        trees(draft, plot, 12.0, share=0.15, size=1.3)


def _field(draft: Draft, plot: Box) -> None:
    rng = draft.rng
    angle = plot.angle + (math.pi / 2 if rng.random() < 0.5 else 0) + float(rng.normal(0, 0.02))
    row_m = float(rng.uniform(0.6, 2.5))
    grass = float(
        rng.choice((rng.uniform(0.02, 0.2), rng.uniform(0.75, 0.99), rng.uniform(0.3, 0.7)))
    )
    soil_mix(
        draft, Layer.FIELD, plot.ring(), grass, stripe_x=math.cos(angle) / row_m,
        stripe_y=math.sin(angle) / row_m, stripe=float(rng.uniform(0.03, 0.25)),
        variety=float(rng.uniform(0, 0.12)),
    )  # fmt: skip


def orchard(draft: Draft, block: Box) -> None:
    """Trees in rows."""
    rng = draft.rng
    spacing = float(rng.uniform(4, 9))
    soil_mix(draft, Layer.FIELD, block.ring(), float(rng.uniform(0.05, 0.9)))
    points = scatter(rng, block, spacing, regular=float(rng.uniform(0.7, 1)))
    points = points[rng.random(len(points)) < 0.92]
    radius = spacing * float(rng.uniform(0.22, 0.48))
    palms = float(rng.random() < 0.3)
    plant(draft, points, radius * rng.uniform(0.75, 1.15, len(points)), palms=palms)


def forest(draft: Draft, block: Box) -> None:
    """Crown beside crown, with a clearing."""
    rng = draft.rng
    soil_mix(draft, Layer.FIELD, block.ring(), 0.85)
    spacing = float(rng.uniform(3.0, 6.5))
    points = scatter(rng, block, spacing)
    x, y = block.at(*(rng.uniform(-0.4, 0.4, 2) * (block.length_m, block.width_m)).tolist())
    keep = np.hypot(points[:, 0] - x, points[:, 1] - y) > rng.uniform(0, 20)
    keep &= rng.random(len(points)) < rng.uniform(0.6, 1)
    points = points[keep]
    plant(draft, points, spacing * rng.uniform(0.45, 0.95, len(points)), palms=draft.palm_share)


def open_land(draft: Draft, block: Box) -> None:
    """A park, a pitch, a quarry floor or waste land."""
    rng = draft.rng
    soil_mix(draft, Layer.FIELD, block.ring(), float(rng.uniform(0.02, 0.98)))
    if rng.random() < 0.3 and min(block.length_m, block.width_m) > 30:
        pitch = block.part(0, 0, block.length_m * 0.8, block.width_m * 0.75)
        if rng.random() < 0.3 and draft.is_site(pitch.ring()):
            _court(draft, block.part(0, 0, min(pitch.length_m, 38), min(pitch.width_m, 22)))
        else:
            soil_mix(draft, Layer.YARD, pitch.ring(), float(rng.choice((0.04, 0.85))))
    else:
        clutter(draft, block, int(rng.integers(2, 14)))
        trees(draft, block, float(rng.uniform(5, 12)), share=float(rng.uniform(0, 0.6)), size=1.3)
    _paths(draft, block)


def flood(draft: Draft) -> None:
    """Lay a river, a pond or the sea over the town, or none."""
    rng, size = draft.rng, draft.extent_m
    kind = rng.choice(["none", "pond", "river", "coast"], p=[0.66, 0.12, 0.13, 0.09])
    if kind == "pond":
        x, y = rng.uniform(0, size, 2)
        radius = float(rng.uniform(4, max(8, 0.25 * min(size, 120))))
        draft.waters = np.array([[x, y, radius * 1.1]])
        _water(draft, blob(rng, x, y, radius), blob(rng, x, y, radius * 1.25))
    elif kind == "river":
        turn, half = rng.uniform(0, np.pi), float(rng.uniform(1.5, max(4, 0.09 * min(size, 200))))
        line = _wander(draft, float(turn), size * rng.uniform(-0.4, 0.4))
        draft.waters = widened(line, half)
        draft.bridge_m = 3 * half + 8
        _water(draft, band(line, half), band(line, half * 1.3 + 1))
    elif kind == "coast":
        turn = float(rng.uniform(0, 2 * np.pi))
        offset = size * float(rng.uniform(0.1, 0.65))
        line = _wander(draft, turn, offset)
        away = np.array([-math.sin(turn), math.cos(turn)])
        far = size * 2.0
        rows = np.arange(0, far, 6.0)
        sea = (line[None, ::2] + rows[:, None, None] * away).reshape(-1, 2)
        draft.waters = widened(sea, 4.0)
        beach = float(rng.uniform(2, 14))
        _water(
            draft,
            np.concatenate([line, (line + far * away)[::-1]]),
            np.concatenate([line - beach * away, (line + far * away)[::-1]]),
        )


def _wander(draft: Draft, turn: float, offset: float) -> Points:
    rng, size = draft.rng, draft.extent_m
    along = np.arange(-size, size, 3.0)
    across = np.full_like(along, offset)
    for wavelength in (15.0, 40.0, 110.0):
        phase = rng.uniform(0, 2 * np.pi)
        across += 0.06 * wavelength * rng.random() * np.sin(2 * np.pi * along / wavelength + phase)
    c, s = math.cos(turn), math.sin(turn)
    return np.stack([along * c - across * s, along * s + across * c], 1) + size / 2


def _water(draft: Draft, ring: Points, bank: Points) -> None:
    rng, land = draft.rng, draft.land
    sand = mix(land.soil, (0.80, 0.74, 0.62, 0.85), float(rng.random()))
    draft.face(
        Layer.WATER, bank, sand, kind=BARE, worn_kind=VEGETATION, wear=float(rng.uniform(0, 0.6)),
        stain=0.1, grain=0.04,
    )  # fmt: skip
    draft.worn(land.grass)
    draft.face(
        Layer.WATER, ring, land.water, kind=WATER, worn_kind=WATER, wear=0.4, soft=2.5, stain=0.04,
        relief=float(rng.uniform(0, 0.08)), grain=0.03,
    )  # fmt: skip
    draft.worn(mix(land.water, (0.5, 0.55, 0.5, 0.1), float(rng.uniform(0, 0.4))))
