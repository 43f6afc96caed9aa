"""The benchmark settings: source, target, protocol and published results. No torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import Any, Literal

from earthgate_geo.bench import classes, parts
from earthgate_geo.bench.published import Published, published
from earthgate_geo.data.benchmarks.part import Part
from earthgate_geo.errors import InputError
from earthgate_geo.recipe import (
    CROSSEARTH_512,
    CROSSEARTH_1024,
    MFNET,
    Dacs,
    Recipe,
    Selection,
)

Protocol = Literal["generalise", "adapt", "fuse"]
"""Source alone; source and unlabelled target; image and height of one dataset."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A benchmark: what trains, what is measured, and how."""

    name: str
    """Word for the command line."""

    title: str
    """One line for people."""

    suites: tuple[str, ...]
    """``gate``, ``crossearth``, ``mfnet`` or ``local``."""

    protocol: Protocol = "generalise"
    """What the run may see of the target."""

    source: Part
    """Labelled images that train."""

    target: Part | None = None
    """Images that train without their labels; ``adapt`` alone has them."""

    test: Part
    """Labelled images that are measured."""

    classes: tuple[str, ...]
    """Names of the classes that the labels name, by value."""

    unscored: tuple[str, ...] = ()
    """Classes that the mean IoU leaves out."""

    recipe: Recipe
    """How it trains."""

    test_stride_px: int
    """Pixels between two test windows."""

    test_crop_px: int | None = None
    """Side of a test window; the recipe's ``crop_px`` if absent."""

    notes: tuple[str, ...] = ()
    """What is ours, or uncertain, or not as published; whole sentences."""

    @property
    def parts(self) -> dict[str, Part]:
        """Its parts by role: source, target where it has one, test."""
        roles = {"source": self.source, "target": self.target, "test": self.test}
        return {role: part for role, part in roles.items() if part is not None}

    @property
    def published(self) -> tuple[Published, ...]:
        """What papers report for it."""
        return published(self.name)


_STRIDE_PX, _LARGE_STRIDE_PX = 341, 683  # of windows of 512 and 1024 px

_ADAPTER = Recipe(steps=20_000, batch=4, crop_px=512, learning_rate=1e-4)
_ADAPTING = replace(
    _ADAPTER, batch=2, target_batch=2, selection=Selection(interval=50), dacs=Dacs(start=0.2)
)
_CROSSEARTH = replace(CROSSEARTH_512, policy=_ADAPTER.policy, styles=None, multitask=None)
_CROSSEARTH_LARGE = replace(CROSSEARTH_1024, policy=_ADAPTER.policy, styles=None, multitask=None)
_LOCAL = Recipe(
    steps=60,
    batch=2,
    target_batch=2,
    crop_px=192,
    selection=Selection(interval=30, images=6),
    dacs=Dacs(start=0.0, weighting="certainty", aligned=True),
)

_OURS = (
    "Ours, sized to a minute on one core. Labels name buildings alone; whatever else there is, is "
    "other."
)
_PLAIN = "Trains without CrossEarth's styles and without its reconstruction."
_ASSUMED = (
    "Steps, batch, crop and rate are Earth-Adapter's; those of CrossEarth-Gate are not known, but "
    "for a rate of 1e-5 that a note on the paper reports."
)
_CASID_FILES = (
    "Folders are those of CrossEarth's configuration in one folder per climate, whose names are "
    "ours; label 0 as unknown and 1 to 5 as the classes is its README, while its configuration "
    "says nothing of a shift: look at the labels first."
)
_DISASTER_CLASSES = (
    "The map from RescueNet's classes is ours, the paper's is not known: buildings of any damage, "
    "roads clear or blocked, vehicles and trees; water and pools are clutter; background is "
    "unknown."
)
_DISASTER_SIZE = (
    "CrossEarth shrinks the test images to 512 px; here they keep their size, so scores cannot be "
    "compared. It counts 449 test images, RescueNet 450."
)
_ERODED = "Labels are the eroded ones, of which borders are unknown, where these are found."
_MEAN = "Whether the paper's mean counts the background is not known; here it does."
_MFNET = (
    "Optimiser, rates, steps, crops and mirror images are MFNet's; its network is --backbone "
    "samvit_large_patch16 with its weights, --head mfnet and --policy mmadapter or mmlora."
)
_MFNET_DIFFERS = (
    "Not as MFNet: heights are scaled by their 1st and 99th percentile instead of the least and "
    "the largest, the network normalises pixels by its own mean and deviation, norms do not "
    "decay, overlapping windows sum probabilities instead of logits, and the test images are "
    "looked at ten times instead of after each of 50 epochs."
)
_MFNET_TILES = (
    "MFNet trains on whole labels and tests on eroded ones, and so does this; its crops lie "
    "anywhere in a tile, ours in patches of 512 px."
)
_HUNAN_FILES = (
    "The archive's inner folders were read off MFNet's preparation script; its 450 training "
    "patches are train and val together. Pixels are stretched by the statistics of their patch; "
    "heights are the first band of its topography."
)


def _isprs() -> Iterator[Setting]:
    tests = {"pr": parts.potsdam("test", "rgb"), "pi": parts.potsdam("test", "irrg")}
    sources = {"pr": parts.potsdam("train", "rgb"), "pi": parts.potsdam("train", "irrg")}
    tests["v"], sources["v"] = parts.vaihingen("test"), parts.vaihingen("train")
    titles = {"pr": "Potsdam RGB", "pi": "Potsdam IRRG", "v": "Vaihingen"}
    for source, target in permutations(titles, 2):
        yield Setting(
            name=f"dg-{source}2{target}",
            title=f"{titles[source]} to {titles[target]}",
            suites=("crossearth",),
            source=sources[source],
            test=tests[target],
            classes=classes.ISPRS,
            recipe=_CROSSEARTH,
            test_stride_px=_STRIDE_PX,
            notes=(_PLAIN, _ERODED),
        )
    for source in ("pr", "pi"):
        yield Setting(
            name=f"dg-{source}2res",
            title=f"{titles[source]} to RescueNet",
            suites=("gate", "crossearth"),
            source=parts.in_disaster_classes(sources[source]),
            test=parts.rescuenet(),
            classes=classes.DISASTER,
            recipe=_ADAPTER,
            test_stride_px=_STRIDE_PX,
            notes=(_ASSUMED, _ERODED, _DISASTER_CLASSES, _DISASTER_SIZE),
        )
    for source, target in (("pr", "v"), ("v", "pr")):
        yield Setting(
            name=f"da-{source[0]}2{target[0]}",
            title=f"{titles[source]} adapted to {titles[target]}",
            suites=("gate",),
            protocol="adapt",
            source=sources[source],
            target=sources[target],
            test=tests[target],
            classes=classes.ISPRS,
            recipe=_ADAPTING,
            test_stride_px=_STRIDE_PX,
            notes=(_ASSUMED, "That Potsdam is in RGB is Earth-Adapter's choice.", _ERODED),
        )


def _loveda() -> Iterator[Setting]:
    for source, target in (("urban", "rural"), ("rural", "urban")):
        short, title = f"{source[0]}2{target[0]}", f"LoveDA {source} to {target}"
        yield Setting(
            name=f"dg-{short}",
            title=title,
            suites=("crossearth",),
            source=parts.loveda(f"train/{source}"),
            test=parts.loveda(f"val/{target}"),
            classes=classes.LOVEDA,
            recipe=_CROSSEARTH_LARGE,
            test_stride_px=_LARGE_STRIDE_PX,
            notes=(_PLAIN,),
        )
        yield Setting(
            name=f"da-{short}",
            title=f"{title}, adapted",
            suites=("gate",),
            protocol="adapt",
            source=parts.loveda(f"train/{source}", patch_px=512),
            target=parts.loveda(f"train/{target}", patch_px=512),
            test=parts.loveda(f"val/{target}", patch_px=512),
            classes=classes.LOVEDA,
            recipe=_ADAPTING,
            test_stride_px=_STRIDE_PX,
            notes=(_ASSUMED,),
        )


def _one_class() -> Iterator[Setting]:
    yield Setting(
        name="dg-a2s",
        title="WHU buildings, aerial to satellite II",
        suites=("crossearth",),
        source=parts.whu("aerial", "train", 4736),
        test=parts.whu("satellite", "test", 3726),
        classes=classes.BUILDING,
        recipe=_CROSSEARTH,
        test_stride_px=_STRIDE_PX,
        notes=(_PLAIN, _MEAN),
    )
    yield Setting(
        name="dg-s2a",
        title="WHU buildings, satellite II to aerial",
        suites=("crossearth",),
        source=parts.whu("satellite", "train", 13662),
        test=parts.whu("aerial", "val", 1036),
        classes=classes.BUILDING,
        recipe=_CROSSEARTH,
        test_stride_px=_STRIDE_PX,
        notes=(_PLAIN, _MEAN, "That the aerial test is the makers' val follows from its count."),
    )
    yield Setting(
        name="dg-d2m",
        title="Roads, DeepGlobe to Massachusetts",
        suites=("crossearth",),
        source=parts.roads("deepglobe", "train", 6226),
        test=parts.roads("massachusetts", "test", 49),
        classes=classes.ROAD,
        recipe=_CROSSEARTH_LARGE,
        test_stride_px=_LARGE_STRIDE_PX,
        notes=(_PLAIN, _MEAN),
    )


def _casid() -> Iterator[Setting]:
    climates = {
        "sub": "subtropical monsoon",
        "tem": "temperate monsoon",
        "tms": "tropical monsoon",
        "trf": "tropical rainforest",
    }
    for source, target in permutations(climates, 2):
        yield Setting(
            name=f"dg-{source}2{target}",
            title=f"CASID {climates[source]} to {climates[target]}",
            suites=("gate", "crossearth"),
            source=parts.casid(source, "all_train"),
            test=parts.casid(target, "all_test"),
            classes=classes.CASID,
            recipe=_ADAPTER,
            test_stride_px=_STRIDE_PX,
            notes=(_ASSUMED, "CrossEarth's crops are of 1024 px.", _CASID_FILES),
        )


def _fused() -> Iterator[Setting]:
    tiles = {"vaihingen": (parts.VAIHINGEN_FUSED, 32), "potsdam": (parts.POTSDAM_FUSED, 128)}
    for name, (split, stride_px) in tiles.items():
        yield Setting(
            name=f"fuse-{name}",
            title=f"{name.capitalize()} with heights",
            suites=("mfnet",),
            protocol="fuse",
            source=parts.fused(name, split["train"], patch_px=512),
            test=replace(parts.fused(name, split["test"]), borders="eroded"),
            classes=classes.ISPRS,
            unscored=("clutter",),
            recipe=MFNET,
            test_stride_px=stride_px,
            notes=(_MFNET, _MFNET_DIFFERS, _MFNET_TILES),
        )
    yield Setting(
        name="fuse-hunan",
        title="MMHunan with heights",
        suites=("mfnet",),
        protocol="fuse",
        source=parts.hunan("train+val", 450),
        test=parts.hunan("test", 50),
        classes=classes.HUNAN,
        recipe=MFNET.over(25_000),
        test_stride_px=256,
        notes=(_MFNET, _MFNET_DIFFERS, _HUNAN_FILES),
    )


def _places() -> Iterator[Setting]:
    for source, target in permutations(parts.PLACES, 2):
        yield Setting(
            name=f"places-{source}-{target}",
            title=f"Buildings on drone tiles, {source} to {target}",
            suites=("local",),
            protocol="adapt",
            source=parts.place(source, "all"),
            target=parts.place(target, "adapt"),
            test=parts.place(target, "test"),
            classes=classes.PLACE,
            recipe=_LOCAL,
            test_stride_px=256,
            test_crop_px=256,
            notes=(_OURS,),
        )


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for family in (_casid, _isprs, _loveda, _one_class, _fused, _places)
    for setting in family()
}
"""Every setting by name."""


def find_setting(name: str) -> Setting:
    """Return a setting by name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in SETTINGS:
        raise InputError(
            found=f"the setting {name!r}",
            expected="one of those that `earthgate bench --list` shows",
        )
    return SETTINGS[name]


def list_settings() -> dict[str, Any]:
    """Return the result document of ``earthgate bench --list``."""
    return {
        "settings": [
            {
                "name": setting.name,
                "title": setting.title,
                "suites": list(setting.suites),
                "protocol": setting.protocol,
                "classes": list(setting.classes),
                "published": [asdict(entry) for entry in setting.published],
                "notes": list(setting.notes),
            }
            for setting in SETTINGS.values()
        ]
    }
