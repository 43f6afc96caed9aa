"""The classes of the benchmark datasets, and what their label codes mean."""

from earthgate_geo.data.benchmarks.part import OTHER_NAME, UNKNOWN_NAME
from earthgate_geo.data.label_codes import Code

ISPRS = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
ISPRS_COLORS: dict[Code, str] = {
    (255, 255, 255): "impervious surface",
    (0, 0, 255): "building",
    (0, 255, 255): "low vegetation",
    (0, 255, 0): "tree",
    (255, 255, 0): "car",
    (255, 0, 0): "clutter",
    (0, 0, 0): UNKNOWN_NAME,  # the borders in eroded labels
}

DISASTER = ("impervious surface", "building", "vegetation", "car", "clutter")
_PLANTS = {"low vegetation": "vegetation", "tree": "vegetation"}
DISASTER_COLORS: dict[Code, str] = {
    color: _PLANTS.get(name, name) for color, name in ISPRS_COLORS.items()
}
RESCUENET_CODES: dict[Code, str] = {
    0: UNKNOWN_NAME,  # background: lawns, yards and debris in one
    1: "clutter",  # water, which ISPRS counts as clutter too
    **dict.fromkeys((2, 3, 4, 5), "building"),  # by damage
    6: "car",
    **dict.fromkeys((7, 8), "impervious surface"),  # roads, clear and blocked
    9: "vegetation",  # trees
    10: "clutter",  # pools
}

LOVEDA = ("background", "building", "road", "water", "barren", "forest", "agricultural")
LOVEDA_CODES: dict[Code, str] = {0: UNKNOWN_NAME, **dict(enumerate(LOVEDA, 1))}

CASID = ("background", "building", "forest", "road", "water")
CASID_CODES: dict[Code, str] = {0: UNKNOWN_NAME, **dict(enumerate(CASID, 1))}

ROAD = ("background", "road")
ROAD_CODES: dict[Code, str] = {
    # DeepGlobe says that its masks are not pure black and white, and to cut them at 128.
    value: "road" if value >= 128 else "background"
    for value in range(256)
}

BUILDING = ("background", "building")
BUILDING_CODES: dict[Code, str] = {0: "background", 1: "building", 255: "building"}

HUNAN = ("cropland", "forest", "grassland", "wetland", "water", "unused land", "built-up area")
HUNAN_CODES: dict[Code, str] = dict(zip((1, 2, 3, 5, 6, 8, 9), HUNAN, strict=True))

PLACE = ("building",)
PLACE_CODES: dict[Code, str] = {0: OTHER_NAME, 1: "building"}
