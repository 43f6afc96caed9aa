"""``earthgate:evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterField,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterRasterLayer,
)

from earthgate_qgis.algorithms.base import EngineAlgorithm, Parameters, opened
from earthgate_qgis.layers import file_of

_SCORES = {
    "ACCURACY": ("accuracy", "Share of known pixels that are right"),
    "MEAN_IOU": ("mean_iou", "Mean intersection over union of the classes"),
    "MEAN_F1": ("mean_f1", "Mean F1 score of the classes"),
}


class EvaluateAlgorithm(EngineAlgorithm):
    """Compare a map with known classes."""

    NAME = "evaluate"
    TITLE = "Evaluate a map"
    HELP = (
        "Compares a map that earthgate has written with known classes, a raster or polygons. The "
        "log shows the scores of every class; the outputs are their means."
    )
    RASTER = "MAP"

    def initAlgorithm(
        self,
        configuration: Parameters | None = None,  # noqa: ARG002  # QGIS gives it
    ) -> None:
        """Declare the parameters."""
        labels = QgsProcessingParameterMapLayer(
            "LABELS",
            self.tr("Known classes"),
            types=[
                QgsProcessing.SourceType.TypeRaster,
                QgsProcessing.SourceType.TypeVectorAnyGeometry,
            ],
        )
        field = QgsProcessingParameterField(
            "LABEL_FIELD",
            self.tr("Field with the class"),
            parentLayerParameterName="LABELS",
            optional=True,
        )
        self.addParameter(QgsProcessingParameterRasterLayer("MAP", self.tr("Map")))
        for parameter in (labels, field):
            self.addParameter(parameter)
        for name, (_, title) in _SCORES.items():
            self.addOutput(QgsProcessingOutputNumber(name, self.tr(title)))

    def arguments(self, parameters: Parameters, context: QgsProcessingContext) -> list[str]:
        """Return the command and its options.

        Raises:
            LayerError: The map or the known classes cannot be used.
        """
        path = file_of(self.raster(parameters, context))
        labels = opened(self.parameterAsLayer(parameters, "LABELS", context), parameters, "LABELS")
        field = next(iter(self.parameterAsFields(parameters, "LABEL_FIELD", context)), "")
        return ["evaluate", "--map", path, *self.label_arguments(labels, field)]

    def outputs(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the means of the scores."""
        return {name: document[key] for name, (key, _) in _SCORES.items()}
