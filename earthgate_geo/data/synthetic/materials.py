"""What surfaces look like: display reflectance in red, green, blue and near infrared."""

from dataclasses import dataclass

import numpy as np

from earthgate_geo.raster.classes import ClassTable, LandClass

CLASSES = ClassTable(
    (
        LandClass(0, "building", "#d1492e"),
        LandClass(1, "road", "#54565b"),
        LandClass(2, "bare ground", "#dcc38c"),
        LandClass(3, "vegetation", "#5f9a4a"),
        LandClass(4, "water", "#3f86c6"),
    )
)
"""Classes of every generated scene."""

BUILDING, ROAD, BARE, VEGETATION, WATER = range(5)

Color = tuple[float, float, float, float]
"""Red, green, blue and near infrared, each 0..1."""


@dataclass(frozen=True, kw_only=True)
class Roof:
    """How one roof covering looks."""

    color: Color
    """Mean colour."""

    sheet_m: float
    """Width of a sheet, or distance of tile rows."""

    variety: float
    """Brightness differences between sheets, 0..1."""

    worn: Color = (0.50, 0.36, 0.28, 0.56)
    """Colour of rust, moss or dirt."""

    wear: float = 0.1
    """Largest worn share, 0..1."""

    jitter: float = 0.05
    """Spread of the mean colour between buildings."""


ROOFS = {
    "tin": Roof(color=(0.73, 0.78, 0.79, 0.66), sheet_m=0.9, variety=0.10, wear=0.12, jitter=0.06),
    "white": Roof(color=(0.90, 0.92, 0.92, 0.82), sheet_m=1.0, variety=0.05, wear=0.05),
    "aged": Roof(color=(0.60, 0.60, 0.57, 0.55), sheet_m=0.9, variety=0.14, wear=0.4),
    "rust": Roof(color=(0.56, 0.40, 0.31, 0.62), sheet_m=0.8, variety=0.20, wear=0.5),
    "maroon": Roof(color=(0.63, 0.29, 0.28, 0.66), sheet_m=1.0, variety=0.08, wear=0.1),
    "tile": Roof(color=(0.66, 0.38, 0.27, 0.72), sheet_m=0.45, variety=0.07, wear=0.15),
    "orange": Roof(color=(0.83, 0.52, 0.34, 0.86), sheet_m=0.45, variety=0.07, wear=0.1),
    "blue": Roof(color=(0.33, 0.47, 0.62, 0.45), sheet_m=1.0, variety=0.06, wear=0.06),
    "green": Roof(color=(0.36, 0.50, 0.40, 0.40), sheet_m=1.0, variety=0.07, wear=0.08),
    "slate": Roof(color=(0.36, 0.36, 0.38, 0.33), sheet_m=0.4, variety=0.07, wear=0.1),
    "concrete": Roof(
        color=(0.68, 0.66, 0.61, 0.62),
        sheet_m=6.0,
        variety=0.04,
        worn=(0.42, 0.41, 0.38, 0.4),
        wear=0.35,
    ),
    "bitumen": Roof(
        color=(0.33, 0.33, 0.34, 0.30),
        sheet_m=2.0,
        variety=0.05,
        worn=(0.5, 0.5, 0.48, 0.45),
        wear=0.25,
    ),
    "thatch": Roof(color=(0.49, 0.44, 0.34, 0.56), sheet_m=0.5, variety=0.12, wear=0.2),
}

SOILS: tuple[Color, ...] = (
    (0.66, 0.57, 0.44, 0.74),  # sand
    (0.72, 0.53, 0.38, 0.80),  # light laterite
    (0.63, 0.41, 0.28, 0.74),  # red laterite
    (0.55, 0.48, 0.38, 0.63),  # loam
    (0.62, 0.59, 0.51, 0.68),  # limestone
    (0.44, 0.37, 0.30, 0.52),  # dark earth
    (0.78, 0.72, 0.60, 0.84),  # coral sand
)

GRASSES: tuple[Color, ...] = (
    (0.42, 0.50, 0.28, 0.70),
    (0.36, 0.47, 0.25, 0.74),
    (0.50, 0.52, 0.33, 0.62),
    (0.58, 0.55, 0.37, 0.56),
    (0.30, 0.42, 0.22, 0.72),
)

LEAVES: tuple[Color, ...] = (
    (0.30, 0.39, 0.19, 0.72),
    (0.35, 0.45, 0.22, 0.76),
    (0.25, 0.34, 0.20, 0.62),
    (0.42, 0.50, 0.26, 0.78),
    (0.34, 0.38, 0.24, 0.60),
    (0.47, 0.51, 0.30, 0.70),
)

WATERS: tuple[Color, ...] = (
    (0.24, 0.31, 0.30, 0.08),  # pond
    (0.42, 0.38, 0.27, 0.14),  # muddy
    (0.16, 0.34, 0.40, 0.05),  # sea
    (0.30, 0.52, 0.55, 0.07),  # lagoon
    (0.15, 0.20, 0.20, 0.05),  # dark river
)

ASPHALTS: tuple[Color, ...] = (
    (0.40, 0.40, 0.41, 0.38),
    (0.52, 0.51, 0.50, 0.48),
    (0.62, 0.60, 0.56, 0.57),
    (0.33, 0.33, 0.35, 0.31),
)

THINGS: tuple[Color, ...] = (
    (0.92, 0.92, 0.92, 0.80),
    (0.90, 0.91, 0.93, 0.80),
    (0.86, 0.86, 0.84, 0.76),
    (0.70, 0.71, 0.73, 0.60),
    (0.62, 0.62, 0.62, 0.55),
    (0.15, 0.15, 0.16, 0.14),
    (0.24, 0.25, 0.27, 0.20),
    (0.40, 0.41, 0.43, 0.34),
    (0.55, 0.20, 0.17, 0.50),
    (0.22, 0.32, 0.48, 0.35),
    (0.70, 0.62, 0.40, 0.62),
)
"""Paint of cars, containers and boats."""

TARPS: tuple[Color, ...] = (
    (0.18, 0.42, 0.72, 0.45),
    (0.88, 0.48, 0.16, 0.70),
    (0.25, 0.52, 0.38, 0.50),
    (0.85, 0.85, 0.83, 0.75),
)


@dataclass(frozen=True, kw_only=True)
class Land:
    """Colours of one region."""

    soil: Color
    """Bare ground."""

    grass: Color
    """Low vegetation."""

    leaves: tuple[Color, ...]
    """Tree crowns, two kinds or more."""

    asphalt: Color
    """Paved roads."""

    water: Color
    """Rivers, ponds or the sea."""


def draw_land(rng: np.random.Generator) -> Land:
    """Return the colours of a random region."""
    picks = rng.choice(len(LEAVES), 3, replace=False)
    return Land(
        soil=vary(rng, pick(rng, SOILS), 0.05),
        grass=vary(rng, pick(rng, GRASSES), 0.05),
        leaves=tuple(vary(rng, LEAVES[i], 0.04) for i in picks),
        asphalt=vary(rng, pick(rng, ASPHALTS), 0.03),
        water=vary(rng, pick(rng, WATERS), 0.04),
    )


def pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    """Return one of ``colors``."""
    return colors[int(rng.integers(len(colors)))]


def vary(rng: np.random.Generator, color: Color, spread: float) -> Color:
    """Return ``color`` with its brightness and, less, its hue changed."""
    light, red, green, blue, nir = rng.normal(0.0, spread, 5)
    steps = (light + 0.3 * red, light + 0.3 * green, light + 0.3 * blue, light + 0.3 * nir)
    r, g, b, n = (min(max(c + s, 0.03), 0.97) for c, s in zip(color, steps, strict=True))
    return r, g, b, n


def mix(first: Color, second: Color, share: float) -> Color:
    """Return ``first`` with ``share`` (0..1) of ``second`` in it."""
    r, g, b, n = (a + share * (c - a) for a, c in zip(first, second, strict=True))
    return r, g, b, n
