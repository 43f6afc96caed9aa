"""Runs inside QGIS (``qgis --code``): press the panel's button as a user does, save what is seen.

EARTHGATE_SCENE is the image, EARTHGATE_FOLDER where dock.png, running.png, result.png and
seen.json go; EARTHGATE_LABELS may be polygons, EARTHGATE_MINUTES more than one.
"""

import json
import os
import traceback
from functools import wraps
from pathlib import Path

from qgis.core import QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QApplication, QDockWidget
from qgis.utils import iface

POLL_MS = 100
SETTLE_MS = 1_500  # the window, its panels and the map go on moving for a while
FOLDER = Path(os.environ["EARTHGATE_FOLDER"])


def guarded(step):
    @wraps(step)
    def run():
        try:
            step()
        except Exception:  # noqa: BLE001  # QGIS would stay open with a message box
            traceback.print_exc()
            os._exit(1)

    return run


def later(milliseconds, step):
    QTimer.singleShot(milliseconds, guarded(step))


def when(condition, step):
    later(POLL_MS, lambda: step() if condition() else when(condition, step))


def save(name):
    QApplication.processEvents()
    iface.mainWindow().grab().save(str(FOLDER / f"{name}.png"))


def panel():
    return iface.mainWindow().findChild(QDockWidget, "EarthgateDock")


def open_panel():
    window, project = iface.mainWindow(), QgsProject.instance()
    window.showMaximized()
    window.setGeometry(window.screen().geometry())  # no window manager does it under Xvfb
    path = Path(os.environ["EARTHGATE_SCENE"])
    layer = QgsRasterLayer(str(path), path.stem)
    project.addMapLayer(layer)
    if labels := os.environ.get("EARTHGATE_LABELS"):
        polygons = QgsVectorLayer(labels, Path(labels).stem, "ogr")
        project.addMapLayer(polygons)
        panel().form.labels.setLayer(polygons)
    iface.setActiveLayer(layer)
    iface.zoomToActiveLayer()
    panel().toggleViewAction().trigger()
    panel().form.minutes.setValue(int(os.environ.get("EARTHGATE_MINUTES", "1")))
    when(panel().start.isEnabled, lambda: later(SETTLE_MS, press))


def press():
    save("dock")
    panel().start.click()
    when(lambda: panel().progress.value() > 0 or not panel().task, watch)


def watch():
    later(SETTLE_MS, lambda: save("running"))
    when(lambda: not panel().task, lambda: later(2 * SETTLE_MS, finish))


def finish():
    save("result")
    groups = QgsProject.instance().layerTreeRoot().findGroups()
    seen = {
        "summary": panel().summary.text(),
        "messages": [item.text() for item in iface.messageBar().items()],
        "groups": [group.name() for group in groups],
        "layers": [_seen(node) for group in groups for node in group.findLayers()],
    }
    (FOLDER / "seen.json").write_text(json.dumps(seen))
    os._exit(0)  # an orderly exit of QGIS can crash on what a script holds


def _seen(node):
    renderer = node.layer().renderer()
    entries = {
        "paletted": lambda: [(e.label, e.color.name()) for e in renderer.classes()],
        "categorizedSymbol": lambda: [
            (e.label(), e.symbol().color().name()) for e in renderer.categories()
        ],
    }
    return {
        "name": node.name(),
        "visible": node.isVisible(),
        "renderer": renderer.type(),
        "classes": entries.get(renderer.type(), list)(),
    }


later(SETTLE_MS, open_panel)
