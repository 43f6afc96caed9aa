"""The plugin's page in QGIS's options: which engine, is it sound, install one."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from qgis.core import QgsApplication
from qgis.gui import QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from earthgate_qgis import settings
from earthgate_qgis.engine import find_engine, query_engine, understood
from earthgate_qgis.install import install_engine
from earthgate_qgis.task import BackgroundTask

PAGE = "earthgateOptions"
"""Name by which QGIS opens the page."""

_VARIABLE = "EARTHGATE_EXECUTABLE"
_LOG_LINES = 2_000


class OptionsFactory(QgsOptionsWidgetFactory):
    """Makes the page whenever the options are opened.

    Args:
        icon: The plugin's.
        version: The plugin's.
        applied: Called after the user has chosen another engine.
    """

    def __init__(self, icon: QIcon, version: str, applied: Callable[[], None]) -> None:
        super().__init__("earthgate", icon)
        self._icon, self._version, self._applied = icon, version, applied

    def icon(self) -> QIcon:
        """Return the icon in the list of pages."""
        return self._icon

    def createWidget(self, parent: QWidget) -> QgsOptionsPageWidget:
        """Return a new page."""
        return OptionsPage(parent, self._version, self._applied)


class OptionsPage(QgsOptionsPageWidget):
    """Which engine to use, whether it works, and how to get one."""

    def __init__(self, parent: QWidget, version: str, applied: Callable[[], None]) -> None:
        super().__init__(parent)
        self.setObjectName(PAGE)
        self._version, self._applied = version, applied
        self._task: BackgroundTask | None = None
        self.engine = QgsFileWidget()
        self.engine.setFilePath(settings.engine_path())
        self.engine.lineEdit().setPlaceholderText("Found by itself")
        self.engine.setToolTip(
            "An earthgate executable, or the Python of a venv, conda or pixi environment with it"
        )
        self.test = QPushButton("Test")
        self.test.setToolTip("Ask this engine whether everything it needs works")
        self.findings = QTextBrowser()
        self.source = QLineEdit()
        self.source.setPlaceholderText("Wheel of earthgate-geo, or a folder with it")
        self.wheel, self.folder = QPushButton("Wheel..."), QPushButton("Folder...")
        self.install = QPushButton("Install for me")
        self.install.setToolTip("Make an environment for the engine and install it there")
        self.cancel = QPushButton("Cancel")
        self.cancel.setEnabled(False)
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(_LOG_LINES)
        self._lay_out()
        self._connect()

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self._fill_engine(_group("Engine", column))
        self._fill_install(_group("Install for me", column))

    def _fill_engine(self, column: QVBoxLayout) -> None:
        told = "The engine that adapts and maps is a program of its own, apart from QGIS."
        if _VARIABLE in os.environ:
            told += f" {_VARIABLE} is set and beats the choice below."
        column.addWidget(_text(told))
        column.addLayout(_row(self.engine, self.test))
        column.addWidget(self.findings, 1)

    def _fill_install(self, column: QVBoxLayout) -> None:
        column.addWidget(
            _text(
                "Without an engine: choose its wheel, or the folder that holds it, and keep "
                "this window open. Needs Python 3.11 or newer and about 3 GB."
            )
        )
        column.addLayout(_row(self.source, self.wheel, self.folder))
        column.addLayout(_row(self.install, self.cancel, stretched=False))
        column.addWidget(self.log, 1)

    def _connect(self) -> None:
        self.test.clicked.connect(self._test)
        self.wheel.clicked.connect(self._choose_wheel)
        self.folder.clicked.connect(self._choose_folder)
        self.source.textChanged.connect(self._update)
        self.install.clicked.connect(self._install)
        self._update()

    def apply(self) -> None:
        """Keep the choice; QGIS calls this on OK."""
        if self.engine.filePath() != settings.engine_path():
            settings.set_engine_path(self.engine.filePath())
            self._applied()

    def _update(self, *_: Any) -> None:
        idle = self._task is None
        self.test.setEnabled(idle)
        self.install.setEnabled(idle and bool(self.source.text().strip()))
        self.cancel.setEnabled(not idle)

    def _run(self, title: str, work: Callable[[BackgroundTask], Any]) -> BackgroundTask:
        task = self._task = BackgroundTask(f"earthgate: {title}", work)
        # Bound methods alone, here and below: Qt drops them with the page, if it is closed early.
        for signal in (task.result, task.failed, task.cancelled):
            signal.connect(self._end)
        for signal in (self.cancel.clicked, self.destroyed):
            signal.connect(task.stop)
        return task

    def _end(self, *_: Any) -> None:
        self._task = None
        self._update()

    def _test(self) -> None:
        chosen = self.engine.filePath()
        task = self._run(
            "testing the engine",
            lambda task: _diagnosis(chosen, task.isCanceled),
        )
        task.result.connect(self.findings.setHtml)
        task.failed.connect(self.findings.setPlainText)
        task.cancelled.connect(self.findings.clear)
        self.findings.setPlainText("Testing...")
        self._launch(task)

    def _launch(self, task: BackgroundTask) -> None:
        self._update()
        QgsApplication.taskManager().addTask(task)

    def _choose_wheel(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Wheel of earthgate-geo", "", "Wheel (*.whl)")
        self.source.setText(path or self.source.text())

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Folder with earthgate-geo")
        self.source.setText(path or self.source.text())

    def _install(self) -> None:
        source, version = Path(self.source.text().strip()).expanduser(), self._version
        task = self._run(
            "installing the engine",
            lambda task: install_engine(
                source,
                version=version,
                environ=os.environ,
                on_log=task.told.emit,
                is_cancelled=task.isCanceled,
            ),
        )
        task.told.connect(self.log.appendPlainText)
        task.result.connect(self._installed)
        task.failed.connect(self.log.appendPlainText)
        task.cancelled.connect(self._install_cancelled)
        self.log.clear()
        self._launch(task)

    def _install_cancelled(self) -> None:
        self.log.appendPlainText("Cancelled.")

    def _installed(self, *_: Any) -> None:
        self.log.appendPlainText("Installed.")
        self.engine.setFilePath("")  # so that it is found by itself
        self.apply()
        self._applied()
        self._test()


def _diagnosis(chosen: str, is_cancelled: Callable[[], bool]) -> str:
    command = find_engine(chosen, os.environ)
    document = query_engine(["doctor", "--json"], command=command, is_cancelled=is_cancelled)
    with understood():
        return findings(document)


def findings(document: Mapping[str, Any]) -> str:
    """Return what ``earthgate doctor --json`` found as rich text, what is broken first."""
    sound = document["healthy"]
    about = f"earthgate {document['version']}, Python {document['python']}"
    headline = f"{about}: everything works." if sound else f"{about}: something is broken."
    rows = "".join(_finding(check) for check in sorted(document["checks"], key=lambda c: c["ok"]))
    return f"<p><b>{html.escape(headline)}</b></p><table>{rows}</table>"


def _finding(check: Mapping[str, Any]) -> str:
    name, found = html.escape(check["name"]), html.escape(check["found"])
    if check["ok"]:
        return f"<tr><td>&#10003;&nbsp;</td><td>{name}&nbsp;&nbsp;</td><td>{found}</td></tr>"
    advice = f"{found}. To mend it, {html.escape(check['fix'])}."
    return f"<tr><td>&#10007;&nbsp;</td><td><b>{name}</b>&nbsp;&nbsp;</td><td>{advice}</td></tr>"


def _group(title: str, column: QVBoxLayout) -> QVBoxLayout:
    box = QGroupBox(title)
    column.addWidget(box, 1)
    return QVBoxLayout(box)


def _row(*widgets: QWidget, stretched: bool = True) -> QHBoxLayout:
    row = QHBoxLayout()
    for index, widget in enumerate(widgets):
        row.addWidget(widget, int(stretched and index == 0))
    if not stretched:
        row.addStretch()
    return row


def _text(told: str) -> QLabel:
    label = QLabel(told)
    label.setWordWrap(True)
    return label
