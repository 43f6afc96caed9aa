"""Scenes with the labels that users have: all of them are checked before any of them trains."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.data.label_codes import Code, LabelCodes
from earthgate_geo.data.label_names import LabelNames, LabelOptions
from earthgate_geo.data.label_raster import names_nodata
from earthgate_geo.data.label_shapes import shape_count, shape_words
from earthgate_geo.data.labels import LabelLayer, open_labels, shapes_layer
from earthgate_geo.data.pairs import Pair, is_raster, table_of
from earthgate_geo.data.patches import (
    Patch,
    check_heights,
    check_size,
    chosen_bands,
    patches_of,
)
from earthgate_geo.data.problems import Problems
from earthgate_geo.errors import ClassNameError, DataError, InputError
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.grid import Grid, Window
from earthgate_geo.raster.read import Scene, SceneOptions, open_scene

_OTHER_NAME = "other"
_CLASSES_TAG = "EARTHGATE_CLASSES"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a folder's scenes and labels are read."""

    labels: LabelOptions = field(default_factory=LabelOptions)
    """What the user says about label files."""

    rest: str | None = None
    """Class of ground that no shape of a vector file covers; unknown without."""

    assume_crs: str | None = None
    """CRS of scenes that name none."""

    bands: tuple[int, ...] | None = None
    """Three 1-based file bands; without, each file says which are red, green and blue."""

    patch_px: int
    """Side of the patches, in pixels that a network sees."""

    gsd_m: float | None = None
    """Ground size of these in metres; every scene's own without."""


@dataclass(frozen=True, kw_only=True)
class LabelledScene:
    """A scene that can train."""

    patches: tuple[Patch, ...]
    """Those with a label on a valid pixel; their labels are values of the folder's classes."""

    grid: Grid | None
    """Where it lies; None where nobody knows."""


def open_labelled(
    pairs: Sequence[Pair], classes: ClassTable | None, reading: Reading, *, monitor: Monitor
) -> tuple[list[LabelledScene], ClassTable]:
    """Open and check all scenes and labels of a folder.

    A raster of labels that has its scene's size and place, or no place, lies on it pixel on pixel
    and every code counts; another one, and every vector, is brought onto the scene, as
    ``open_labels`` does. A code means what the map says, else the raster's own table of classes,
    else the folder's; 255 is unknown, 254 other, and nodata unknown unless one of these names it.
    Every label is read twice.

    Args:
        pairs: Scenes and label files.
        classes: Classes by code; without, the labels' own names, sorted.
        reading: How they are read.
        monitor: Told of every scene in the stage ``check``.

    Returns:
        The scenes in their order, and the classes.

    Raises:
        EarthgateError: One file cannot be used: its own error. Several: a ``DataError`` whose
            notes are the sentences about them, one per file.
    """
    _check_options(pairs, reading)
    problems = Problems(len(pairs), expected="scenes and labels that fit each other")
    folder = classes
    if classes is None:
        classes = _own_classes(pairs, reading, problems)
    elif reading.rest is not None and reading.rest not in classes.names:
        raise ClassNameError(
            found=f"--label-rest {reading.rest}", expected=f"one of {', '.join(classes.names)}"
        )
    scenes = []
    monitor.stage("check", len(pairs))
    for done, pair in enumerate(pairs, 1):
        if not problems.has(pair.image):
            with problems.of(pair.image):
                scenes.append(_opened(pair, _Meaning(classes, folder), reading))
        monitor.update(done)
    problems.tell()
    return scenes, classes


@dataclass(frozen=True)
class _Meaning:
    """What labels can mean."""

    classes: ClassTable
    """All classes."""

    by_code: ClassTable | None
    """The same, where a raster's codes are their values."""


def _check_options(pairs: Sequence[Pair], reading: Reading) -> None:
    """Refuse options that are about vectors where there is none."""
    drawn = reading.labels.field or reading.labels.label_class or reading.rest
    if drawn and all(pair.label is None or is_raster(pair.label) for pair in pairs):
        raise InputError(
            found="--label-field, --label-class or --label-rest, but all labels are rasters",
            expected="vector labels",
            fix="Say which code is which class, e.g. --label-map 1=building,0=background",
        )


def _own_classes(pairs: Iterable[Pair], reading: Reading, problems: Problems) -> ClassTable:
    """Return the classes that the labels name themselves."""
    words: set[str] = set()
    read: set[Path] = set()
    for pair in pairs:
        if pair.label is not None and pair.label not in read:
            with problems.of(pair.image):
                words |= _words(pair.label, reading)
            read.add(pair.label)
    classes = sorted((words | {reading.rest or _OTHER_NAME}) - {_OTHER_NAME})
    if len(classes) < 2:
        problems.tell()
        raise DataError(
            found=f"labels that name {classes[0] if classes else 'nothing'} and no other class",
            expected="two classes or more to tell apart",
            fix="Say what the ground without labels is, e.g. --label-rest background",
        )
    return table_of(classes)


def _words(path: Path, reading: Reading) -> set[str]:
    """Return the classes that a label file names, as the map calls them."""
    translation = reading.labels.label_map or {}
    layer = shapes_layer(str(path))
    if layer is not None:
        said = shape_words(str(path), layer, reading.labels)
        return {translation.get(word, word) for word in said}
    with _unplaced(path) as raster:
        table = raster.tags.get(_CLASSES_TAG)
    if table is None and not translation:
        raise DataError(
            found="rasters of labels without names of their codes",
            expected='a classes.json in the folder, e.g. {"0": "water", "1": "land"}',
            fix="Or name them with --label-map 0=water,1=land",
        )
    named = ClassTable.from_json(table).names if table else ()
    return {*(translation.get(name, name) for name in named), *translation.values()}


def _opened(pair: Pair, meaning: _Meaning, reading: Reading) -> LabelledScene:
    if pair.label is None:
        raise DataError(found=f"{pair.image} has no labels", expected="labelled images to train on")
    scene, misplaced = _placed(pair.image, reading.assume_crs)
    with scene:
        chosen_bands(scene, reading.bands)
        if pair.height is not None:
            check_heights(pair, scene)
        labels = _labels(pair, scene, misplaced, meaning, reading)
        with closing(labels):
            patches = tuple(
                replace(patch, labels=labels)
                for patch in patches_of(pair, scene, reading.patch_px, gsd_m=reading.gsd_m)
                if patch.window and _teaches(labels, scene, patch.window)
            )
    grid = None if misplaced else scene.grid
    return LabelledScene(patches=patches, grid=grid)


def _teaches(labels: LabelLayer, scene: Scene, window: Window) -> bool:
    """Tell whether a class is known of a valid pixel."""
    known = labels.read(window) < OTHER
    return bool(known.any() and (known & scene.read_valid(window)).any())


def _placed(path: Path, assume_crs: str | None) -> tuple[Scene, DataError | None]:
    """Open a scene; where it does not say its place, without one, and with the reason."""
    try:
        return open_scene(path, SceneOptions(assume_crs=assume_crs)), None
    except DataError as error:
        return _unplaced(path), error


def _unplaced(path: Path) -> Scene:
    return open_scene(path, SceneOptions(placed=False))


def _labels(
    pair: Pair,
    scene: Scene,
    misplaced: DataError | None,
    meaning: _Meaning,
    reading: Reading,
) -> LabelLayer:
    path, classes = str(pair.label), meaning.classes
    layer = shapes_layer(path)
    if layer is None:
        codes = _code_names(path, meaning, reading.labels)
        if misplaced or _pixel_on_pixel(path, scene.grid):
            source = _PixelCodes(pair, scene, LabelNames(classes, codes))
            return LabelLayer(source, scene.grid.size, classes)
        by_code = LabelOptions(label_map={str(OTHER): _OTHER_NAME} | codes)
        return _named(path, scene.grid, meaning, by_code)
    if misplaced:
        raise misplaced
    if reading.rest is None:
        return _named(path, scene.grid, meaning, reading.labels)
    empty = not shape_count(path, layer)  # a place where none of the things is
    drawn = None if empty else _named(path, scene.grid, meaning, reading.labels)
    return LabelLayer(_Filled(drawn, classes.value(reading.rest)), scene.grid.size, classes)


def _named(path: str, grid: Grid, meaning: _Meaning, options: LabelOptions) -> LabelLayer:
    try:
        return open_labels(path, grid, meaning.classes, options)
    except ClassNameError as error:  # its way on is to train
        if meaning.by_code is None:  # then all words are known, and some codes are not
            raise ClassNameError(
                found=error.found.replace(
                    "names classes that the model lacks", "holds codes without a name"
                ),
                expected=error.expected,
                fix="Name them with --label-map",
            ) from error
        raise ClassNameError(
            found=error.found.replace("the model lacks", "are not in classes.json"),
            expected=error.expected,
            fix="Rename them with --label-map, or add them to classes.json",
        ) from error


def _pixel_on_pixel(path: str, grid: Grid) -> bool:
    """Tell whether a raster of labels has the pixels of a scene, or does not say which it has."""
    try:
        with open_scene(path) as raster:
            there = raster.grid
    except DataError:
        return True
    if there.size != grid.size or there.crs != grid.crs:
        return False
    corners = [(0, 0), (grid.size.cols, 0), (0, grid.size.rows), (grid.size.cols, grid.size.rows)]
    moved = [np.subtract(~grid.transform @ (there.transform @ c), c) for c in corners]
    return bool(np.abs(moved).max() < 0.5)  # of a pixel


def _code_names(path: str, meaning: _Meaning, options: LabelOptions) -> dict[str, str]:
    """Return what the codes of a raster mean: the map's word, else its own, else the folder's."""
    with _unplaced(Path(path)) as raster:
        table = raster.tags.get(_CLASSES_TAG)
    translation = dict(options.label_map or {})
    names = LabelNames(meaning.classes, options.label_map)
    codes: dict[str, str] = {}
    for entry in (ClassTable.from_json(table) if table else meaning.by_code) or ():
        if names.value(entry.name) is None:
            raise DataError(
                found=f"{path} has the class {entry.name}",
                expected=f"one of {', '.join(meaning.classes.names)}",
                fix=f"Rename it, e.g. --label-map {entry.name}={meaning.classes.names[0]}",
            )
        codes[str(entry.value)] = translation.get(entry.name, entry.name)
    return codes | translation


class _PixelCodes:
    """A raster of codes on the pixels of its scene."""

    def __init__(self, pair: Pair, scene: Scene, names: LabelNames) -> None:
        self._path = Path(str(pair.label))
        values: dict[Code, int] = {OTHER: OTHER, UNKNOWN: UNKNOWN}
        for code in names.label_map or {}:
            value = names.value(code)
            if code.removeprefix("-").isdecimal() and value is not None:
                values[int(code)] = value
        self._codes = LabelCodes(values=values)
        self.named = names.named(())
        self._nodata_is_data = names_nodata(str(self._path), names.label_map or {})
        with _unplaced(self._path) as raster:
            check_size(scene, raster)

    def read(self, window: Window) -> NDArray[np.uint8]:
        with _unplaced(self._path) as raster:
            pixels = raster.read(window, range(1, min(raster.count, 3) + 1))
        values, valid = pixels.values, pixels.valid
        if self._nodata_is_data:
            valid = ~np.isnan(values).any(axis=0)
        labels = np.full(valid.shape, UNKNOWN, np.uint8)
        labels[valid] = self._codes.read(values[:, None, valid], self._path)[0]
        return labels

    def close(self) -> None:
        """Do nothing: no file stays open."""


class _Filled:
    """Labels whose unknown pixels are of one class; of None all are."""

    def __init__(self, labels: LabelLayer | None, rest: int) -> None:
        self._labels, self._rest = labels, rest
        self.named = tuple(sorted({*(labels.named if labels else ()), rest}))

    def read(self, window: Window) -> NDArray[np.uint8]:
        if self._labels is None:
            return np.full((window.size.rows, window.size.cols), self._rest, np.uint8)
        read = self._labels.read(window)
        read[read == UNKNOWN] = self._rest
        return read

    def close(self) -> None:
        """Do nothing: shapes need no file."""
