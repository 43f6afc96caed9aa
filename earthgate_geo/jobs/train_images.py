"""The images of a training: found and checked, held out by ground, read in a model's classes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from earthgate_geo.data.label_codes import Code, LabelCodes
from earthgate_geo.data.label_names import LabelOptions
from earthgate_geo.data.labelled_scenes import Reading, open_labelled
from earthgate_geo.data.pairs import Pair, open_pairs
from earthgate_geo.data.patches import (
    Patch,
    PatchDataset,
    check_heights,
    chosen_bands,
    joint_radiometry,
    patches_of,
)
from earthgate_geo.data.problems import Problems
from earthgate_geo.data.split import Split, off_ground, split_by_ground
from earthgate_geo.errors import ClassNameError, DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.grid import Grid
from earthgate_geo.raster.read import Radiometry, SceneOptions, open_scene
from earthgate_geo.recipe import Recipe
from earthgate_geo.training_request import TrainRequest

Document = dict[str, Any]

_HOLDOUT = 0.2
_SHRUNK = 2
"""Most that a crop is enlarged or shrunk by in training: scenes may differ as much."""

_MOST_APART = 16
"""Ratio of ground sizes from which a user should know that they are mixed."""

_MOST_LEFT_OUT = 0.1
"""Share of the patches on both sides of the split from which a user should know of them."""

_Placed = dict[Patch, Grid | None]
"""Patches, each with the grid of its image, None where it lies nowhere."""


@dataclass(frozen=True, kw_only=True)
class TrainImages:
    """What lies in the folders of a training; everything is checked."""

    known: ClassTable
    """Classes of the labels, in the order of their values."""

    ignored: frozenset[str]
    """Those of them that mean unknown."""

    split: Split
    """Labelled patches that train, and that are held out."""

    target_patches: tuple[Patch, ...] | None
    """Of the target's images."""

    gsds_m: tuple[float, ...]
    """Ground sizes of the labelled scenes that say theirs, in metres."""

    radiometry: Mapping[str, Radiometry]
    """Percentiles of scenes that are cut into several images."""

    bands: tuple[int, ...] | None
    """Red, green and blue, where the user names them."""

    heights: bool
    """Whether heights go with the images."""

    holdout: float | None
    """Share of the patches that was to be held out; None where none is."""

    @property
    def classes(self) -> ClassTable:
        """The classes to tell apart."""
        kept = [entry for entry in self.known if entry.name not in self.ignored]
        return ClassTable(tuple(replace(entry, value=i) for i, entry in enumerate(kept)))

    def source(self, classes: ClassTable) -> PatchDataset:
        """Return what trains, in the class values of a model."""
        return self._dataset(self.split.trained, classes)

    def held_out(self, classes: ClassTable) -> PatchDataset | None:
        """Return what never trains, in the class values of a model."""
        return self._dataset(self.split.held_out, classes) if self.split.held_out else None

    def target(self) -> PatchDataset | None:
        """Return the unlabelled images of the target."""
        if self.target_patches is None:
            return None
        return PatchDataset(
            self.target_patches,
            bands=self.bands,
            scaling="scene",
            radiometry=self.radiometry,
            heights=self.heights,
        )

    def gsd_range_m(self) -> tuple[float, float] | None:
        """Return the ground sizes that training shows, in metres; None where nobody knows."""
        if not self.gsds_m:
            return None
        return min(self.gsds_m) / _SHRUNK, max(self.gsds_m) * _SHRUNK

    def about_holdout(self) -> Document | None:
        """Return what is told of held-out ground."""
        if self.holdout is None:
            return None
        held_out, left_out = len(self.split.held_out), self.split.left_out
        share = held_out / (len(self.split.trained) + held_out + left_out)
        return {
            "wanted": self.holdout,
            "share": share,
            "patches": held_out,
            "left_out": left_out,
        }

    def _dataset(self, patches: Iterable[Patch], classes: ClassTable) -> PatchDataset:
        values: dict[Code, int] = {OTHER: UNKNOWN, UNKNOWN: UNKNOWN}
        for entry in self.known:
            ignored = entry.name in self.ignored
            values[entry.value] = UNKNOWN if ignored else classes.value(entry.name)
        return PatchDataset(
            list(patches),
            codes=LabelCodes(values=values),
            bands=self.bands,
            scaling="scene",
            radiometry=self.radiometry,
            heights=self.heights,
        )


def find_images(request: TrainRequest, recipe: Recipe, monitor: Monitor) -> TrainImages:
    """Find, open and check all images of a training.

    Raises:
        EarthgateError: As ``open_pairs`` and ``open_labelled`` say, or nothing is left to train on.
    """
    pairs, folder_classes = open_pairs(request.data, where=request.where, heights=request.dsm)
    if not any(pair.label for pair in pairs):
        raise DataError(
            found=f"{request.data} holds {len(pairs)} images and no labels",
            expected="labels/ with files of the images' names, scene_labels.gpkg or "
            "scene_labels.tif beside scene.tif, or a manifest.csv with a column label",
        )
    reading = _reading(request, recipe)
    targets = _targets(request)
    if request.dsm:
        _check_heights(request, pairs, targets, monitor)
    unlabelled = _unlabelled(targets, reading)
    scenes, known = open_labelled(pairs, folder_classes, reading, monitor=monitor)
    foreign = [name for name in request.ignore if name not in known.names]
    if foreign:
        raise ClassNameError(
            found=f"--ignore {foreign[0]}", expected=f"one of {', '.join(known.names)}"
        )
    labelled = {patch: scene.grid for scene in scenes for patch in scene.patches}
    gsds_m = [scene.grid.gsd().mean_m for scene in scenes if scene.grid]
    if not request.gsd and gsds_m and max(gsds_m) > _MOST_APART * min(gsds_m):
        monitor.warn(
            f"Pixels of {min(gsds_m):.2g} to {max(gsds_m):.2g} m on the ground train together, "
            "each scene at its own; --gsd shows all at one"
        )
    split, share = _split(request, labelled)
    ignored = frozenset(request.ignore)
    _warn_of_split(split, {e.value: e.name for e in known if e.name not in ignored}, monitor)
    held_out = {patch: labelled[patch] for patch in split.held_out}
    return TrainImages(
        known=known,
        ignored=ignored,
        split=split,
        target_patches=_off_ground(unlabelled, held_out, monitor) if unlabelled else None,
        gsds_m=(request.gsd,) if request.gsd else tuple(gsds_m),
        radiometry=joint_radiometry(pairs, bands=reading.bands)
        | joint_radiometry(targets, bands=reading.bands),
        bands=reading.bands,
        heights=request.dsm,
        holdout=share,
    )


def _targets(request: TrainRequest) -> list[Pair]:
    if request.target is None:
        return []
    return open_pairs(request.target, where=request.target_where, heights=request.dsm)[0]


def _check_heights(
    request: TrainRequest, pairs: Sequence[Pair], targets: Sequence[Pair], monitor: Monitor
) -> None:
    if not any(pair.height for pair in pairs):
        raise DataError(
            found=f"--dsm, but no image of {request.data} has heights",
            expected="scene_dsm.tif beside scene.tif, dsm/ with files of the images' names, or a "
            "manifest.csv with a column dsm",
        )
    without = sum(pair.height is None for pair in (*pairs, *targets))
    if without:
        monitor.warn(
            f"{without} of {len(pairs) + len(targets)} images have no heights and train without"
        )


def told(patches: PatchDataset) -> Document:
    """Return what tells a set of images from others, wherever they lie."""
    files = _files(patches)
    lines = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in files]
    images = {patch.pair.image for patch in patches.patches}
    return {"images": len(images), "patches": len(patches), "digest": _digest(lines)}


def stamp_of(patches: PatchDataset) -> str:
    """Return a digest that changes with every part of the images and any change of a file."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in _files(patches)]
    parts = [(str(p.pair.image), p.window, p.network) for p in patches.patches]
    return _digest(map(str, (*files, *parts)))


def _files(patches: PatchDataset) -> list[Path]:
    pairs = dict.fromkeys(patch.pair for patch in patches.patches)
    return [path for pair in pairs for path in pair.files]


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _reading(request: TrainRequest, recipe: Recipe) -> Reading:
    bands = request.bands and tuple(request.bands[name] for name in ("red", "green", "blue"))
    return Reading(
        labels=LabelOptions(
            field=request.label_field, label_class=request.label_class, label_map=request.label_map
        ),
        rest=request.label_rest,
        assume_crs=request.assume_crs,
        bands=bands or None,
        patch_px=recipe.crop_px * (_SHRUNK if recipe.augment else 1),
        gsd_m=request.gsd,
    )


def _unlabelled(pairs: Sequence[Pair], reading: Reading) -> _Placed:
    """Cut images into patches; all of them are checked before any is refused."""
    problems = Problems(len(pairs), expected="images with bands that can be read")
    found: _Placed = {}
    for pair in pairs:
        with problems.of(pair.image):
            found |= _cut(replace(pair, label=None), reading)
    problems.tell()
    return found


def _cut(pair: Pair, reading: Reading) -> _Placed:
    placed = True
    try:
        image = open_scene(pair.image, SceneOptions(assume_crs=reading.assume_crs))
    except DataError:  # it does not say where it lies
        placed, image = False, open_scene(pair.image, SceneOptions(placed=False))
    with image:
        chosen_bands(image, reading.bands)
        if pair.height is not None:
            check_heights(pair, image)
        patches = patches_of(pair, image, reading.patch_px, gsd_m=reading.gsd_m)
    return dict.fromkeys(patches, image.grid if placed else None)


def _off_ground(found: _Placed, held_out: _Placed, monitor: Monitor) -> tuple[Patch, ...]:
    """Return the target's patches that do not show held-out ground: that never trains."""
    kept = off_ground(
        list(found),
        list(found.values()),
        held_out=list(held_out),
        held_out_grids=list(held_out.values()),
    )
    if not kept:
        raise DataError(
            found="a target whose images all show held-out ground",
            expected="images of other ground, too",
            fix="Pass --holdout 0 to hold none out",
        )
    if len(kept) < len(found):
        monitor.warn(
            f"{len(found) - len(kept)} of {len(found)} patches of the target show held-out ground "
            "and do not train"
        )
    return kept


def _split(request: TrainRequest, labelled: _Placed) -> tuple[Split, float | None]:
    if not labelled:
        raise DataError(
            found=f"{request.data} has no labelled pixel", expected="labels on valid pixels"
        )
    share = _HOLDOUT if request.holdout is None else request.holdout
    whole = Split(trained=tuple(labelled), held_out=())
    if not share:
        return whole, None
    split = split_by_ground(list(labelled), list(labelled.values()), share=share, seed=request.seed)
    if split.held_out:
        return split, share
    if request.holdout is not None:
        raise InputError(
            found=f"--holdout {share:g} of images that all share their ground",
            expected="two or more places",
            fix="Pass --holdout 0 to train on all of it",
        )
    return whole, None


def _warn_of_split(split: Split, classes: Mapping[int, str], monitor: Monitor) -> None:
    """Tell which classes, by their values, are missing on a side, and whether much lies on both."""
    unseen = _unseen(split.trained, classes)
    if unseen:
        monitor.warn(f"No pixel to train on is {' or '.join(unseen)}: the model cannot learn it")
    unscored = _unseen(split.held_out, classes) if split.held_out else []
    if unscored:
        monitor.warn(
            f"No held-out pixel is {' or '.join(unscored)}: how well the model finds it is unknown"
        )
    patches = len(split.trained) + len(split.held_out) + split.left_out
    if split.left_out > _MOST_LEFT_OUT * patches:
        monitor.warn(
            f"{split.left_out} of {patches} patches lie in part on held-out ground: they neither "
            "train nor score; --holdout 0 trains on all"
        )


def _unseen(patches: Iterable[Patch], classes: Mapping[int, str]) -> list[str]:
    """Return the classes that no patch shows; where none is missing, few files are read."""
    unseen = dict(classes)
    for patch in patches:
        if unseen and patch.labels is not None and patch.window is not None:
            labels = patch.labels.read(patch.window)
            patch.labels.close()
            if unseen.keys() & set(np.unique(labels).tolist()):
                with open_scene(patch.pair.image, SceneOptions(placed=False)) as image:
                    valid = image.read_valid(patch.window)
                for value in np.unique(labels[valid]).tolist():
                    unseen.pop(value, None)
    return list(unseen.values())
