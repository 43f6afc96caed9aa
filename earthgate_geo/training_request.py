"""What a training is asked to do, and the checks that need no torch: they take milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earthgate_geo.errors import InputError
from earthgate_geo.recipe import (
    Dacs,
    MultiTask,
    Policy,
    Recipe,
    Selection,
    Styles,
    Weighting,
    published,
)
from earthgate_geo.request import check_outputs, check_policy


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

    policy: str | None = "gate"
    """What trains beside the head, a value of ``recipe.Policy``; None is the recipe's."""

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
        if self.policy is not None:
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
            "batch": self.batch,
            "target_batch": self.batch if usual.target_batch else None,
            "crop_px": self.crop_px,
            "learning_rate": self.learning_rate,
        }
        chosen = {"interval": self.interval, "share": self.modules}
        return replace(
            usual.over(self.steps or usual.steps),
            policy=Policy(self.policy) if self.policy else usual.policy,
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
    """Folder of labelled images, as ``data.pairs.open_pairs`` reads it."""

    out: Path
    """Model file to write."""

    report: Path | None = None
    """HTML page to write."""

    command: str = ""
    """Command line, for the report."""

    recipe_name: str | None = None
    """A published recipe; what is given beside it wins."""

    label_field: str | None = None
    """Field of vector labels that holds the class."""

    label_class: str | None = None
    """Class of all vector labels."""

    label_map: Mapping[str, str] | None = None
    """Class by word or code of the labels; ``other`` is unknown."""

    label_rest: str | None = None
    """Class of ground that vector labels do not cover; unknown without."""

    assume_crs: str | None = None
    """CRS of images that name none."""

    holdout: float | None = None
    """Share of the ground, 0..1, that never trains and is scored on; None is 0.2, or nothing where
    all images share their ground."""

    styles: Path | None = None
    """Styles that images are mixed with, a file of ``earthgate styles build``."""

    multitask: bool = False
    """Whether to learn to reconstruct hidden parts of the images, too."""

    extractor: bool = False
    """Whether an extractor helps with that, our reading of a figure of the paper."""

    dsm: bool = False
    """Whether the heights of the images go with them: ``<stem>_dsm``, the folder ``dsm`` or the
    column ``dsm`` of the manifest. Images without any train with missing heights."""

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
    """Ground size in metres at which all images are shown, and of pixels that do not say theirs."""

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
        styles = None if self.styles is None else str(self.styles)
        return [path for path in (self.model, self.weights, styles) if path]

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role."""
        return {"model": self.out} | ({"report": self.report} if self.report else {})

    def recipe(self) -> Recipe:
        """Return all numbers of the training.

        Raises:
            InputError: One is out of range, styles are to be injected and there are none, or an
                extractor is to help with nothing.
        """
        usual = published(self.recipe_name) if self.recipe_name else Recipe()
        if usual.styles and self.styles is None:
            raise InputError(
                found=f"--recipe {self.recipe_name} without --styles",
                expected="the styles that it mixes images with",
                fix="Make them from a folder of images: earthgate styles build",
            )
        if self.styles:
            usual = replace(usual, styles=usual.styles or Styles())
        usual = replace(usual, multitask=self._multitask(usual.multitask))
        alone = self.target is None
        given = {
            "batch": self.batch or (None if alone else 2),
            "crop_px": self.crop_px,
            "learning_rate": self.learning_rate,
        }
        chosen = {"interval": self.interval or (None if alone else 50), "share": self.modules}
        recipe = replace(
            usual.over(self.steps or usual.steps),
            seed=self.seed,
            policy=Policy(self.policy) if self.policy else usual.policy,
            selection=Selection(**_said(chosen)),
            **_said(given),
        )
        if alone:
            return recipe
        dacs = Dacs(weighting=self.pseudo_weight or "none")
        return replace(recipe, target_batch=recipe.batch, dacs=dacs)

    def _multitask(self, usual: MultiTask | None) -> MultiTask | None:
        if self.multitask:
            usual = usual or MultiTask()
        if not self.extractor:
            return usual
        if usual is None:
            raise InputError(found="--extractor without --multitask", expected="both or neither")
        return replace(usual, extractor=True)

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: The model file exists or cannot be written.
            InputError: Options that are out of range, or exclude or miss one another.
        """
        super().check()
        if self.label_class and (self.label_field or self.label_class == self.label_rest):
            raise InputError(
                found=f"--label-class {self.label_class} with --label-field or as --label-rest",
                expected="one class for shapes without a field, and another one for the rest",
            )
        if self.target is None and (self.target_where or self.pseudo_weight):
            raise InputError(
                found="--target-where or --pseudo-weight without --target",
                expected="the images that they are about",
            )
        if self.bands is not None and set(self.bands) != {"red", "green", "blue"}:
            raise InputError(
                found=f"--bands for {', '.join(self.bands)}", expected="red, green and blue"
            )
        if self.holdout is not None and not 0 <= self.holdout < 1:
            raise InputError(found=f"--holdout {self.holdout:g}", expected="a share in 0..1")
        self._check_heights(self.recipe())
        check_outputs(self.outputs(), overwrite=self.overwrite, inputs=self.inputs())

    def _check_heights(self, recipe: Recipe) -> None:
        if recipe.policy.needs_heights and not self.dsm:
            raise InputError(
                found=f"--policy {recipe.policy} without --dsm",
                expected="images with heights",
                fix="Pass --dsm, or another policy",
            )
        if self.dsm and recipe.multitask:
            raise InputError(
                found="--dsm with a reconstruction of the images beside the classes",
                expected="one of them",
                fix="Leave out --multitask, or the recipe that has it",
            )


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
