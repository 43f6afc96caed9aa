"""What the user has chosen, in QGIS's settings."""

from __future__ import annotations

import os

from qgis.core import QgsSettings

from earthgate_qgis.engine import find_engine

_ENGINE_PATH = "earthgate/engine_path"


def engine_path() -> str:
    """Return the chosen executable or Python; empty where none is chosen."""
    return str(QgsSettings().value(_ENGINE_PATH, "") or "")


def set_engine_path(path: str) -> None:
    """Keep the chosen executable or Python; an empty one means: find it."""
    QgsSettings().setValue(_ENGINE_PATH, path.strip())


def command() -> list[str]:
    """Return the words that start the engine.

    Raises:
        EngineError: There is none.
    """
    return find_engine(engine_path(), os.environ)
