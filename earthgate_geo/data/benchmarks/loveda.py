"""LoveDA, through TorchGeo."""

from pathlib import Path

from torchgeo.datasets import LoveDA

from earthgate_geo.data.benchmarks.part import Found, Part
from earthgate_geo.data.pairs import Pair


def find(home: Path, part: Part) -> Found:
    """Return the images of a split such as ``train/urban``, in the order of the names."""
    split, scene = part.split.split("/")
    place = home / split.capitalize() / scene.capitalize()
    # TorchGeo asks for this folder alone and takes every image to have labels.
    absent = [place / name for name in ("images_png", "masks_png") if not (place / name).is_dir()]
    if absent:
        return Found(missing=tuple(map(str, absent)))
    files = LoveDA(root=home, split=split, scene=[scene]).files
    known = {entry.name for entry in (place / "masks_png").iterdir()}
    listed = [Pair(Path(file["image"]), Path(file["mask"])) for file in files]
    return Found(
        pairs=tuple(pair for pair in listed if pair.image.name in known),
        missing=tuple(str(pair.label) for pair in listed if pair.image.name not in known),
    )
