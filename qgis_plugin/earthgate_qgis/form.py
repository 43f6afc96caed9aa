"""The form of the panel: image, bands, model, heights, labels, time and folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from qgis.core import (
    QgsFieldProxyModel,
    QgsMapLayer,
    QgsMapLayerProxyModel,
    QgsProject,
    QgsRasterLayer,
    QgsUnitTypes,
)
from qgis.gui import QgsFieldComboBox, QgsFileWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import Qt, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QSlider,
    QToolButton,
    QWidget,
)

from earthgate_qgis import layers
from earthgate_qgis.job import Job

_USUAL_FIELDS = ("class_name", layers.CLASS_FIELD)  # where the engine looks, too
_DEFAULT_BANDS = ("red", "green", "blue")
_LEAST_MINUTES, _MOST_MINUTES, _MINUTES = 1, 15, 3


class SceneForm(QWidget):
    """Says what to map, and how."""

    changed = pyqtSignal()

    def __init__(self) -> None:
        super().__init__()
        self._models: Sequence[Mapping[str, Any]] = ()
        self.scene = QgsMapLayerComboBox()
        self.scene.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.scene.setToolTip("Raster layer to map; it follows the layer you click")
        self.scene_facts = note()
        self.bands = BandRow()
        self.model = QComboBox()
        self.model.setToolTip("Model to start from")
        self.model_facts = note()
        self.heights = _optional(
            QgsMapLayerProxyModel.Filter.RasterLayer,
            "Optional surface model; any reference system, pixel size and unit",
        )
        self.labels = _optional(
            QgsMapLayerProxyModel.Filter.PolygonLayer,
            "Optional polygons of known classes; a few are enough, and edits need not be saved",
        )
        self.new_labels = QToolButton()
        self.new_labels.setText("New")
        self.new_labels.setToolTip("Make a layer for labels and start to digitise")
        self.label_field = QgsFieldComboBox()
        self.label_field.setFilters(
            QgsFieldProxyModel.Filter.String | QgsFieldProxyModel.Filter.Int
        )
        self.label_field.setToolTip("Field of the labels with the name of the class")
        self.minutes = QSlider(Qt.Orientation.Horizontal)
        self.minutes.setRange(_LEAST_MINUTES, _MOST_MINUTES)
        self.minutes.setToolTip("Adapting ends after this time at the latest; mapping follows")
        self._minutes_shown = QLabel()
        self.folder = QgsFileWidget()
        self.folder.setStorageMode(QgsFileWidget.StorageMode.GetDirectory)
        self.folder.lineEdit().setPlaceholderText("Beside the image")
        self.folder.setToolTip("Folder for the map, polygons, confidence, adapter and report")
        self._lay_out()
        self._connect()

    def _lay_out(self) -> None:
        form = QFormLayout(self)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("&Image", self.scene)
        form.addRow("", self.scene_facts)
        form.addRow("Bands", self.bands)
        form.addRow("&Model", self.model)
        form.addRow("", self.model_facts)
        form.addRow("&Heights", self.heights)
        form.addRow(_buddy("&Labels", self.labels), in_row(self.labels, self.new_labels))
        form.addRow("Class &field", self.label_field)
        form.addRow(_buddy("&Time", self.minutes), in_row(self.minutes, self._minutes_shown))
        form.addRow("&Save to", self.folder)
        for combo in (self.scene, self.model, self.heights, self.labels, self.label_field):
            _shrinkable(combo)

    def _connect(self) -> None:
        self.scene.layerChanged.connect(self._show_scene)
        self.model.currentIndexChanged.connect(self._show_model)
        self.heights.layerChanged.connect(lambda *_: self.changed.emit())
        self.labels.layerChanged.connect(self._show_labels)
        self.minutes.valueChanged.connect(self._show_minutes)
        self.minutes.setValue(_MINUTES)
        for signal in (
            self.label_field.fieldChanged,
            self.folder.fileChanged,
            self.bands.changed,
        ):
            signal.connect(lambda *_: self.changed.emit())
        QgsProject.instance().layersAdded.connect(self.hide_results)
        self.hide_results()
        self.heights.setLayer(None)
        self.labels.setLayer(None)
        self._show_scene()
        self._show_labels()

    def hide_results(self, *_: Any) -> None:
        """Offer no layer that the engine made."""
        every = QgsProject.instance().mapLayers().values()
        results = [layer for layer in every if layers.is_result(layer)]
        self.scene.setExceptedLayerList(results)
        self.heights.setExceptedLayerList(results)
        self.labels.setExceptedLayerList(results)

    def follow(self, layer: QgsMapLayer | None) -> None:
        """Take the layer for the scene if it may be one."""
        if isinstance(layer, QgsRasterLayer) and not layers.is_result(layer):
            self.scene.setLayer(layer)

    def set_models(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Offer these models, as ``earthgate models --json`` lists them; keep the chosen one."""
        files, names = ([entry[key] for entry in models] for key in ("file", "name"))
        chosen = self._model().get("file")
        self._models = models
        self.model.blockSignals(True)
        self.model.clear()
        self.model.addItems(names)
        self.model.setCurrentIndex(files.index(chosen) if chosen in files else 0)
        self.model.blockSignals(False)
        self._show_model()

    @property
    def classes(self) -> list[str]:
        """Names of the model's classes."""
        return list(self._model().get("classes", ()))

    def _model(self) -> Mapping[str, Any]:
        index = self.model.currentIndex()
        return self._models[index] if 0 <= index < len(self._models) else {}

    def problem(self) -> str:
        """Return why nothing can start, in a sentence; empty if it can."""
        layer = self.scene.currentLayer()
        if layer is None:
            return "Add a raster layer to map."
        try:
            for each in self._rasters():
                layers.file_of(each)
            layers.crs_to_assume(self._rasters())
        except layers.LayerError as error:
            return str(error)
        if not self._model():
            return "The engine lists no model; press Test in Settings > Options > earthgate."
        if not self.bands.is_complete():
            return "Say which band is which."
        if self.labels.currentLayer() is not None and not self.label_field.currentField():
            return "The labels need a field with the name of the class."
        return ""

    def job(self) -> Job:
        """Return what the form says, if it has no problem.

        Raises:
            LayerError: It has one, perhaps since it was asked.
        """
        scene, *heights = map(layers.file_of, self._rasters())
        return Job(
            scene=scene,
            heights="".join(heights),
            folder=self.folder.filePath(),
            model=self._model()["file"],
            bands=self.bands.text(),
            minutes=self.minutes.value(),
            crs=layers.crs_to_assume(self._rasters()),
        )

    def _rasters(self) -> list[QgsRasterLayer]:
        """Return the scene, and its heights if there are any."""
        chosen = (self.scene.currentLayer(), self.heights.currentLayer())
        return [layer for layer in chosen if layer is not None]

    def _show_scene(self, *_: Any) -> None:
        layer = self.scene.currentLayer()
        if layer is not None:
            with suppress(TypeError):  # the first time
                layer.crsChanged.disconnect(self._show_scene)
            layer.crsChanged.connect(self._show_scene)
        self.scene_facts.setText("" if layer is None else _facts(layer))
        self.bands.show_bands(layer, self._model().get("bands", _DEFAULT_BANDS))
        order = [self.scene, *self.bands.choices.values(), self.model]
        for before, after in zip(order, order[1:]):  # choices made anew come last in Qt's order
            QWidget.setTabOrder(before, after)
        self.changed.emit()

    def _show_model(self, *_: Any) -> None:
        self.model_facts.setText(", ".join(self.classes))
        self._show_scene()

    def _show_labels(self, *_: Any) -> None:
        layer = self.labels.currentLayer()
        self.label_field.setLayer(layer)
        self.label_field.setEnabled(layer is not None)
        if layer is not None:
            texts = [field.name() for field in layer.fields() if not field.isNumeric()]
            usual = [name for name in _USUAL_FIELDS if name in texts]
            self.label_field.setField(next(iter([*usual, *texts]), ""))
        self.changed.emit()

    def _show_minutes(self, minutes: int) -> None:
        self._minutes_shown.setText(f"up to {minutes} min")


class BandRow(QWidget):
    """Which band of the image shows what; guessed, for the user to confirm."""

    changed = pyqtSignal()

    def __init__(self) -> None:
        super().__init__()
        self.choices: dict[str, QComboBox] = {}
        self._shown: tuple[str, ...] = ()
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)

    def show_bands(self, layer: QgsRasterLayer | None, wanted: Sequence[str]) -> None:
        """Offer the layer's bands for each of ``wanted``, with the guess chosen.

        What is shown already stays, as the user may have changed it.
        """
        shown = ("" if layer is None else layer.id(), *wanted)
        if shown == self._shown:
            return
        self._shown = shown
        if list(self.choices) != list(wanted):
            self._make_choices(wanted)
        bands = range(1, 1 + layer.bandCount()) if layer is not None and layer.isValid() else ()
        guess = layers.guess_bands(layer, wanted) if bands else [0] * len(wanted)
        for choice, band in zip(self.choices.values(), guess):
            choice.blockSignals(True)
            choice.clear()
            choice.addItem("?", 0)
            for number in bands:
                choice.addItem(str(number), number)
                choice.setItemData(number, layer.bandName(number), Qt.ItemDataRole.ToolTipRole)
            choice.setCurrentIndex(band)
            choice.blockSignals(False)

    def _make_choices(self, wanted: Sequence[str]) -> None:
        while self._row.count():
            self._row.takeAt(0).widget().deleteLater()
        self.choices = {name: QComboBox() for name in wanted}
        for name, choice in self.choices.items():
            choice.setToolTip(f"Band that shows {name}; guessed from the file, please check")
            choice.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            choice.currentIndexChanged.connect(lambda *_: self.changed.emit())
            self._row.addWidget(QLabel(name))
            self._row.addWidget(choice)

    def is_complete(self) -> bool:
        """Whether every choice is made."""
        return all(choice.currentData() for choice in self.choices.values())

    def text(self) -> str:
        """Return the choices as the engine takes them."""
        return ",".join(f"{name}={choice.currentData()}" for name, choice in self.choices.items())


def _facts(layer: QgsRasterLayer) -> str:
    """Return size, pixel and reference system in a line."""
    unit = QgsUnitTypes.toAbbreviatedString(layer.crs().mapUnits())
    system = layer.crs().authid() or "no reference system"
    size, extent = f"{layer.width()} x {layer.height()} px", layer.extent()
    if not layer.width():
        return f"{layer.providerType()} layer"
    pixel = f"{layer.rasterUnitsPerPixelX():.3g} {unit}"
    ground = f"{extent.width():.4g} x {extent.height():.4g} {unit}"
    return f"{size} of {pixel}, {ground}\n{system}"


def note() -> QLabel:
    """Return a label for a line or two of small print."""
    label = QLabel()
    label.setWordWrap(True)
    font = label.font()
    font.setPointSizeF(0.9 * font.pointSizeF())
    label.setFont(font)
    return label


def in_row(wide: QWidget, narrow: QWidget) -> QHBoxLayout:
    """Return the two side by side, the first as wide as there is room."""
    row = QHBoxLayout()
    row.addWidget(wide, 1)
    row.addWidget(narrow)
    return row


def _optional(kind: Any, told: str) -> QgsMapLayerComboBox:
    """Return a choice of a layer of a kind, or of none."""
    choice = QgsMapLayerComboBox()
    choice.setFilters(kind)
    choice.setAllowEmptyLayer(True, "none (optional)")
    choice.setToolTip(told)
    return choice


def _buddy(text: str, widget: QWidget) -> QLabel:
    label = QLabel(text)
    label.setBuddy(widget)
    return label


def _shrinkable(combo: QComboBox) -> None:
    """Let the panel be narrower than the longest entry, and wider."""
    combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(8)
