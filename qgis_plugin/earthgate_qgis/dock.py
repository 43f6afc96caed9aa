"""The panel: one button that adapts and maps, its progress, and what came of it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any, Callable

from qgis.core import Qgis, QgsApplication, QgsProject
from qgis.gui import QgsDockWidget
from qgis.PyQt.QtCore import Qt, QTimer, QUrl
from qgis.PyQt.QtGui import QDesktopServices
from qgis.PyQt.QtWidgets import (
    QFrame,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from earthgate_qgis import layers, settings
from earthgate_qgis.engine import EngineError, query_engine
from earthgate_qgis.form import SceneForm, in_row, note
from earthgate_qgis.job import Job
from earthgate_qgis.options_page import PAGE
from earthgate_qgis.task import BackgroundTask, EngineTask, duration

_TITLE = "earthgate"
_SETTINGS = "earthgate:settings"
_DECISIONS = {"adapted": "the model was adapted", "gate-closed": "the source model was kept"}
_UNLOAD_MS = 3_000


class EarthgateDock(QgsDockWidget):
    """The panel that adapts and maps.

    Args:
        iface: QGIS's interface.
    """

    def __init__(self, iface: Any) -> None:
        super().__init__(_TITLE, iface.mainWindow())
        self.setObjectName("EarthgateDock")
        self._iface = iface
        self._engine_problem = "Not asked yet."
        self._query: BackgroundTask | None = None
        self.task: EngineTask | None = None
        self._clean_up: Callable[[], None] = lambda: None
        self.form = SceneForm()
        self.start = QPushButton()
        self.start.setStyleSheet("font-weight: bold")
        self.problem = note()
        self.progress = QProgressBar()
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop within two seconds; nothing is left behind")
        self.stage = note()
        self.running = QWidget()
        self.summary = note()
        self.summary.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
        self._lay_out()
        self._connect()
        self._update()

    def _lay_out(self) -> None:
        running = QVBoxLayout(self.running)
        running.setContentsMargins(0, 0, 0, 0)
        running.addLayout(in_row(self.progress, self.cancel))
        running.addWidget(self.stage)
        body = QWidget()
        column = QVBoxLayout(body)
        for widget in (self.form, self.start, self.problem, self.running, self.summary):
            column.addWidget(widget)
        column.addStretch()
        scroll = QScrollArea()
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(body)
        bar_px = scroll.verticalScrollBar().sizeHint().width()
        scroll.setMinimumWidth(body.minimumSizeHint().width() + bar_px)
        self.setWidget(scroll)

    def _connect(self) -> None:
        self.form.changed.connect(self._update)
        self.form.new_labels.clicked.connect(self._make_labels)
        self.start.clicked.connect(self._start)
        self.cancel.clicked.connect(lambda: self.task and self.task.cancel())
        for text in (self.problem, self.summary):
            text.linkActivated.connect(self._follow_link)
        self.visibilityChanged.connect(self._shown)
        self._iface.currentLayerChanged.connect(self._follow_layer)
        self._follow_layer(self._iface.activeLayer())

    def unload(self) -> None:
        """End what runs, before the plugin goes."""
        self._iface.currentLayerChanged.disconnect(self._follow_layer)
        QgsProject.instance().layersAdded.disconnect(self.form.hide_results)
        for task in (self.task, self._query):
            if task is not None:
                for signal in (task.result, task.failed, task.cancelled, task.told):
                    signal.disconnect()  # they come when the panel is gone
                task.cancel()
                task.waitForFinished(_UNLOAD_MS)
        self._clean_up()

    def _follow_layer(self, layer: Any) -> None:
        if self.task is None:
            self.form.follow(layer)

    def _shown(self, visible: bool) -> None:  # noqa: FBT001  # a slot of Qt
        if visible and self._engine_problem:
            self.ask_for_models()

    # The models

    def ask_for_models(self) -> None:
        """Ask the engine for its models, in the background."""
        if self._query is not None:
            return
        self._engine_problem = "Asking the engine for its models..."
        query = BackgroundTask(
            "earthgate: listing models",
            lambda _: query_engine(["models", "--json"], command=settings.command()),
        )
        query.result.connect(self._take_models)
        query.failed.connect(self._miss_models)
        query.cancelled.connect(lambda: self._miss_models("The engine was not asked; try again."))
        self._query = query
        QgsApplication.taskManager().addTask(query)
        self._update()

    def _take_models(self, document: Mapping[str, Any]) -> None:
        self._query, self._engine_problem = None, ""
        self.form.set_models(document["models"])
        self._update()

    def _miss_models(self, sentence: str) -> None:
        settings_link = f'<a href="{_SETTINGS}">Settings</a>'
        self._query, self._engine_problem = None, f"{html.escape(sentence)} {settings_link}"
        self._update()

    # The run

    def _update(self) -> None:
        """Show what can be done now."""
        runs = self.task is not None
        problem = self._engine_problem or html.escape(self.form.problem())
        self.form.setEnabled(not runs)
        self.form.new_labels.setEnabled(not problem)
        self.running.setVisible(runs)
        self.start.setVisible(not runs)
        self.start.setEnabled(not problem)
        labelled = self.form.labels.currentLayer() is not None
        improves = labelled and not problem and bool(self.form.job().existing())
        self.start.setText("Improve with my labels" if improves else "Adapt and map")
        self.problem.setText(problem)
        self.problem.setVisible(bool(problem) and not runs)

    def _start(self) -> None:
        job = self.form.job()
        existing = job.existing()
        if existing and not self._may_replace(existing):
            return
        try:
            command = settings.command()
            labels = _Labels(self.form)
        except (EngineError, layers.LayerError) as error:
            self._fail(str(error))
            return
        open_again = layers.let_go(QgsProject.instance(), list(job.outputs().values()))
        self._clean_up = lambda: (labels.remove(), open_again())
        arguments = job.arguments(labels=labels.path, field=labels.field, overwrite=bool(existing))
        task = EngineTask(f"earthgate: {job.name}", arguments, command, adapt_s=60 * job.minutes)
        task.result.connect(lambda document: self._succeed(job, document))
        task.failed.connect(self._fail)
        task.cancelled.connect(lambda: self._give_up(job, existing))
        task.told.connect(self._show_stage)
        task.progressChanged.connect(self._show_percent)
        self.task = task
        self.progress.setRange(0, 0)  # busy: the engine takes seconds to start
        self.stage.setText("Starting the engine...")
        self.summary.clear()
        self._update()
        QgsApplication.taskManager().addTask(task)

    def _give_up(self, job: Job, existing: list[str]) -> None:
        job.remove_unfinished(existing)
        self._end("Cancelled.")

    def _end(self, told: str) -> None:
        self.task = None
        self._clean_up()
        self._clean_up = lambda: None
        self.summary.setText(told)
        self._update()

    def _show_percent(self, percent: float) -> None:
        self.progress.setValue(round(percent))

    def _show_stage(self, text: str) -> None:
        self.progress.setRange(0, 100)
        self.stage.setText(text)

    def _may_replace(self, names: list[str]) -> bool:
        yes = QMessageBox.StandardButton.Yes
        answer = QMessageBox.question(
            self, "Replace earlier results?", "These files will be replaced:\n\n" + "\n".join(names)
        )
        return answer == yes

    # The result

    def _succeed(self, job: Job, document: Mapping[str, Any]) -> None:
        self._end(_summary(document))
        layers.add_results(QgsProject.instance(), job.name, document)
        self.form.hide_results()
        # Later, because QGIS has yet to say that a task is complete, which would lie above.
        QTimer.singleShot(0, lambda: self._announce(job, document))

    def _announce(self, job: Job, document: Mapping[str, Any]) -> None:
        bar = self._iface.messageBar()
        told = _DECISIONS.get(document["decision"], document["decision"])
        item = bar.createMessage(_TITLE, f"{job.name} is mapped: {told}.")
        report = QPushButton("Open report")
        report.clicked.connect(lambda: self._follow_link(_link(document["outputs"]["report"])))
        item.layout().addWidget(report)
        bar.pushWidget(item, Qgis.MessageLevel.Success, 0)

    def _fail(self, sentence: str) -> None:
        self._end(html.escape(sentence))
        self._iface.messageBar().pushMessage(_TITLE, sentence, Qgis.MessageLevel.Critical, 0)

    def _follow_link(self, link: str) -> None:
        if link == _SETTINGS:
            self._iface.showOptionsDialog(self._iface.mainWindow(), PAGE)
        else:
            QDesktopServices.openUrl(QUrl(link))

    def _make_labels(self) -> None:
        """Start to digitise in a layer for labels beside the results."""
        job, scene = self.form.job(), self.form.scene.currentLayer()
        path = job.home / f"{job.name}_labels.gpkg"
        try:
            layer = layers.label_layer(
                QgsProject.instance(), str(path), scene.crs(), self.form.classes
            )
        except layers.LayerError as error:
            self._fail(str(error))
            return
        self.form.labels.setLayer(layer)
        self._iface.setActiveLayer(layer)
        layer.startEditing()
        self._iface.actionAddFeature().trigger()


class _Labels:
    """The labels as they are now, in a file of their own for as long as the run lasts."""

    def __init__(self, form: SceneForm) -> None:
        layer = form.labels.currentLayer()
        self.path, self.field = "", form.label_field.currentField()
        self._folder = TemporaryDirectory(prefix="earthgate-")
        if layer is not None:
            try:
                self.path = layers.write_labels(layer, self.field, self._folder.name)
            except layers.LayerError:
                self.remove()
                raise

    def remove(self) -> None:
        with suppress(OSError):  # Windows: a virus scanner may still read it
            self._folder.cleanup()


def _summary(document: Mapping[str, Any]) -> str:
    """Return the decision, the time and the shares of the classes as rich text."""
    rows = "".join(
        f'<tr><td style="color:{entry["color"]}">&#9632;</td>'
        f"<td>{html.escape(entry['name'])}&nbsp;&nbsp;</td>"
        f'<td align="right">{entry["share"]:.1%}</td></tr>'
        for entry in document["classes"]
    )
    report = _link(document["outputs"]["report"])
    return (
        f"<p>{html.escape(document['sentence'])} "
        f"Took {duration(document['seconds']['total'])}. "
        f'<a href="{report}">Report</a></p><table>{rows}</table>'
    )


def _link(path: str) -> str:
    return QUrl.fromLocalFile(path).toString()
