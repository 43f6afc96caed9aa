"""What a job is asked to do, and the checks that need no torch: they take milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from earthgate_geo.errors import InputError, OutputError
from earthgate_geo.raster.cog import check_creation
from earthgate_geo.raster.destination import Destination
from earthgate_geo.raster.read import Scene, SceneOptions, open_scene

ENDINGS = {"vector": ".gpkg", "adapter": ".safetensors", "report": ".html"}
"""Ending of an output by role; rasters end in ``.tif``. So no two outputs of a run are one."""


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """Map a scene with a model as it is."""

    src: str
    """Path of the scene."""

    dst: Path | None = None
    """Map to write; only an adaptation can do without."""

    model: str | None = None
    """Model or adapter by file or name; the packaged model without."""

    model_folder: Path | None = None
    """Further folder in which names are looked up."""

    vector: Path | None = None
    """GeoPackage to write."""

    confidence: bool = False
    """Whether to write ``<dst stem>_conf.tif``."""

    probs: bool = False
    """Whether to write ``<dst stem>_probs.tif``."""

    bands: Mapping[str, int] | None = None
    """1-based file band by meaning."""

    nodata: float | None = None
    """Value of gaps where the file names none."""

    gsd: float | None = None
    """Forced ground size that the network sees, in metres; None keeps to the model's range."""

    assume_crs: str | None = None
    """CRS of a scene without one."""

    device: str = "auto"
    """Torch device, or ``auto``."""

    creation: Mapping[str, str] = field(default_factory=dict)
    """Creation options of GDAL's COG driver."""

    overwrite: bool = False
    """Whether existing outputs may be replaced."""

    def open(self) -> Scene:
        """Open the scene.

        Raises:
            InputError, DataError: As ``open_scene``.
        """
        options = SceneOptions(bands=self.bands, nodata=self.nodata, assume_crs=self.assume_crs)
        return open_scene(self.src, options)

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders in which names of models are looked up, after the packaged ones."""
        return () if self.model_folder is None else (self.model_folder,)

    def inputs(self) -> list[str]:
        """Return the files that are read and must not be written."""
        return [self.src, *([self.model] if self.model else [])]

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role."""
        wanted: dict[str, Path | None] = {"map": self.dst, "vector": self.vector}
        if self.dst is not None:
            asked = {"confidence": ("conf", self.confidence), "probs": ("probs", self.probs)}
            wanted |= {
                role: self.dst.with_name(f"{self.dst.stem}_{ending}.tif")
                for role, (ending, given) in asked.items()
                if given
            }
        return {role: path for role, path in wanted.items() if path is not None}

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: An output exists, cannot be written, is an input, or ends wrongly.
            InputError: Options that exclude or miss one another.
            DataError: The scene cannot be opened or used.
        """
        if self.dst is None and (self.vector or self.confidence or self.probs):
            raise InputError(
                found="--vector, --confidence or --probs without --dst",
                expected="a map that they are made from",
                fix="Add --dst map.tif",
            )
        check_creation(self.creation)
        check_outputs(self.outputs(), overwrite=self.overwrite, inputs=self.inputs())
        self.open().close()


@dataclass(frozen=True, kw_only=True)
class AdaptRequest(MapRequest):
    """Adapt a model to a scene, then map it."""

    out: Path | None = None
    """Adapter file; by default ``<scene>.adapter.safetensors`` beside ``dst``."""

    report: Path | None = None
    """HTML page to write."""

    labels: str | None = None
    """Vector or raster of known classes."""

    label_field: str | None = None
    """Field that holds the class."""

    label_class: str | None = None
    """Class of all labels."""

    label_map: Mapping[str, str] | None = None
    """Class by code of the labels."""

    minutes: float | None = None
    """Time after which training stops."""

    steps: int | None = None
    """Optimiser steps; None sizes them to 3 minutes on 2 cores."""

    seed: int = 0
    """Seed of everything random."""

    command: str = ""
    """Command line, for the report."""

    def inputs(self) -> list[str]:
        """Return the files that are read and must not be written."""
        return [*super().inputs(), *([self.labels] if self.labels else [])]

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role; the adapter file is always one of them."""
        folder = self.dst.parent if self.dst else Path()
        adapter = self.out or folder / f"{Path(self.src).stem}.adapter.safetensors"
        report = {"report": self.report} if self.report else {}
        return {**super().outputs(), "adapter": adapter, **report}

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError, InputError, DataError: As ``MapRequest.check``.
        """
        if self.minutes is not None and self.steps is not None:
            raise InputError(
                found="--minutes and --steps together",
                expected="one of them",
                fix="Give --steps to repeat a run exactly, or --minutes to end in time",
            )
        if self.labels is None and (self.label_field or self.label_class or self.label_map):
            raise InputError(
                found="--label-field, --label-class or --label-map without --labels",
                expected="the labels that they are about",
                fix="Add --labels polygons.gpkg",
            )
        super().check()


@dataclass(frozen=True, kw_only=True)
class VectorizeRequest:
    """Turn a map into polygons."""

    map: str
    """Map that earthgate wrote."""

    dst: Path
    """GeoPackage to write."""

    overwrite: bool = False
    """Whether an existing one may be replaced."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Compare a map with known classes."""

    map: str
    """Map that earthgate wrote."""

    labels: str
    """Vector or raster of known classes."""

    label_field: str | None = None
    """Field that holds the class."""

    label_class: str | None = None
    """Class of all labels."""

    label_map: Mapping[str, str] | None = None
    """Class by code of the labels."""


def check_outputs(outputs: Mapping[str, Path], *, overwrite: bool, inputs: list[str]) -> None:
    """Refuse outputs that cannot or must not be written, without touching anything.

    Raises:
        OutputError: One exists, is an input, has the ending of another kind of file, or its
            folder is missing or not writable.
    """
    for role, path in outputs.items():
        ending = ENDINGS.get(role, ".tif")
        if path.suffix.lower() != ending:
            raise OutputError(found=f"{path} for the {role}", expected=f"a name ending in {ending}")
        Destination(path, overwrite=overwrite, inputs=inputs).check()
