"""What the algorithms share: parameters in, one run of the engine, outputs out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Callable, ClassVar

from qgis.core import (
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputRasterLayer,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication, QEventLoop, QThread
from qgis.PyQt.QtGui import QIcon

from earthgate_qgis import settings
from earthgate_qgis.engine import EngineError, output_files, run_engine, understood
from earthgate_qgis.layers import LayerError, crs_to_assume, file_of, refuse_unsaved, write_labels

_ICON = str(Path(__file__).parents[1] / "icon.svg")
_BANDS = re.compile(r"\s*\w+\s*=\s*\d+\s*(,\s*\w+\s*=\s*\d+\s*)*")
_USUAL_FIELDS = ("class_name", "class")  # where the engine looks, too

Parameters = Mapping[str, Any]


class EngineAlgorithm(QgsProcessingAlgorithm):
    """One command of the engine."""

    NAME: ClassVar[str]
    TITLE: ClassVar[str]
    HELP: ClassVar[str]
    STAGES: ClassVar[Mapping[str, tuple[int, int]]] = MappingProxyType({})
    """Where each stage of the engine begins and ends in the progress, in percent."""

    RASTER: ClassVar[str]
    """Name of the parameter with the raster that is read."""

    def __init__(self) -> None:
        super().__init__()
        self._arguments: list[str] = []
        self._copies: dict[str, str] = {}
        self._folder: TemporaryDirectory[str] | None = None

    def arguments(self, parameters: Parameters, context: QgsProcessingContext) -> list[str]:
        """Return the command and its options.

        Raises:
            LayerError: A layer cannot be used.
        """
        raise NotImplementedError

    def outputs(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the algorithm's outputs from the engine's result."""
        raise NotImplementedError

    def createInstance(self) -> EngineAlgorithm:
        """Return a new one; QGIS runs each once."""
        return type(self)()

    def name(self) -> str:
        """Return the part of the id after the colon."""
        return self.NAME

    def displayName(self) -> str:
        """Return the name for people."""
        return self.tr(self.TITLE)

    def shortHelpString(self) -> str:
        """Return the text beside the parameters."""
        return self.tr(self.HELP)

    def icon(self) -> QIcon:
        """Return the plugin's icon."""
        return QIcon(_ICON)

    def svgIconPath(self) -> str:
        """Return the icon of the modeler."""
        return _ICON

    def tr(self, text: str) -> str:
        """Return the text in the user's language."""
        return QCoreApplication.translate("earthgate", text)

    def checkParameterValues(
        self, parameters: Parameters, context: QgsProcessingContext
    ) -> tuple[bool, str]:
        """Refuse what cannot work before anything starts."""
        fits, sentence = super().checkParameterValues(parameters, context)
        for output in self.destinationParameterDefinitions():
            if fits and parameters.get(output.name()):
                fits, sentence = output.isSupportedOutputValue(parameters[output.name()], context)
        if not fits:
            return fits, sentence
        try:
            settings.command()
            self.check(parameters, context)
        except (EngineError, LayerError) as error:
            return False, str(error)
        return True, ""

    def check(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """Refuse parameters that cannot work.

        Raises:
            LayerError: As the sentence says.
        """
        file_of(self.raster(parameters, context))

    def raster(self, parameters: Parameters, context: QgsProcessingContext) -> QgsRasterLayer:
        """Return the raster that is read.

        Raises:
            LayerError: It does not open.
        """
        return opened(
            self.parameterAsRasterLayer(parameters, self.RASTER, context), parameters, self.RASTER
        )

    def prepareAlgorithm(
        self,
        parameters: Parameters,
        context: QgsProcessingContext,
        feedback: QgsProcessingFeedback,  # noqa: ARG002  # QGIS gives it
    ) -> bool:
        """Read the layers, in the main thread, to which they belong."""
        try:
            self.check(parameters, context)  # a model does not
            self._arguments = self.arguments(parameters, context)
            if context.project() is not None:
                refuse_unsaved(context.project(), output_files(self._arguments))
        except LayerError as error:
            self._clean_up()
            raise QgsProcessingException(str(error)) from error
        return True

    def processAlgorithm(
        self,
        parameters: Parameters,  # noqa: ARG002  # QGIS gives it
        context: QgsProcessingContext,  # noqa: ARG002  # QGIS gives it
        feedback: QgsProcessingFeedback,
    ) -> dict[str, Any]:
        """Run the engine; a cancelled run fails, or ``qgis_process`` would report its outputs."""

        def progress(stage: str, done: int, total: int) -> None:
            begin, end = self.STAGES.get(stage, (0, 100))
            feedback.setProgress(begin + (end - begin) * done / max(total, 1))

        try:
            document = self._run(feedback, progress)
            with understood():
                return self.outputs(document)
        except EngineError as error:
            told = str(error)
            for path, name in self._copies.items():
                told = told.replace(path, name)
            raise QgsProcessingException(told) from error

    def _run(
        self, feedback: QgsProcessingFeedback, progress: Callable[[str, int, int], None]
    ) -> dict[str, Any]:
        try:
            return run_engine(
                self._arguments,
                command=settings.command(),
                on_progress=progress,
                on_log=feedback.pushInfo,
                is_cancelled=lambda: _is_cancelled(feedback),
            )
        finally:
            self._clean_up()

    def folder(self) -> str:
        """Return a folder for what is needed only during the run."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="earthgate-")
        return self._folder.name

    def _clean_up(self) -> None:
        if self._folder is not None:
            with suppress(OSError):  # Windows: a virus scanner may still read it
                self._folder.cleanup()

    def label_arguments(self, layer: QgsMapLayer, field: str) -> list[str]:
        """Return the options about labels: a raster's file, or a copy of a layer's features.

        Raises:
            LayerError: The layer cannot be used, or has no such field.
        """
        if not isinstance(layer, QgsVectorLayer):
            return ["--labels", file_of(layer)]
        candidates = [field] if field else _USUAL_FIELDS
        known = layer.fields().names()
        found = [name for name in candidates if name in known]
        if not found:
            raise LayerError(
                f"The labels have the fields {', '.join(known) or '(none)'}, and none of them is "
                f"{' or '.join(candidates)}; choose the one that holds the class."
            )
        path = write_labels(layer, found[0], self.folder())
        self._copies[path] = layer.name()
        return ["--labels", path, "--label-field", found[0]]


def opened(layer: Any, parameters: Parameters, name: str) -> Any:
    """Return the layer of a parameter.

    Raises:
        LayerError: It does not open, which QGIS finds out before all but a step of a model.
    """
    if layer is None:
        raise LayerError(f"{name} is {parameters.get(name)}, which does not open; choose another.")
    return layer


def _is_cancelled(feedback: QgsProcessingFeedback) -> bool:
    # qgis_process hears Ctrl-C in the loop of events of its main thread, where we run.
    application = QCoreApplication.instance()
    if QThread.currentThread() == application.thread():
        application.processEvents(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)
    return feedback.isCanceled()


class SceneAlgorithm(EngineAlgorithm):
    """A command that makes a map of a scene."""

    RASTER = "SCENE"

    def initAlgorithm(
        self,
        configuration: Parameters | None = None,  # noqa: ARG002  # QGIS gives it
    ) -> None:
        """Declare the parameters."""
        scene = QgsProcessingParameterRasterLayer("SCENE", self.tr("Scene"))
        model = QgsProcessingParameterFile(
            "MODEL",
            self.tr("Model or adapter, a file or a name (the packaged model without one)"),
            optional=True,
            fileFilter=self.tr("Models (*.safetensors);;All files (*)"),
        )
        bands = QgsProcessingParameterString(
            "BANDS",
            self.tr("Which band is which, e.g. red=3,green=2,blue=1 (read from the file without)"),
            optional=True,
        )
        dsm = QgsProcessingParameterRasterLayer(
            "DSM", self.tr("Heights, of a surface model"), optional=True
        )
        dtm = QgsProcessingParameterRasterLayer(
            "DTM", self.tr("Heights of the ground, to subtract from them"), optional=True
        )
        for parameter in (scene, model, bands, dsm, dtm):
            self.addParameter(parameter)
        self.add_more_inputs()
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", self.tr("Map")))
        self.addParameter(
            QgsProcessingParameterVectorDestination(
                "VECTORS", self.tr("Polygons"), optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputRasterLayer("CONFIDENCE", self.tr("Confidence")))

    def add_more_inputs(self) -> None:
        """Declare the inputs that only this algorithm has."""

    def check(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """Refuse parameters that cannot work.

        Raises:
            LayerError: As the sentence says.
        """
        super().check(parameters, context)
        bands = self.parameterAsString(parameters, "BANDS", context)
        if bands.strip() and not _BANDS.fullmatch(bands):
            raise LayerError(f"The bands {bands!r} are not written like red=3,green=2,blue=1.")
        if parameters.get("DTM") and not parameters.get("DSM"):
            raise LayerError("The ground is given without a surface model; choose one, too.")

    def arguments(self, parameters: Parameters, context: QgsProcessingContext) -> list[str]:
        """Return the command and its options.

        Raises:
            LayerError: The scene or its heights are no file, or nothing says the reference system.
        """
        scene, heights = self.raster(parameters, context), self._heights(parameters, context)
        map_path = self.parameterAsOutputLayer(parameters, "OUTPUT", context)
        confidence = Path(map_path).with_name(f"{Path(map_path).stem}_conf.tif")
        if confidence.exists() and not Path(map_path).exists():
            raise LayerError(
                f"{confidence} exists, and the confidence of the map would replace it; give the "
                "map another name."
            )
        # Processing asks before it replaces a file; the engine need not.
        found = [self.NAME, "--src", file_of(scene), "--dst", map_path]
        found += ["--confidence", "--overwrite"]
        for option, value in (
            ("--model", self.parameterAsString(parameters, "MODEL", context)),
            ("--bands", self.parameterAsString(parameters, "BANDS", context)),
            ("--assume-crs", crs_to_assume([scene, *heights.values()])),
            ("--vector", self.parameterAsOutputLayer(parameters, "VECTORS", context)),
        ):
            found += [option, value.strip()] if value.strip() else []
        for option, layer in heights.items():
            found += [option, file_of(layer)]
        return found

    def _heights(
        self, parameters: Parameters, context: QgsProcessingContext
    ) -> dict[str, QgsRasterLayer]:
        """Return the rasters of heights that are given, by the engine's option."""
        return {
            option: opened(self.parameterAsRasterLayer(parameters, name, context), parameters, name)
            for name, option in (("DSM", "--dsm"), ("DTM", "--dtm"))
            if parameters.get(name)
        }

    def outputs(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the files that were written."""
        written = document["outputs"]
        names = {"OUTPUT": "map", "VECTORS": "vector", "CONFIDENCE": "confidence"}
        return {name: written[role] for name, role in names.items() if role in written}
