"""``earthgate:adapt``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qgis.core import (
    QgsFeatureRequest,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingOutputString,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
)

from earthgate_qgis.algorithms.base import Parameters, SceneAlgorithm, opened
from earthgate_qgis.layers import LayerError


class AdaptAlgorithm(SceneAlgorithm):
    """Adapt a model to a scene, with or without labels, and map it."""

    NAME = "adapt"
    TITLE = "Adapt and map a scene"
    HELP = (
        "Adapts a model to a scene from another sensor, place or season, and maps the scene. No "
        "labels are needed; some polygons of known classes help, and so may heights.\n\n"
        "If adapting would not make the map better, the model is kept as it is, and the log says "
        "so.\n\n"
        "The map has the scene's grid, and its classes have names and colours. Beside it lies its "
        "confidence, a raster whose name ends in _conf. The adapter maps further scenes of the "
        "same kind with 'Map a scene'. Files that exist are replaced.\n\n"
        "The scene must be a file on this machine; save a web layer as a GeoTIFF first."
    )
    STAGES = MappingProxyType(
        {"adapt": (0, 80), "map": (80, 93), "finish": (93, 96), "vectorize": (96, 100)}
    )

    def add_more_inputs(self) -> None:
        """Declare the labels, the time, and the files about the adaptation."""
        labels = QgsProcessingParameterFeatureSource(
            "LABELS",
            self.tr("Labels: places whose class is known"),
            [QgsProcessing.SourceType.TypeVectorAnyGeometry],
            optional=True,
        )
        field = QgsProcessingParameterField(
            "LABEL_FIELD",
            self.tr("Field with the class"),
            parentLayerParameterName="LABELS",
            optional=True,
        )
        minutes = QgsProcessingParameterNumber(
            "MINUTES",
            self.tr("Minutes of training at most (about 3 without)"),
            QgsProcessingParameterNumber.Type.Double,
            optional=True,
            minValue=0.01,
        )
        for parameter in (labels, field, minutes):
            self.addParameter(parameter)
        for name, title, files in (
            ("ADAPTER", self.tr("Adapter"), "Adapters (*.safetensors)"),
            ("REPORT", self.tr("Report"), "Web pages (*.html)"),
        ):
            self.addParameter(
                QgsProcessingParameterFileDestination(
                    name, title, files, optional=True, createByDefault=False
                )
            )
        self.addOutput(QgsProcessingOutputString("DECISION", self.tr("Decision")))

    def check(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """Refuse parameters that cannot work.

        Raises:
            LayerError: As the sentence says.
        """
        super().check(parameters, context)
        if self._field(parameters, context) and not parameters.get("LABELS"):
            raise LayerError("A field with the class is given without labels; choose the labels.")

    def arguments(self, parameters: Parameters, context: QgsProcessingContext) -> list[str]:
        """Return the command and its options.

        Raises:
            LayerError: The scene or the labels cannot be used.
        """
        found = super().arguments(parameters, context)
        if parameters.get("LABELS"):
            source = self.parameterAsSource(parameters, "LABELS", context)
            labels = opened(source, parameters, "LABELS")
            chosen = labels.materialize(QgsFeatureRequest())  # the selection, if that was asked
            chosen.setName(labels.sourceName())
            found += self.label_arguments(chosen, self._field(parameters, context))
        if parameters.get("MINUTES") is not None:
            minutes = self.parameterAsDouble(parameters, "MINUTES", context)
            found += ["--minutes", f"{minutes:g}"]
        report = self.parameterAsFileOutput(parameters, "REPORT", context)
        found += ["--report", report] if report else []
        # The engine writes it in any case; nobody wants a file that was not asked for.
        unasked = str(Path(self.folder()) / "scene.adapter.safetensors")
        adapter = self.parameterAsFileOutput(parameters, "ADAPTER", context)
        return [*found, "--out", adapter or unasked]

    def outputs(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the files that are there, and the decision."""
        written = document["outputs"]
        names = {"ADAPTER": "adapter", "REPORT": "report"}
        more = {name: written[role] for name, role in names.items() if role in written}
        if not Path(more.get("ADAPTER", "")).is_file():  # it was not asked for
            more.pop("ADAPTER", None)
        return {**super().outputs(document), **more, "DECISION": document["decision"]}

    def _field(self, parameters: Parameters, context: QgsProcessingContext) -> str:
        return next(iter(self.parameterAsFields(parameters, "LABEL_FIELD", context)), "")
