"""What the plugin adds to QGIS's window: a button, the panel, and a page in the options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.utils import pluginMetadata

from earthgate_qgis.dock import EarthgateDock
from earthgate_qgis.options_page import OptionsFactory

_ICON = str(Path(__file__).with_name("icon.svg"))


class Gui:
    """The button, the panel and the options page.

    Args:
        iface: QGIS's interface.
    """

    def __init__(self, iface: Any) -> None:
        self._iface = iface
        icon = QIcon(_ICON)
        self.dock = EarthgateDock(iface)
        iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.dock)
        self.dock.hide()
        self.button = self.dock.toggleViewAction()
        self.button.setIcon(icon)
        self.button.setToolTip("Adapt a model to an image and map it")
        iface.addToolBarIcon(self.button)
        iface.addPluginToRasterMenu("earthgate", self.button)
        version = pluginMetadata("earthgate_qgis", "version")
        self._options = OptionsFactory(icon, version, self.dock.ask_for_models)
        iface.registerOptionsWidgetFactory(self._options)

    def unload(self) -> None:
        """Take everything away again, and end what runs."""
        self._iface.unregisterOptionsWidgetFactory(self._options)
        self._iface.removePluginRasterMenu("earthgate", self.button)
        self._iface.removeToolBarIcon(self.button)
        self.dock.unload()
        self._iface.removeDockWidget(self.dock)
        self.dock.deleteLater()
