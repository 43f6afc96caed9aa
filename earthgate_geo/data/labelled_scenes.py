"""Scenes with the labels that users have: all of them are checked before any of them trains."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.data.label_codes import Code, LabelCodes
from earthgate_geo.data.label_names import LabelNames, LabelOptions
from earthgate_geo.data.label_shapes import shape_words
from earthgate_geo.data.labels import LabelLayer, open_labels, shapes_layer
from earthgate_geo.data.pairs import Pair, is_raster, table_of
from earthgate_geo.data.patches import Patch, check_size, chosen_bands, patches_of
from earthgate_geo.errors import ClassNameError, DataError, EarthgateError, InputError
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

    class_pixels: Mapping[str, int]
    """Labelled pixels by class."""


def open_labelled(
    pairs: Sequence[Pair], classes: ClassTable | None, reading: Reading, *, monitor: Monitor
) -> tuple[list[LabelledScene], ClassTable]:
    """Open and check all scenes and labels of a folder.

    A raster of labels that has its scene's size and place, or no place, lies on it pixel on pixel
    and every code counts, 255 as unknown and 254 as other; another one, and every vector, is
    brought onto the scene, as ``open_labels`` does. Every label is read once.

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
    problems, folder = _Problems(len(pairs)), classes
    if classes is None:
        classes = _own_classes(pairs, reading, problems)
    elif reading.rest is not None and reading.rest not in classes.names:
        raise ClassNameError(
            found=f"--label-rest {reading.rest}", expected=f"one of {', '.join(classes.names)}"
        )
    scenes = []
    monitor.stage("check", len(pairs))
    for done, pair in enumerate(pairs, 1):
        if not problems.has(pair):
            with problems.of(pair):
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


class _Problems:
    """What is wrong, file by file."""

    def __init__(self, files: int) -> None:
        self._files = files
        self._found: dict[Path, EarthgateError] = {}

    def has(self, pair: Pair) -> bool:
        """Tell whether something is wrong with a pair."""
        return pair.image in self._found

    @contextmanager
    def of(self, pair: Pair) -> Iterator[None]:
        """Keep an error about a pair for later."""
        try:
            yield
        except (InputError, DataError) as error:
            self._found[pair.image] = error

    def tell(self) -> None:
        """Raise what was found, if anything."""
        errors = list(self._found.values())
        if len({str(error) for error in errors}) == 1:
            raise errors[0]
        if errors:
            summary = DataError(
                found=f"{len(errors)} of {self._files} scenes cannot train",
                expected="scenes and labels that fit each other",
                fix="The lines below say what is wrong with each",
            )
            for image, error in self._found.items():
                sentence = str(error)
                known = str(image) in sentence
                summary.add_note(sentence if known else f"{image}: {sentence}")
            raise summary


def _own_classes(pairs: Iterable[Pair], reading: Reading, problems: _Problems) -> ClassTable:
    """Return the classes that the labels name themselves."""
    words: set[str] = set()
    read: set[Path] = set()
    for pair in pairs:
        if pair.label is not None and pair.label not in read:
            with problems.of(pair):
                words |= _words(pair.label, reading)
            read.add(pair.label)
    translation = reading.labels.label_map or {}
    names = {translation.get(word, word) for word in words} | {reading.rest or _OTHER_NAME}
    classes = sorted(names - {_OTHER_NAME})
    if len(classes) < 2:
        problems.tell()
        raise DataError(
            found=f"labels that name {classes[0] if classes else 'nothing'} and no other class",
            expected="two classes or more to tell apart",
            fix="Say what the ground without labels is, e.g. --label-rest background",
        )
    return table_of(classes)


def _words(path: Path, reading: Reading) -> set[str]:
    layer = shapes_layer(str(path))
    if layer is not None:
        return shape_words(str(path), layer, reading.labels)
    with _unplaced(path) as raster:
        table = raster.tags.get(_CLASSES_TAG)
    if table is None and not reading.labels.label_map:
        raise DataError(
            found="rasters of labels without names of their codes",
            expected='a classes.json in the folder, e.g. {"0": "water", "1": "land"}',
            fix="Or name them with --label-map 0=water,1=land",
        )
    named = ClassTable.from_json(table).names if table else ()
    return {*named, *(reading.labels.label_map or {}).values()}


def _opened(pair: Pair, meaning: _Meaning, reading: Reading) -> LabelledScene:
    if pair.label is None:
        raise DataError(found=f"{pair.image} has no labels", expected="labelled images to train on")
    scene, misplaced = _placed(pair.image, reading.assume_crs)
    with scene:
        chosen_bands(scene, reading.bands)
        labels = _labels(pair, scene, misplaced, meaning, reading)
        spots = np.array([p for p in labels.positions() if p[2] != OTHER], np.int64).reshape(-1, 3)
        cut = patches_of(pair, scene, reading.patch_px, gsd_m=reading.gsd_m)
        patches = tuple(
            replace(patch, labels=labels)
            for patch in cut
            if patch.window and _holds(patch.window, spots) and scene.has_valid(patch.window)
        )
    grid = None if misplaced else scene.grid
    return LabelledScene(patches=patches, grid=grid, class_pixels=labels.class_pixels())


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
    if shapes_layer(path) is None:
        if misplaced or _pixel_on_pixel(path, scene.grid):
            source = _PixelCodes(pair, scene, _codes(path, meaning, reading.labels))
            return LabelLayer(source, scene.grid.size, classes)
        by_code = LabelOptions(label_map=reading.labels.label_map)
        return _named(path, scene.grid, classes, by_code)
    if misplaced:
        raise misplaced
    labels = _named(path, scene.grid, classes, reading.labels)
    if reading.rest is None:
        return labels
    rest = _Filled(labels, classes.value(reading.rest))
    return LabelLayer(rest, scene.grid.size, classes)


def _named(path: str, grid: Grid, classes: ClassTable, options: LabelOptions) -> LabelLayer:
    try:
        return open_labels(path, grid, classes, options)
    except ClassNameError as error:  # its way on is to train
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


def _codes(path: str, meaning: _Meaning, options: LabelOptions) -> LabelCodes:
    """Return what the codes of a raster mean: the map's word, else its own, else the folder's."""
    with _unplaced(Path(path)) as raster:
        table = raster.tags.get(_CLASSES_TAG)
    own = ClassTable.from_json(table) if table else meaning.by_code
    values: dict[Code, int] = {OTHER: OTHER, UNKNOWN: UNKNOWN}
    names = LabelNames(meaning.classes, options.label_map)
    for entry in own or ():
        value = names.value(entry.name)
        if value is None:
            raise DataError(
                found=f"{path} has the class {entry.name}",
                expected=f"one of {', '.join(meaning.classes.names)}",
                fix=f"Rename it, e.g. --label-map {entry.name}={meaning.classes.names[0]}",
            )
        values[entry.value] = value
    for word in options.label_map or {}:
        value = names.value(word)
        if word.isdecimal() and value is not None:
            values[int(word)] = value
    return LabelCodes(values=values)


class _PixelCodes:
    """A raster of codes on the pixels of its scene."""

    def __init__(self, pair: Pair, scene: Scene, codes: LabelCodes) -> None:
        self._path, self._codes = Path(str(pair.label)), codes
        self.named = tuple(sorted(set(codes.values.values()) - {OTHER, UNKNOWN}))
        with _unplaced(self._path) as raster:
            check_size(pair, scene, raster)

    def read(self, window: Window) -> NDArray[np.uint8]:
        with _unplaced(self._path) as raster:
            # Whatever the file calls nodata is a code like the others: 0 is often a class.
            raw = raster.read(window, range(1, min(raster.count, 3) + 1)).values
        return self._codes.read(raw, self._path)


class _Filled:
    """Labels whose unknown pixels are of one class."""

    def __init__(self, labels: LabelLayer, rest: int) -> None:
        self._labels, self._rest = labels, rest
        self.named = tuple(sorted({*labels.named, rest}))

    def read(self, window: Window) -> NDArray[np.uint8]:
        read = self._labels.read(window)
        read[read == UNKNOWN] = self._rest
        return read


def _holds(window: Window, spots: NDArray[np.int64]) -> bool:
    rows, cols, _ = spots.T
    inside = (window.row <= rows) & (rows < window.row_stop)
    return bool((inside & (window.col <= cols) & (cols < window.col_stop)).any())
