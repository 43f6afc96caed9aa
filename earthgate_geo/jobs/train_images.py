"""The images of a training: found and checked, held out by ground, read in a model's classes."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from earthgate_geo.data.label_codes import Code, LabelCodes
from earthgate_geo.data.label_names import LabelOptions
from earthgate_geo.data.labelled_scenes import Reading, open_labelled
from earthgate_geo.data.pairs import Pair, open_pairs
from earthgate_geo.data.patches import Patch, PatchDataset, joint_radiometry, patches_of
from earthgate_geo.data.split import Split, split_by_ground
from earthgate_geo.errors import ClassNameError, DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.read import Radiometry, SceneOptions, open_scene
from earthgate_geo.recipe import Recipe
from earthgate_geo.training_request import TrainRequest

Document = dict[str, Any]

_HOLDOUT = 0.2
_SHRUNK = 2
"""Most that a crop is enlarged or shrunk by in training: scenes may differ as much."""

_MOST_APART = 16
"""Ratio of ground sizes from which a user should know that they are mixed."""


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

    holdout: float | None
    """Share of the ground that was to be held out; None where none is."""

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
            self.target_patches, bands=self.bands, scaling="scene", radiometry=self.radiometry
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
        counts = {"patches": len(self.split.held_out), "left_out": self.split.left_out}
        return {"share": self.holdout, **counts}

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
        )


def find_images(request: TrainRequest, recipe: Recipe, monitor: Monitor) -> TrainImages:
    """Find, open and check all images of a training.

    Raises:
        EarthgateError: As ``open_pairs`` and ``open_labelled`` say, or nothing is left to train on.
    """
    pairs, folder_classes = open_pairs(request.data, where=request.where)
    if not any(pair.label for pair in pairs):
        raise DataError(
            found=f"{request.data} holds {len(pairs)} images and no labels",
            expected="labels/ with files of the images' names, scene_labels.gpkg or "
            "scene_labels.tif beside scene.tif, or a manifest.csv with a column label",
        )
    reading = _reading(request, recipe)
    targets = open_pairs(request.target, where=request.target_where)[0] if request.target else None
    scenes, known = open_labelled(pairs, folder_classes, reading, monitor=monitor)
    foreign = [name for name in request.ignore if name not in known.names]
    if foreign:
        raise ClassNameError(
            found=f"--ignore {foreign[0]}", expected=f"one of {', '.join(known.names)}"
        )
    patches = [patch for scene in scenes for patch in scene.patches]
    grids = [scene.grid for scene in scenes for _ in scene.patches]
    gsds_m = [scene.grid.gsd().mean_m for scene in scenes if scene.grid]
    if not request.gsd and gsds_m and max(gsds_m) > _MOST_APART * min(gsds_m):
        monitor.warn(
            f"Pixels of {min(gsds_m):.2g} to {max(gsds_m):.2g} m on the ground train together, "
            "each scene at its own; --gsd shows all at one"
        )
    split, share = _split(request, patches, grids)
    return TrainImages(
        known=known,
        ignored=frozenset(request.ignore),
        split=split,
        target_patches=None if targets is None else _unlabelled(targets, reading),
        gsds_m=(request.gsd,) if request.gsd else tuple(gsds_m),
        radiometry=joint_radiometry([*pairs, *(targets or ())], bands=reading.bands),
        bands=reading.bands,
        holdout=share,
    )


def told(patches: PatchDataset) -> Document:
    """Return what tells a set of images from others."""
    pairs = list(dict.fromkeys(patch.pair for patch in patches.patches))
    files = [path for pair in pairs for path in (pair.image, pair.label) if path is not None]
    lines = "\n".join(f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in files)
    return {
        "images": len(pairs),
        "patches": len(patches),
        "digest": hashlib.sha256(lines.encode()).hexdigest(),
    }


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


def _unlabelled(pairs: list[Pair], reading: Reading) -> tuple[Patch, ...]:
    patches: list[Patch] = []
    for pair in pairs:
        bare = replace(pair, label=None)
        try:
            image = open_scene(pair.image, SceneOptions(assume_crs=reading.assume_crs))
        except DataError:  # it does not say where it lies
            image = open_scene(pair.image, SceneOptions(placed=False))
        with image:
            patches += patches_of(bare, image, reading.patch_px, gsd_m=reading.gsd_m)
    return tuple(patches)


def _split(
    request: TrainRequest, patches: list[Patch], grids: list[Any]
) -> tuple[Split, float | None]:
    if not patches:
        raise DataError(
            found=f"{request.data} has no labelled pixel", expected="labels on valid pixels"
        )
    share = _HOLDOUT if request.holdout is None else request.holdout
    whole = Split(trained=tuple(patches), held_out=())
    if not share:
        return whole, None
    split = split_by_ground(patches, grids, share=share, seed=request.seed)
    if split.held_out:
        return split, share
    if request.holdout is not None:
        raise InputError(
            found=f"--holdout {share:g} of images that all share their ground",
            expected="two or more places",
            fix="Pass --holdout 0 to train on all of it",
        )
    return whole, None
