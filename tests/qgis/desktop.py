"""Runs inside QGIS (``qgis --code``): add layers as its browser does, save the window, quit."""

import os
import traceback

from qgis.core import QgsProject, QgsProviderRegistry, QgsProviderSublayerDetails
from qgis.PyQt.QtCore import QTimer
from qgis.utils import iface

PATIENCE_MS = 30_000
SETTLE_MS = 1_000  # the window and its panels go on moving for a while


def main() -> None:
    project, canvas, window = QgsProject.instance(), iface.mapCanvas(), iface.mainWindow()
    window.showMaximized()
    window.setGeometry(window.screen().geometry())  # no window manager does it under Xvfb
    options = QgsProviderSublayerDetails.LayerOptions(project.transformContext())
    for path in os.environ["EARTHGATE_LAYERS"].split(os.pathsep):
        for layer in QgsProviderRegistry.instance().querySublayers(path):
            project.addMapLayer(layer.toLayer(options))

    def save() -> None:
        for node in project.layerTreeRoot().findLayers():
            node.setExpanded(False)  # QGIS forgets to draw the last one's expanded state
            node.setExpanded(True)
        saved = window.grab().save(os.environ["EARTHGATE_PICTURE"])
        os._exit(0 if saved else 1)  # an orderly exit of QGIS can crash on what a script holds

    canvas.mapCanvasRefreshed.connect(lambda: QTimer.singleShot(SETTLE_MS, save))
    QTimer.singleShot(PATIENCE_MS, lambda: os._exit(1))
    canvas.zoomToFullExtent()


try:
    main()
except Exception:  # noqa: BLE001  # QGIS would stay open with a message box
    traceback.print_exc()
    os._exit(1)
