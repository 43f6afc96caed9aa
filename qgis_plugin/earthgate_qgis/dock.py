"""The panel: one button that adapts and maps, its progress, and what came of it."""

from __future__ import annotations

import html
import sys
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
from earthgate_qgis.engine import EngineError, query_engine, understood
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
        self._project_left = False
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
            text.setTextFormat(Qt.TextFormat.RichText)
            text.linkActivated.connect(self._follow_link)
        self.visibilityChanged.connect(self._shown)
        self._iface.currentLayerChanged.connect(self._follow_layer)
        QgsProject.instance().cleared.connect(self._leave_project)
        self._follow_layer(self._iface.activeLayer())

    def unload(self) -> None:
        """End what runs, before the plugin goes."""
        self._iface.currentLayerChanged.disconnect(self._follow_layer)
        QgsProject.instance().cleared.disconnect(self._leave_project)
        QgsProject.instance().layersAdded.disconnect(self.form.hide_results)
        for task in (self.task, self._query):
            if task is not None:
                for signal in (task.result, task.failed, task.cancelled, task.told):
                    signal.disconnect()  # they come when the panel is gone
                task.cancel()
                task.waitForFinished(_UNLOAD_MS)
        self._clean_up()

    def _leave_project(self) -> None:
        self._project_left = True

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
            lambda task: query_engine(
                ["models", "--json"], command=settings.command(), is_cancelled=task.isCanceled
            ),
        )
        query.result.connect(self._take_models)
        query.failed.connect(self._miss_models)
        query.cancelled.connect(lambda: self._miss_models("The engine was not asked; try again."))
        self._query = query
        QgsApplication.taskManager().addTask(query)
        self._update()

    def _take_models(self, document: Mapping[str, Any]) -> None:
        try:
            with understood():
                self.form.set_models(document["models"])
        except EngineError as error:
            self._miss_models(str(error))
            return
        self._query, self._engine_problem = None, ""
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
        try:
            self._begin(self.form.job())
        except (EngineError, layers.LayerError) as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"{error}; make this folder readable and writable, and try again.")

    def _begin(self, job: Job) -> None:
        existing, files = job.existing(), list(job.outputs().values())
        layers.refuse_unsaved(QgsProject.instance(), files)
        if existing and not self._may_replace(existing):
            return
        command = settings.command()
        labels = _Labels(self.form)
        self._clean_up = labels.remove
        if sys.platform == "win32":  # where no open file can be replaced
            closed = layers.LetGo(QgsProject.instance(), files)
            self._clean_up = lambda: (labels.remove(), closed.open_again())
        self._project_left = False
        arguments = job.arguments(labels=labels.path, field=labels.field, overwrite=bool(existing))
        task = EngineTask(f"earthgate: {job.name}", arguments, command, adapt_s=60 * job.minutes)
        task.result.connect(lambda document: self._succeed(job, document))
        task.failed.connect(self._fail)
        task.cancelled.connect(lambda: self._end("Cancelled."))
        task.told.connect(self._show_stage)
        task.progressChanged.connect(self._show_percent)
        self.task = task
        self.progress.setRange(0, 0)  # busy: the engine takes seconds to start
        self.stage.setText("Starting the engine...")
        self.summary.clear()
        self._update()
        QgsApplication.taskManager().addTask(task)

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
        self._end("")  # first, whatever the document holds
        try:
            with understood():
                summary, report = _summary(document), _link(document["outputs"]["report"])
                decision = _DECISIONS.get(document["decision"], document["decision"])
                if self._project_left:
                    told = f"Another project is open; the files are in {job.home}."
                    summary += f"<p>{html.escape(told)}</p>"
                else:
                    layers.add_results(QgsProject.instance(), job.name, document)
        except (EngineError, layers.LayerError) as error:
            self._fail(str(error))
            return
        self.summary.setText(summary)
        self.form.hide_results()
        # Later, because QGIS has yet to say that a task is complete, which would lie above.
        told = f"{job.name} is mapped: {decision}."
        QTimer.singleShot(0, lambda: self._announce(told, report))

    def _announce(self, told: str, report: str) -> None:
        bar = self._iface.messageBar()
        item = bar.createMessage(_TITLE, html.escape(told))
        button = QPushButton("Open report")
        button.clicked.connect(lambda: self._follow_link(report))
        item.layout().addWidget(button)
        bar.pushWidget(item, Qgis.MessageLevel.Success, 0)

    def _fail(self, sentence: str) -> None:
        told = html.escape(sentence)
        self._end(told)
        # With a title, the bar takes its text for rich text.
        self._iface.messageBar().pushMessage(_TITLE, told, Qgis.MessageLevel.Critical, 0)

    def _follow_link(self, link: str) -> None:
        if link == _SETTINGS:
            self._iface.showOptionsDialog(self._iface.mainWindow(), PAGE)
        else:
            QDesktopServices.openUrl(QUrl(link))

    def _make_labels(self) -> None:
        """Start to digitise in a layer for labels beside the results."""
        crs = self.form.scene.currentLayer().crs()
        try:
            job = self.form.job()
            path = str(job.home / f"{job.name}_labels.gpkg")
            layer = layers.label_layer(QgsProject.instance(), path, crs, self.form.classes)
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
                self.path = layers.write_labels(layer, self.field, self._folder.name, form.classes)
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
