"""``earthgate:map``."""

from __future__ import annotations

from types import MappingProxyType

from earthgate_qgis.algorithms.base import SceneAlgorithm


class MapAlgorithm(SceneAlgorithm):
    """Map a scene with a model as it is."""

    NAME = "map"
    TITLE = "Map a scene"
    HELP = (
        "Maps a scene with a model as it is, or with an adapter that 'Adapt and map' has made. "
        "Give heights to one that was made with heights.\n\n"
        "The map has the scene's grid, and its classes have names and colours. Beside it lies its "
        "confidence, a raster whose name ends in _conf. Files that exist are replaced.\n\n"
        "The scene must be a file on this machine; save a web layer as a GeoTIFF first."
    )
    STAGES = MappingProxyType({"map": (0, 80), "finish": (80, 90), "vectorize": (90, 100)})
