"""Procedural aerial scenes: a town from a seed, seen by any sensor, with its truth."""

from earthgate_geo.data.synthetic.materials import CLASSES
from earthgate_geo.data.synthetic.plan import TownPlan
from earthgate_geo.data.synthetic.render import Rendering, View, random_tile, render
from earthgate_geo.data.synthetic.sensor import Sensor, draw_sensor
from earthgate_geo.data.synthetic.town import STYLES, draw_town

__all__ = [
    "CLASSES",
    "STYLES",
    "Rendering",
    "Sensor",
    "TownPlan",
    "View",
    "draw_sensor",
    "draw_town",
    "random_tile",
    "render",
]
