"""The parts of datasets that the settings use. No torch."""

from dataclasses import replace
from typing import Literal

from earthgate_geo.bench import classes
from earthgate_geo.data.benchmarks.part import UNKNOWN_NAME, Part

_LOVEDA_IMAGES = {
    "train/rural": 1366,
    "train/urban": 1156,
    "val/rural": 992,
    "val/urban": 677,  # CrossEarth's table prints 667, but Earth-Adapter cuts 4 x 677 patches
}
_CASID_FOLDERS = {"sub": "SubMs", "tem": "TemMs", "tms": "TroMs", "trf": "TroRf"}
_CASID_IMAGES = {
    "all_train": {"sub": 4900, "tem": 5025, "tms": 3400, "trf": 3700},
    "all_test": {"sub": 2200, "tem": 2075, "tms": 1650, "trf": 1550},
}
_PLACE_FOLDERS = {
    "zanzibar": "zanzibar_tz",
    "kampala": "kampala_ug",
    "catanduanes": "catanduanes_ph",
}
PLACES = tuple(_PLACE_FOLDERS)

VAIHINGEN_FUSED = {
    "train": (*("1", "3", "23", "26", "7", "11", "13", "28"), *("17", "32", "34", "37")),
    "test": ("5", "21", "15", "30"),
}
POTSDAM_FUSED = {
    "train": (
        *("6_10", "7_10", "2_12", "3_11", "2_10", "7_8", "5_10", "3_12", "5_12"),
        *("7_11", "7_9", "6_9", "7_7", "4_12", "6_8", "6_12", "6_7", "4_11"),
    ),
    "test": ("4_10", "5_11", "2_11", "3_10", "6_11", "7_12"),
}
"""MFNet's tiles, in its order."""


def potsdam(split: Literal["train", "test"], bands: Literal["rgb", "irrg"]) -> Part:
    """Return Potsdam's patches in true or false colours."""
    return Part(
        dataset="potsdam",
        split=split,
        labels=classes.ISPRS_COLORS,
        rest=UNKNOWN_NAME,  # some tiles hold stray colours
        borders="eroded",
        bands=(1, 2, 3) if bands == "rgb" else (4, 1, 2),
        patch_px=512,
        images={"train": 24, "test": 14}[split],
        patches={"train": 3456, "test": 2016}[split],
    )


def in_disaster_classes(part: Part) -> Part:
    """Return an ISPRS part whose low vegetation and trees are one class, as RescueNet's."""
    return replace(part, labels=classes.DISASTER_COLORS)


def vaihingen(split: Literal["train", "test"]) -> Part:
    """Return Vaihingen's patches; its bands are near infrared, red and green."""
    return Part(
        dataset="vaihingen",
        split=split,
        labels=classes.ISPRS_COLORS,
        rest=UNKNOWN_NAME,
        borders="eroded",
        patch_px=512,
        images={"train": 16, "test": 17}[split],
        patches={"train": 344, "test": 398}[split],
    )


def fused(dataset: str, tiles: tuple[str, ...], *, patch_px: int | None = None) -> Part:
    """Return tiles of MFNet with heights, all of which others train on; patches are ours."""
    return Part(
        dataset=dataset,
        split="train",
        labels=classes.ISPRS_COLORS,
        rest=UNKNOWN_NAME,
        tiles=tiles,
        heights=True,
        patch_px=patch_px,
        images=len(tiles),
    )


def hunan(split: str, images: int) -> Part:
    """Return patches of MMHunan; bands 4, 3 and 2 of Sentinel-2 are red, green and blue."""
    return Part(
        dataset="hunan",
        split=split,
        labels=classes.HUNAN_CODES,
        rest=UNKNOWN_NAME,
        bands=(4, 3, 2),
        scaling="scene",
        heights=True,
        images=images,
    )


def loveda(split: str, *, patch_px: int | None = None) -> Part:
    """Return images of LoveDA, split such as ``train/urban``, whole or cut."""
    return Part(
        dataset="loveda",
        split=split,
        labels=classes.LOVEDA_CODES,
        patch_px=patch_px,
        images=_LOVEDA_IMAGES[split],
    )


def casid(climate: str, split: Literal["all_train", "all_test"]) -> Part:
    """Return images of CASID of a climate: sub, tem, tms or trf."""
    return Part(
        dataset="casid",
        split=f"{_CASID_FOLDERS[climate]}/{split}",
        labels=classes.CASID_CODES,
        images=_CASID_IMAGES[split][climate],
    )


def rescuenet() -> Part:
    """Return the test images of RescueNet."""
    return Part(dataset="rescuenet", split="test", labels=classes.RESCUENET_CODES, images=449)


def whu(sensor: Literal["aerial", "satellite"], split: str, images: int) -> Part:
    """Return images of the WHU building dataset; the satellite's are those of its second part."""
    labels = classes.BUILDING_CODES
    return Part(dataset=f"whu-{sensor}", split=split, labels=labels, images=images)


def roads(dataset: str, split: str, images: int) -> Part:
    """Return images of DeepGlobe or Massachusetts."""
    return Part(dataset=dataset, split=split, labels=classes.ROAD_CODES, images=images)


def place(name: str, split: Literal["all", "adapt", "test"]) -> Part:
    """Return tiles of one of ``PLACES``."""
    return Part(
        dataset="places", split=split, tiles=(_PLACE_FOLDERS[name],), labels=classes.PLACE_CODES
    )
