"""Adapt a vision model to a scene and map it, from QGIS."""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Return the plugin; QGIS calls this with its interface, ``qgis_process`` with None."""
    from earthgate_qgis.plugin import EarthgatePlugin  # noqa: PLC0415  # engine.py needs no QGIS

    return EarthgatePlugin(iface)
