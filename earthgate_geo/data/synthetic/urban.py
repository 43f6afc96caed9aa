"""Built-up blocks: lots with houses, alleys between shacks, flat blocks, halls."""

import math

import numpy as np

from earthgate_geo.data.synthetic.materials import (
    BARE,
    BUILDING,
    ROAD,
    ROOFS,
    VEGETATION,
    WATER,
    mix,
    vary,
)
from earthgate_geo.data.synthetic.plan import (
    Box,
    Draft,
    Layer,
    soil_mix,
    split,
)
from earthgate_geo.data.synthetic.things import (
    HOME,
    POOR,
    build_roof,
    car,
    clutter,
    draw,
    hedge,
    house,
    palette,
    trees,
    wall,
)

_FLAT = {"concrete": 4, "bitumen": 2.5, "white": 1.5}
_HALL = {"tin": 3, "white": 2, "aged": 1.5, "blue": 0.8, "bitumen": 1, "green": 0.4}


def suburb(draft: Draft, block: Box) -> None:
    """Houses on lots along both long sides."""
    rng = draft.rng
    roofs = palette(rng, HOME)
    depth, lot = block.width_m / 2, float(rng.uniform(14, 24))
    count = max(1, int(block.length_m / lot))
    width = block.length_m / count
    lush = float(rng.uniform(0.3, 0.98))
    for side in (-1, 1):
        for n in range(count):
            place = block.part(
                (n + 0.5) * width - block.length_m / 2, side * depth / 2, width, depth
            )
            if rng.random() < 0.9:
                _lot(draft, place, side, roofs, lush)


def _lot(draft: Draft, lot: Box, side: int, roofs: dict[str, float], lush: float) -> None:
    rng = draft.rng
    soil_mix(draft, Layer.YARD, lot.ring(), float(np.clip(lush + rng.normal(0, 0.2), 0.02, 0.99)))
    length = lot.length_m * float(rng.uniform(0.5, 0.75))
    width = float(np.clip(length * rng.uniform(0.6, 0.95), 6, lot.width_m * 0.55))
    setback = lot.width_m * float(rng.uniform(0.02, 0.2)) * side
    at = lot.part(float(rng.uniform(-0.08, 0.08)) * lot.length_m, setback, length, width)
    if draft.is_free(at.x, at.y, width / 2):
        house(draft, at, roofs)
        drive = lot.part(
            length * 0.3 * float(rng.choice((-1, 1))),
            side * lot.width_m * 0.35,
            3.0,
            lot.width_m * 0.3,
        )
        tone = vary(
            rng, mix(draft.land.asphalt, (0.72, 0.68, 0.6, 0.65), float(rng.random())), 0.03
        )
        draft.face(Layer.PATH, drive.ring(), tone, kind=BARE, stain=0.08, grain=0.03)
        if rng.random() < 0.4:
            car(draft, Box(drive.x, drive.y, drive.angle + math.pi / 2, 4.4, 1.8))
    back = lot.part(0, -side * lot.width_m * 0.33, lot.length_m * 0.8, lot.width_m * 0.22)
    if rng.random() < 0.1 and draft.is_site(back.ring()):
        pool = back.part(0, 0, 7, 3.6)
        draft.face(
            Layer.ROAD,
            back.part(0, 0, 9, 5.4).ring(),
            (0.74, 0.71, 0.66, 0.68),
            kind=BARE,
            stain=0.05,
        )
        draft.face(
            Layer.MARKING,
            pool.ring(),
            (0.33, 0.66, 0.74, 0.12),
            kind=WATER,
            stain=0.05,
            relief=0.05,
        )
    elif rng.random() < 0.3:
        house(draft, back.part(float(rng.uniform(-0.3, 0.3)) * back.length_m, 0, 3.4, 2.8), POOR)
    if rng.random() < 0.45:
        hedge(draft, lot)
    elif rng.random() < 0.6:
        wall(draft, lot, height_m=1.5)
    trees(draft, lot, float(rng.uniform(5, 9)), share=0.45)


def crowded(draft: Draft, block: Box) -> None:
    """Small roofs wall to wall with alleys between."""
    rng = draft.rng
    roofs = palette(rng, POOR)
    soil_mix(draft, Layer.YARD, block.ring(), float(rng.uniform(0.02, 0.25)))
    empty = float(rng.uniform(0.04, 0.25))
    for cell in split(rng, block, float(rng.uniform(7, 13))):
        gap = float(rng.uniform(0.3, 1.6))
        if rng.random() < empty or min(cell.length_m, cell.width_m) - gap < 2.2:
            trees(draft, cell, 3.0, share=0.35, size=0.8)
            clutter(draft, cell, 1)
            continue
        angle = cell.angle + float(rng.normal(0, 0.05))
        place = Box(cell.x, cell.y, angle, cell.length_m - gap, cell.width_m - gap)
        if draft.is_free(cell.x, cell.y, 0.5):
            house(draft, place, roofs)


def modern(draft: Draft, block: Box) -> None:
    """Blocks with flat roofs, parking and lawns."""
    rng = draft.rng
    for lot in split(rng, block, float(rng.uniform(28, 50))):
        paved = rng.random() < 0.45
        if paved:
            _parking(draft, lot)
        else:
            soil_mix(draft, Layer.YARD, lot.ring(), float(rng.uniform(0.5, 0.98)))
        box = lot.part(
            0,
            0,
            lot.length_m * float(rng.uniform(0.4, 0.8)),
            lot.width_m * float(rng.uniform(0.35, 0.7)),
        )
        if rng.random() < 0.82 and min(box.length_m, box.width_m) > 7 and draft.is_site(box.ring()):
            _flat_block(draft, box)
        trees(draft, lot, 7.0, share=0.15 if paved else 0.5, size=1.2)


def _flat_block(draft: Draft, box: Box) -> None:
    rng = draft.rng
    roof, tall = ROOFS[draw(rng, _FLAT)], float(rng.uniform(4, 16))
    parts = [box]
    if rng.random() < 0.5:
        parts = [
            box.part(0, -box.width_m * 0.3, box.length_m, box.width_m * 0.4),
            box.part(box.length_m * 0.3, box.width_m * 0.2, box.length_m * 0.4, box.width_m * 0.6),
        ]
    rim = vary(rng, mix(roof.color, (0.8, 0.79, 0.76, 0.7), 0.5), 0.03)
    for part in parts:
        draft.face(Layer.ROOF, part.ring(), rim, kind=BUILDING, height=tall + 0.5, stain=0.05)
    for part in parts:
        build_roof(
            draft, part.part(0, 0, part.length_m - 0.7, part.width_m - 0.7), roof, "flat", tall
        )
    for _ in range(int(rng.integers(1, 8))):
        part = parts[int(rng.integers(len(parts)))]
        u, v = rng.uniform(-0.38, 0.38, 2)
        unit = part.part(
            float(u) * part.length_m, float(v) * part.width_m, *rng.uniform(0.8, 3.2, 2).tolist()
        )
        draft.face(
            Layer.ROOF_DETAIL, unit.ring(), vary(rng, (0.7, 0.7, 0.69, 0.6), 0.09), kind=BUILDING,
            height=tall + float(rng.uniform(0.6, 2)),
        )  # fmt: skip


def _parking(draft: Draft, lot: Box) -> None:
    rng = draft.rng
    tone = vary(rng, draft.land.asphalt, 0.03)
    draft.face(Layer.YARD, lot.ring(), tone, kind=ROAD, stain=0.07, grain=0.03)
    for across in np.arange(-lot.width_m / 2 + 3, lot.width_m / 2 - 3, 9.0):
        for along in np.arange(-lot.length_m / 2 + 2, lot.length_m / 2 - 2, 2.7):
            stall = lot.part(float(along), float(across), 0.1, 4.6)
            if draft.is_free(stall.x, stall.y, 0):
                draft.face(Layer.MARKING, stall.ring(), (0.8, 0.8, 0.78, 0.7), kind=ROAD, stain=0.2)
                if rng.random() < 0.4:
                    x, y = lot.at(float(along) + 1.35, float(across))
                    car(draft, Box(x, y, lot.angle + math.pi / 2, 4.4, 1.8))


def industry(draft: Draft, block: Box) -> None:
    """Halls on sealed yards, with containers and trucks."""
    rng = draft.rng
    for lot in split(rng, block, float(rng.uniform(50, 90))):
        concrete = vary(
            rng, mix((0.66, 0.64, 0.6, 0.6), draft.land.soil, float(rng.random()) ** 2), 0.03
        )
        draft.face(
            Layer.YARD,
            lot.ring(),
            concrete,
            kind=BARE,
            stain=0.1,
            grain=0.04,
            worn_kind=VEGETATION,
            wear=0.08,
        )
        draft.worn(draft.land.grass)
        box = lot.part(
            0,
            0,
            lot.length_m * float(rng.uniform(0.5, 0.85)),
            lot.width_m * float(rng.uniform(0.4, 0.7)),
        )
        if rng.random() < 0.9 and draft.is_site(box.ring()):
            roof = ROOFS[draw(rng, _HALL)]
            build_roof(
                draft,
                box,
                roof,
                "gable" if rng.random() < 0.6 else "flat",
                float(rng.uniform(5, 10)),
            )
        rim = lot.part(0, lot.width_m * 0.42, lot.length_m * 0.9, lot.width_m * 0.1)
        for _ in range(int(rng.integers(0, 7))):
            spot = rim.part(float(rng.uniform(-0.5, 0.5)) * rim.length_m, 0, 1, 1)
            car(draft, Box(spot.x, spot.y, rim.angle + math.pi / 2, 4.5, 1.9))
        clutter(draft, lot, 10)
        trees(draft, lot, 9.0, share=0.15)
