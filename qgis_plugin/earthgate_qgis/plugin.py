"""What QGIS loads: the algorithms, and where there is a window, the panel, too."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsApplication

from earthgate_qgis.provider import EarthgateProvider


class EarthgatePlugin:
    """The plugin.

    Args:
        iface: QGIS's interface; None in ``qgis_process``, which calls ``initProcessing`` alone.
    """

    def __init__(self, iface: Any) -> None:
        self._iface = iface
        self._provider: EarthgateProvider | None = None
        self._gui: Any = None

    def initProcessing(self) -> None:
        """Add the algorithms."""
        self._provider = EarthgateProvider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:
        """Add everything."""
        from earthgate_qgis.gui import Gui  # noqa: PLC0415  # qgis_process has no windows

        self.initProcessing()
        self._gui = Gui(self._iface)

    def unload(self) -> None:
        """Take everything away."""
        if self._gui is not None:
            self._gui.unload()
            self._gui = None
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
