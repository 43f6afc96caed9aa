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

    height: str | None = None
    """Path of its heights, where the dataset has any."""


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
        "{split}/topo/topo_{name}.tif",
    ),
}
"""How each dataset lies on disk."""


def find(home: Path, part: Part) -> Found:
    """Pair the images of a part with their labels, and heights, by name, in their order.

    A part's split may be several of the dataset's own, joined by ``+``.
    """
    pairs: list[Pair] = []
    missing: list[Path] = []
    for split in part.split.split("+"):
        layout = LAYOUTS[part.dataset]
        templates = [layout.image, layout.label]
        if part.heights and layout.height:
            templates.append(layout.height)
        places = [_place(home, template, split) for template in templates]
        absent = [folder for folder, _ in places if not folder.is_dir()]
        missing += dict.fromkeys(absent)
        if absent:
            continue
        known = {entry for folder, _ in places for entry in folder.iterdir()}
        for name in _names(*places[0]):
            files = [folder / template.format(name=name) for folder, template in places]
            lost = [path for path in files if path not in known]
            missing += lost
            if not lost:
                image, label, *height = files
                pairs.append(Pair(image, label, height=height[0] if height else None))
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
