"""``earthgate:vectorize``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
)

from earthgate_qgis.algorithms.base import EngineAlgorithm, Parameters
from earthgate_qgis.layers import file_of


class VectorizeAlgorithm(EngineAlgorithm):
    """Turn a map into polygons."""

    NAME = "vectorize"
    TITLE = "Turn a map into polygons"
    HELP = (
        "Makes polygons with class, confidence and area of a map that earthgate has written. "
        "Files that exist are replaced."
    )
    STAGES = MappingProxyType({"vectorize": (0, 100)})
    RASTER = "MAP"

    def initAlgorithm(
        self,
        configuration: Parameters | None = None,  # noqa: ARG002  # QGIS gives it
    ) -> None:
        """Declare the parameters."""
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", self.tr("Map")))
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", self.tr("Polygons")))
        self.addOutput(QgsProcessingOutputNumber("POLYGONS", self.tr("Number of polygons")))

    def arguments(self, parameters: Parameters, context: QgsProcessingContext) -> list[str]:
        """Return the command and its options.

        Raises:
            LayerError: The map is no file.
        """
        path = file_of(self.raster(parameters, context))
        polygons = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        return ["vectorize", "--map", path, "--dst", polygons, "--overwrite"]

    def outputs(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the file and the number of polygons."""
        return {"OUTPUT": document["outputs"]["vector"], "POLYGONS": document["polygons"]}
