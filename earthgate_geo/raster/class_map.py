"""Maps that earthgate wrote, recognised by their tag."""

from earthgate_geo.errors import InputError
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.cog import CLASSES_TAG
from earthgate_geo.raster.read import Scene


def is_map(scene: Scene) -> bool:
    """Tell whether a raster is a map of ours."""
    return CLASSES_TAG in scene.tags and scene.count == 1 and scene.dtype == "uint8"


def class_table(scene: Scene) -> ClassTable:
    """Return the classes of a map.

    Raises:
        InputError: The raster is no map of ours.
    """
    if not is_map(scene):
        raise InputError(
            found=f"{scene.path} is not a map that earthgate wrote",
            expected=f"one band of classes with the tag {CLASSES_TAG}",
        )
    return ClassTable.from_json(scene.tags[CLASSES_TAG])
