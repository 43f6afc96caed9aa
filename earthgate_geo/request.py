"""What a job is asked to do, and the checks that need no torch: they take milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earthgate_geo.errors import InputError, OutputError
from earthgate_geo.raster.cog import check_creation
from earthgate_geo.raster.destination import Destination
from earthgate_geo.raster.read import Scene, SceneOptions, open_scene
from earthgate_geo.recipe import Dacs, Policy, Recipe, Selection, Weighting

ENDINGS = {
    "model": ".safetensors",
    "vector": ".gpkg",
    "adapter": ".safetensors",
    "report": ".html",
    "result": ".json",
    "page": ".md",
}
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

    policy: str = "gate"
    """What trains beside the head, a value of ``recipe.Policy``."""

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
        check_policy(self.policy)
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


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What every training is asked: where it starts, what trains, how long. None is the usual."""

    model: str | None = None
    """Model to start from, by file or name; the packaged model without."""

    model_folder: Path | None = None
    """Further folder in which names are looked up."""

    backbone: str | None = None
    """Backbone to start from in place of a model, by name."""

    weights: str | None = None
    """Checkpoint file of the backbone, or ``published``; random weights without."""

    head: str | None = None
    """Kind of a new head."""

    policy: str = "gate"
    """What trains beside the head, a value of ``recipe.Policy``."""

    steps: int | None = None
    """Optimiser steps."""

    batch: int | None = None
    """Source images in a step of one process, and as many target images."""

    crop_px: int | None = None
    """Height and width of a training crop."""

    learning_rate: float | None = None
    """Rate at the first step."""

    interval: int | None = None
    """Steps between two choices of modules."""

    modules: float | None = None
    """Share of the modules that is open, 0..1."""

    seed: int = 0
    """Seed of everything random."""

    device: str = "auto"
    """Torch device, or ``auto``."""

    overwrite: bool = False
    """Whether existing outputs may be replaced."""

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders in which names of models are looked up, after the packaged ones."""
        return () if self.model_folder is None else (self.model_folder,)

    def check(self) -> None:
        """Refuse starts that exclude or miss one another.

        Raises:
            InputError: As the sentence says.
        """
        check_policy(self.policy)
        if self.model is not None and self.backbone is not None:
            raise InputError(found="--model and --backbone together", expected="one of them")
        if self.weights is not None and self.backbone is None:
            raise InputError(
                found="--weights without --backbone", expected="the backbone that they are of"
            )


@dataclass(frozen=True, kw_only=True)
class BenchRequest(TrainingRequest):
    """Train on a benchmark setting's source and score on its target.

    What is None is as the setting says.
    """

    setting: str
    """Name of the setting."""

    data: Path
    """Folder that holds one folder per dataset."""

    out: Path | None = None
    """Folder for the result as JSON and as Markdown."""

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role."""
        if self.out is None:
            return {}
        stem = f"{self.setting}.{self.policy}.s{self.seed}"
        return {"result": self.out / f"{stem}.json", "page": self.out / f"{stem}.md"}

    def recipe(self, usual: Recipe) -> Recipe:
        """Return the numbers of the training: those of a setting, except where others are given.

        Raises:
            InputError: One is out of range.
        """
        given = {
            "steps": self.steps,
            "batch": self.batch,
            "target_batch": self.batch if usual.target_batch else None,
            "crop_px": self.crop_px,
            "learning_rate": self.learning_rate,
        }
        chosen = {"interval": self.interval, "share": self.modules}
        return replace(
            usual,
            policy=Policy(self.policy),
            seed=self.seed,
            selection=replace(usual.selection, **_said(chosen)),
            **_said(given),
        )

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: A result exists or cannot be written.
            InputError: Options that exclude one another, or an unknown policy.
        """
        super().check()
        check_outputs(self.outputs(), overwrite=self.overwrite, inputs=[])


@dataclass(frozen=True, kw_only=True)
class TrainRequest(TrainingRequest):
    """Train a model on labelled images, and on unlabelled ones of the place it is for.

    What is None is as the papers have it.
    """

    data: Path
    """Folder of labelled images: ``images/`` and ``labels/``, or a ``manifest.csv``."""

    out: Path
    """Model file to write."""

    where: Mapping[str, str] | None = None
    """Wanted value by column of the manifest."""

    target: Path | None = None
    """Folder of images of the target; labels there are never read."""

    target_where: Mapping[str, str] | None = None
    """Wanted value by column of the target's manifest."""

    ignore: tuple[str, ...] = ()
    """Classes of the labels that are unknown pixels."""

    bands: Mapping[str, int] | None = None
    """1-based file band of ``red``, ``green`` and ``blue``."""

    gsd: float | None = None
    """Ground size of a pixel of the source images in metres, where they do not say it."""

    pseudo_weight: Weighting | None = None
    """What a pseudo-labelled pixel of the target weighs."""

    devices: int = 1
    """Processes, each on a device of its own."""

    strategy: str = "auto"
    """How they work together, in Lightning's words."""

    resume: bool = True
    """Whether to go on where an earlier run with the same ``out`` stopped."""

    def inputs(self) -> list[str]:
        """Return the files that are read and must not be written."""
        return [path for path in (self.model, self.weights) if path]

    def recipe(self) -> Recipe:
        """Return all numbers of the training.

        Raises:
            InputError: One is out of range.
        """
        alone = self.target is None
        given = {
            "steps": self.steps,
            "batch": self.batch or (None if alone else 2),
            "crop_px": self.crop_px,
            "learning_rate": self.learning_rate,
        }
        chosen = {"interval": self.interval or (None if alone else 50), "share": self.modules}
        recipe = Recipe(
            seed=self.seed,
            policy=Policy(self.policy),
            selection=Selection(**_said(chosen)),
            **_said(given),
        )
        if alone:
            return recipe
        dacs = Dacs(weighting=self.pseudo_weight or "none")
        return replace(recipe, target_batch=recipe.batch, dacs=dacs)

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: The model file exists or cannot be written.
            InputError: Options that are out of range, or exclude or miss one another.
        """
        super().check()
        if self.target is None and (self.target_where or self.pseudo_weight):
            raise InputError(
                found="--target-where or --pseudo-weight without --target",
                expected="the images that they are about",
            )
        if self.bands is not None and set(self.bands) != {"red", "green", "blue"}:
            raise InputError(
                found=f"--bands for {', '.join(self.bands)}", expected="red, green and blue"
            )
        self.recipe()
        check_outputs({"model": self.out}, overwrite=self.overwrite, inputs=self.inputs())


def check_policy(name: str) -> None:
    """Refuse a policy that there is not.

    Raises:
        InputError: As the sentence says.
    """
    if name not in tuple(Policy):
        raise InputError(found=f"the policy {name!r}", expected=", ".join(Policy))


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


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
