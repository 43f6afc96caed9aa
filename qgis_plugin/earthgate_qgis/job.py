"""What the panel asks of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Files that are read along with one, which the engine does not replace unasked, either.
_SIDECARS = {
    ".tif": ("{path}.aux.xml", "{path}.msk", "{path}.ovr", "{stem}.qml"),
    ".gpkg": ("{path}-journal", "{path}-shm", "{path}-wal"),
}


@dataclass(frozen=True)
class Job:
    """One scene to adapt to and to map."""

    scene: str
    """Path of the image."""

    heights: str
    """Path of the surface model; empty without one."""

    folder: str
    """Where the results go; empty for the image's own folder."""

    model: str
    """File of the model."""

    bands: str
    """Which band shows what, e.g. ``red=1,green=2,blue=3``."""

    minutes: int
    """Longest time to adapt."""

    crs: str
    """Reference system of an image, or heights, that name none; empty otherwise."""

    @property
    def name(self) -> str:
        """The scene's name, which the results get."""
        return Path(self.scene).stem

    @property
    def home(self) -> Path:
        """The folder of the results."""
        return Path(self.folder or Path(self.scene).parent)

    def outputs(self) -> dict[str, str]:
        """Return the files to write, by the engine's names for them."""
        names = {
            "map": f"{self.name}_map.tif",
            "vector": f"{self.name}_map.gpkg",
            "confidence": f"{self.name}_map_conf.tif",
            "adapter": f"{self.name}.adapter.safetensors",
            "report": f"{self.name}_report.html",
        }
        return {role: str(self.home / name) for role, name in names.items()}

    def existing(self) -> list[str]:
        """Return the names of those that exist, and of the sidecars that one has left behind."""
        found = []
        for path in map(Path, self.outputs().values()):
            patterns = ("{path}",) if path.exists() else _SIDECARS.get(path.suffix, ())
            names = [pattern.format(path=path.name, stem=path.stem) for pattern in patterns]
            found += [name for name in names if path.with_name(name).exists()]
        return found

    def arguments(self, *, labels: str = "", field: str = "", overwrite: bool = False) -> list[str]:
        """Return the engine's command line.

        Args:
            labels: File with polygons of known classes, if there are any.
            field: Its field with the class.
            overwrite: Whether existing files may be replaced.
        """
        outputs = self.outputs()
        line = ["adapt", "--src", self.scene, "--dst", outputs["map"]]
        line += ["--vector", outputs["vector"], "--confidence", "--out", outputs["adapter"]]
        line += ["--report", outputs["report"], "--model", self.model, "--bands", self.bands]
        line += ["--minutes", str(self.minutes)]
        line += ["--assume-crs", self.crs] if self.crs else []
        line += ["--dsm", self.heights] if self.heights else []
        if labels:
            line += ["--labels", labels, "--label-field", field]
        return [*line, "--overwrite"] if overwrite else line
