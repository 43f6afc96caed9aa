"""earthgate in Processing: the toolbox, models, batches and ``qgis_process``."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from earthgate_qgis.algorithms import ALGORITHMS

ICON = str(Path(__file__).with_name("icon.svg"))


class EarthgateProvider(QgsProcessingProvider):
    """The provider ``earthgate``."""

    def id(self) -> str:
        """Return what stands before the colon."""
        return "earthgate"

    def name(self) -> str:
        """Return what the toolbox shows."""
        return "earthgate"

    def icon(self) -> QIcon:
        """Return the icon of the toolbox."""
        return QIcon(ICON)

    def svgIconPath(self) -> str:
        """Return the icon of the modeler."""
        return ICON

    def loadAlgorithms(self) -> None:
        """Add one of each; called by QGIS."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        """Return the ending of a map; the engine writes COGs."""
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """Return the endings of polygons, the usual one first."""
        return ["gpkg", "fgb", "parquet"]

    def supportsNonFileBasedOutput(self) -> bool:
        """Say that outputs are files, not tables of a database."""
        return False
