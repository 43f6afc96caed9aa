"""Single things of a town: roofs, walls, cars, crowns, and what could be taken for a house."""

import math

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.data.synthetic.materials import (
    BARE,
    BUILDING,
    ROAD,
    ROOFS,
    TARPS,
    THINGS,
    VEGETATION,
    Color,
    Roof,
    mix,
    pick,
    vary,
)
from earthgate_geo.data.synthetic.plan import (
    COLUMN,
    COLUMNS,
    Box,
    Draft,
    Layer,
    Points,
    blob,
    scatter,
    split,
)

POOR = {"tin": 5, "aged": 3, "rust": 3, "white": 1, "maroon": 1, "blue": 0.3, "thatch": 0.5}
HOME = {"tin": 2, "tile": 3, "orange": 1.5, "maroon": 2, "slate": 1.5, "green": 0.6, "blue": 0.4}
"""Roofs of shacks and of houses, by weight."""

_WALL: Color = (0.66, 0.63, 0.57, 0.6)

_RoofFace = tuple[list[tuple[float, float]], float, float, float]
"""Corners in box metres, fall per metre along and across, height at the centre above the eaves."""


def build_roof(draft: Draft, box: Box, roof: Roof, shape: str, eaves_m: float) -> None:
    """Paint a building: ``shape`` is gable, hip, flat or shed."""
    rng = draft.rng
    color = vary(rng, roof.color, roof.jitter)
    wear = roof.wear * float(rng.random()) ** 2
    faces = _faces(box, shape, float(rng.uniform(0.25, 0.6)))
    c, s = box.axes
    for corners, fall_along, fall_across, rise in faces:
        slope_x = fall_across * s - fall_along * c
        slope_y = -fall_along * s - fall_across * c
        seam = (c, s) if abs(fall_across) >= abs(fall_along) else (-s, c)  # down the slope
        draft.face(
            Layer.ROOF,
            box.ring(corners),
            vary(rng, color, 0.012),
            kind=BUILDING,
            wear=wear,
            soft=0.9,
            height=eaves_m + rise - slope_x * box.x - slope_y * box.y,
            slope_x=slope_x,
            slope_y=slope_y,
            stripe_x=seam[0] / roof.sheet_m,
            stripe_y=seam[1] / roof.sheet_m,
            stripe=0.05,
            variety=roof.variety * float(rng.random()),
            stain=0.05,
            grain=0.02,
        )
        draft.worn(roof.worn)
    site = (box.x, box.y, c, s, box.length_m / 2, box.width_m / 2)
    draft.houses = np.vstack([draft.houses, site])
    if len(faces) > 1:
        inset = min(box.length_m, box.width_m) if shape == "hip" else 0.0
        ridge = box.part(0, 0, max(0.3, box.length_m - inset), 0.28)
        tone = mix(color, (0.85, 0.85, 0.85, 0.8), float(rng.uniform(0, 0.5)))
        draft.face(
            Layer.ROOF, ridge.ring(), tone, kind=BUILDING, height=eaves_m + faces[0][3] + 0.05
        )


def _faces(box: Box, shape: str, pitch: float) -> list[_RoofFace]:
    a, b = box.length_m / 2, box.width_m / 2
    if shape in ("flat", "shed"):
        fall = 0.3 * pitch if shape == "shed" else 0.0
        return [([(-a, -b), (a, -b), (a, b), (-a, b)], 0.0, fall, fall * b)]
    inset = min(b, a) if shape == "hip" else 0.0
    left, right = (-a + inset, 0.0), (a - inset, 0.0)
    rise = pitch * b
    faces: list[_RoofFace] = [
        ([(-a, -b), (a, -b), right, left], 0.0, -pitch, rise),
        ([(a, b), (-a, b), left, right], 0.0, pitch, rise),
    ]
    if inset:
        end = pitch * b / inset
        faces.append(([(a, -b), (a, b), right], end, 0.0, end * a))
        faces.append(([(-a, b), (-a, -b), left], -end, 0.0, end * a))
    return faces


def draw(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """Return one name, by weight."""
    shares = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(shares), p=shares / shares.sum()))]


def palette(rng: np.random.Generator, roofs: dict[str, float]) -> dict[str, float]:
    """Return ``roofs`` as one neighbourhood mixes them, now and then nearly of one kind."""
    power = float(rng.choice((1.0, 2.0, 6.0)))
    return {name: weight * float(rng.random()) ** power + 1e-3 for name, weight in roofs.items()}


def house(draft: Draft, box: Box, roofs: dict[str, float]) -> None:
    """Build one house in ``box``, now and then with a wing; none in water or on a road."""
    rng = draft.rng
    if not draft.is_site(box.ring()):
        return
    name = draw(rng, roofs)
    if name == "thatch" and rng.random() < 0.6:
        _hut(draft, box)
        return
    shape = ("gable", "gable", "hip", "hip" if name in ("tile", "orange") else "shed")[
        int(rng.integers(4))
    ]
    if box.width_m > box.length_m:
        box = Box(box.x, box.y, box.angle + math.pi / 2, box.width_m, box.length_m)
    eaves = float(rng.uniform(2.3, 3.4)) + (2.7 if rng.random() < 0.12 else 0.0)
    roof = ROOFS[name]
    build_roof(draft, box, roof, shape, eaves)
    if box.length_m > 8 and rng.random() < 0.35:
        wing = box.part(
            box.length_m * 0.25 * rng.choice((-1, 1)),
            box.width_m * 0.5,
            box.length_m * 0.42,
            box.width_m * 0.8,
        )
        build_roof(draft, wing, roof, "hip" if shape == "hip" else "shed", eaves - 0.2)
    if roof.variety > 0.09:
        _patches(draft, box, eaves)


def _hut(draft: Draft, box: Box) -> None:
    radius = 0.5 * min(box.length_m, box.width_m, 7.0)
    roof = ROOFS["thatch"]
    draft.face(
        Layer.ROOF, blob(draft.rng, box.x, box.y, radius, wobble=0.3),
        vary(draft.rng, roof.color, 0.05), kind=BUILDING, height=2.2, center_x=box.x,
        center_y=box.y, dome=0.55 * radius, dome_radius=1.3 * radius, relief=0.08, stain=0.15,
        grain=0.05,
    )  # fmt: skip
    draft.houses = np.vstack([draft.houses, (box.x, box.y, 1.0, 0.0, radius, radius)])


def _patches(draft: Draft, box: Box, eaves_m: float) -> None:
    rng = draft.rng
    for _ in range(int(rng.integers(0, 4))):
        name = ("rust", "tin", "aged", "white")[int(rng.integers(4))]
        patch = box.part(
            float(rng.uniform(-0.35, 0.35)) * box.length_m,
            float(rng.choice((-0.25, 0.25))) * box.width_m,
            float(rng.uniform(0.8, 0.3 * box.length_m + 0.9)),
            box.width_m * float(rng.uniform(0.2, 0.46)),
        )
        draft.face(
            Layer.ROOF_DETAIL, patch.ring(), vary(rng, ROOFS[name].color, 0.05), kind=BUILDING,
            height=eaves_m + 0.3, stain=0.08, grain=0.02,
            stripe_x=box.axes[0] / 0.9, stripe_y=box.axes[1] / 0.9, stripe=0.05, variety=0.08,
        )  # fmt: skip


def car(draft: Draft, box: Box) -> None:
    """Put a car on what lies below; it belongs to the road."""
    color = pick(draft.rng, THINGS)
    draft.face(Layer.THING, box.ring(), color, kind=ROAD, height=1.1)
    draft.face(
        Layer.THING,
        box.part(-0.2, 0, 2.3, 1.5).ring(),
        (0.16, 0.18, 0.2, 0.14),
        kind=ROAD,
        height=1.3,
    )
    draft.face(Layer.THING, box.part(-0.25, 0, 1.5, 1.35).ring(), color, kind=ROAD, height=1.5)


def wall(draft: Draft, box: Box, *, height_m: float) -> None:
    """Run a wall around ``box``, with gaps."""
    rng = draft.rng
    color = vary(rng, mix(_WALL, draft.land.soil, float(rng.random())), 0.04)
    a, b = box.length_m / 2, box.width_m / 2
    for along, across, length, turned in ((0, -b, a, 0), (0, b, a, 0), (-a, 0, b, 1), (a, 0, b, 1)):
        if rng.random() < 0.2:
            continue
        x, y = box.at(along, across)
        side = Box(
            x, y, box.angle + turned * math.pi / 2, 2 * length, float(rng.uniform(0.2, 0.35))
        )
        if draft.is_site(side.ring()):
            draft.face(Layer.THING, side.ring(), color, kind=BARE, height=height_m)


def plant(draft: Draft, points: Points, radii_m: NDArray[np.float64], *, palms: float) -> None:
    """Paint crowns at ``points``; a share ``palms`` of them are palms."""
    rng = draft.rng
    inside = (points > -4).all(1) & (points < draft.extent_m + 4).all(1)
    points, radii_m = points[inside], radii_m[inside]
    if not len(points):
        return
    keep = draft.clear_m(points) > 0.6 * radii_m * rng.random(len(points))
    keep &= draft.shore_m(points) > 0.5
    points, radii_m = points[keep], radii_m[keep]
    is_palm = (radii_m > 1.2) & (rng.random(len(points)) < palms)
    _crowns(draft, points[~is_palm], radii_m[~is_palm], palm=0)
    _crowns(draft, points[is_palm], radii_m[is_palm] * 1.25, palm=1)


def _crowns(draft: Draft, points: Points, radii_m: NDArray[np.float64], *, palm: int) -> None:
    rng, n, corners = draft.rng, len(points), 24 if palm else 16
    turn = np.linspace(0, 2 * np.pi, corners + 1)[:-1] + rng.uniform(0, 6.3, (n, 1))
    if palm:
        reach = np.where(np.arange(corners) % 2, 1.0, 0.36) * rng.uniform(0.75, 1.1, (n, corners))
    else:
        reach = 1 + 0.16 * np.sin(2 * turn + rng.uniform(0, 6.3, (n, 1)))
        reach += 0.12 * np.sin(3 * turn + rng.uniform(0, 6.3, (n, 1)))
    reach *= radii_m[:, None]
    rings = np.stack([reach * np.cos(turn), reach * np.sin(turn)], 2) + points[:, None, :]
    tall = radii_m * rng.uniform(0.7, 1.3, n)
    trunk = rng.uniform(1.5, 5, n) if palm else np.maximum(0, tall * rng.uniform(0.3, 1.2, n) - 0.6)
    leaves = np.array(draft.land.leaves)[rng.integers(len(draft.land.leaves), size=n)]
    leaves *= np.exp(rng.normal(0, 0.10, (n, 1)) + rng.normal(0, 0.04, (n, 4)))
    facts: dict[str, float | NDArray[np.float64]] = {
        "kind": VEGETATION,
        "soft": 1.0,
        "season": rng.uniform(0.2, 1.0, n),
        "height": trunk,
        "center_x": points[:, 0],
        "center_y": points[:, 1],
        "dome": tall * (0.3 if palm else 1.0),
        "dome_radius": radii_m * 1.25,
        "relief": np.where(radii_m < 1, 0.18, 0.5),
        "stain": 0.22,
        "grain": 0.05,
    }
    rows = np.zeros((n, len(COLUMNS)))
    for name, value in facts.items():
        rows[:, COLUMN[name]] = value
    rows[:, COLUMN["red"] : COLUMN["nir"] + 1] = leaves
    draft.rings.extend(rings)
    draft.layers.extend([Layer.CANOPY] * n)
    draft.rows.extend(rows.tolist())


def trees(draft: Draft, box: Box, spacing_m: float, *, share: float, size: float = 1.0) -> None:
    """Plant a ``share`` of places about ``spacing_m`` apart; ``size`` scales crowns of 1 to 3 m."""
    points = scatter(draft.rng, box, spacing_m)
    points = points[draft.rng.random(len(points)) < share]
    radii = draft.rng.uniform(0.8, 3.2, len(points)) * size
    plant(draft, points, radii, palms=draft.palm_share)


def hedge(draft: Draft, box: Box) -> None:
    """Grow a hedge along two sides of ``box``."""
    a, b = box.length_m / 2, box.width_m / 2
    corners = np.array([box.at(*c) for c in ((-a, -b), (a, -b), (a, b), (-a, b), (-a, -b))])
    first = int(draft.rng.integers(4))
    sides = [np.linspace(corners[i], corners[i + 1], 25) for i in range(4)]
    line: Points = np.concatenate([sides[first], sides[(first + 1) % 4]])
    plant(draft, line, draft.rng.uniform(0.5, 1.1, len(line)), palms=0)


def clutter(draft: Draft, box: Box, count: int) -> None:
    """Lay ``count`` things in ``box`` that could be taken for houses."""
    rng = draft.rng
    for _ in range(count):
        u, v = rng.uniform(-0.5, 0.5, 2)
        x, y = box.at(float(u) * box.length_m, float(v) * box.width_m)
        size = float(rng.uniform(0.8, 4))
        if draft.is_free(x, y, size):
            turn = box.angle + float(rng.normal(0, 0.4))
            spot = Box(x, y, turn, size * float(rng.uniform(1, 1.8)), size)
            _CLUTTER[int(rng.integers(len(_CLUTTER)))](draft, spot)


def _tarp(draft: Draft, spot: Box) -> None:
    color = pick(draft.rng, TARPS)
    draft.face(Layer.PATH, spot.ring(), color, kind=BARE, stain=0.1, relief=0.1)


def _rock(draft: Draft, spot: Box) -> None:
    size, color = spot.width_m, vary(draft.rng, (0.55, 0.53, 0.5, 0.5), 0.06)
    draft.face(
        Layer.THING, blob(draft.rng, spot.x, spot.y, size / 2), color, kind=BARE, stain=0.2,
        center_x=spot.x, center_y=spot.y, dome=size * 0.3, dome_radius=size * 0.6, relief=0.3,
    )  # fmt: skip


def _bare_square(draft: Draft, spot: Box) -> None:
    color = mix(draft.land.soil, (0.4, 0.3, 0.22, 0.4), float(draft.rng.random()))
    draft.face(Layer.YARD, spot.ring(), color, kind=BARE, stain=0.1, grain=0.06)


def _container(draft: Draft, spot: Box) -> None:
    crate, (c, s) = spot.part(0, 0, 6.1, 2.4), spot.axes
    draft.face(
        Layer.THING, crate.ring(), pick(draft.rng, THINGS), kind=BARE, height=1.9,
        stripe_x=c * 3, stripe_y=s * 3, stripe=0.12,
    )  # fmt: skip


def _ruin(draft: Draft, spot: Box) -> None:
    for room in split(draft.rng, spot.part(0, 0, 2 * spot.length_m, 2 * spot.width_m), 4.0):
        wall(draft, room, height_m=1.4)


def _litter(draft: Draft, spot: Box) -> None:
    heap = blob(draft.rng, spot.x, spot.y, spot.width_m / 2)
    draft.face(Layer.PATH, heap, (0.7, 0.69, 0.65, 0.6), kind=BARE, stain=0.5, grain=0.2)


_CLUTTER = (_tarp, _rock, _bare_square, _container, _ruin, _litter)
