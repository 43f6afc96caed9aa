"""Datasets that are a folder of images beside a folder of labels."""

from dataclasses import dataclass
from pathlib import Path

from earthgate_geo.data.benchmarks.part import Found, Part
from earthgate_geo.data.pairs import Pair


@dataclass(frozen=True)
class Layout:
    """Where the images of a dataset and their labels lie below the dataset's folder."""

    image: str
    """Path of an image, with ``{split}`` and ``{name}``."""

    label: str
    """Path of its labels."""


_AERIAL = "3. The cropped image tiles and raster labels/{split}"
_SATELLITE = (
    "Satellite dataset \u2161 (East Asia)/1. The cropped image data and raster labels/{split}"
)

LAYOUTS = {
    "casid": Layout("{split}/image/{name}.png", "{split}/label/{name}-label.png"),
    "rescuenet": Layout(
        "{split}/{split}-org-img/{name}.jpg",
        "{split}/{split}-label-img/{name}_lab.png",
    ),
    "whu-aerial": Layout(f"{_AERIAL}/image/{{name}}.tif", f"{_AERIAL}/label/{{name}}.tif"),
    "whu-satellite": Layout(f"{_SATELLITE}/image/{{name}}.tif", f"{_SATELLITE}/label/{{name}}.tif"),
    "deepglobe": Layout("{split}/{name}_sat.jpg", "{split}/{name}_mask.png"),
    "massachusetts": Layout("tiff/{split}/{name}.tiff", "tiff/{split}_labels/{name}.tif"),
    "hunan": Layout(
        "{split}/s2/s2_{name}.tif",
        "{split}/lc/lc_{name}.tif",
    ),
}
"""How each dataset lies on disk."""


def find(home: Path, part: Part) -> Found:
    """Pair the images of a part with their labels by name, in the order of the names.

    A part's split may be several of the dataset's own, joined by ``+``.
    """
    pairs: list[Pair] = []
    missing: list[Path] = []
    for split in part.split.split("+"):
        layout = LAYOUTS[part.dataset]
        images, image_name = _place(home, layout.image, split)
        labels, label_name = _place(home, layout.label, split)
        absent = [folder for folder in (images, labels) if not folder.is_dir()]
        missing += dict.fromkeys(absent)
        if absent:
            continue
        known = {entry.name for entry in labels.iterdir()}
        for name in _names(images, image_name):
            label = label_name.format(name=name)
            if label in known:
                pairs.append(Pair(images / image_name.format(name=name), labels / label))
            else:
                missing.append(labels / label)
    return Found(pairs=tuple(pairs), missing=tuple(map(str, missing)))


def _place(home: Path, template: str, split: str) -> tuple[Path, str]:
    folder, _, name = template.rpartition("/")
    return home / folder.format(split=split), name


def _names(folder: Path, template: str) -> list[str]:
    before, behind = template.split("{name}")
    files = (entry.name for entry in folder.iterdir())
    return sorted(
        file[len(before) : len(file) - len(behind)]
        for file in files
        if file.startswith(before) and file.endswith(behind)
    )
