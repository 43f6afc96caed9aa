"""ISPRS Potsdam and Vaihingen: TorchGeo's files and splits, labels and heights of the papers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchgeo.datasets import Potsdam2D, Vaihingen2D

from earthgate_geo.data.benchmarks.part import Found, Part
from earthgate_geo.data.pairs import Pair

_COMPLETE, _ERODED = ".tif", "_noBoundary.tif"

# TorchGeo reads complete labels beside the folder of images; the archives and other projects keep
# them in folders of these names.
_POTSDAM_LABELS = (
    *("", "5_Labels_all", "5_Labels_all_noBoundary"),
    *("5_Labels_for_participants", "5_Labels_for_participants_no_Boundary"),
)
_VAIHINGEN_LABELS = (
    *("", "gts_for_participants", "gts_eroded_for_participants"),
    "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE",
    "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE",
)


@dataclass(frozen=True)
class _Files:
    image: Path
    label: str
    """Stem of the complete labels."""
    height: Path


def find_potsdam(home: Path, part: Part) -> Found:
    """Return the tiles of a split; ``part.tiles`` are such as ``2_10``."""
    names = [f"top_potsdam_{tile}" for tile in part.tiles] or Potsdam2D.splits[part.split]
    files = [
        _Files(
            image=home / Potsdam2D.image_root / f"{name}_RGBIR.tif",
            label=f"{name}_label",
            height=home / "1_DSM_normalisation" / f"{_measured(name)}_normalized_lastools.jpg",
        )
        for name in names
    ]
    return _find(part, files, [home / folder for folder in _POTSDAM_LABELS])


def find_vaihingen(home: Path, part: Part) -> Found:
    """Return the areas of a split; ``part.tiles`` are such as ``30``."""
    names = [f"top_mosaic_09cm_area{tile}.tif" for tile in part.tiles]
    files = [
        _Files(
            image=home / Vaihingen2D.image_root / name,
            label=Path(name).stem,
            height=home / "dsm" / name.replace("top_mosaic_09cm_", "dsm_09cm_matching_"),
        )
        for name in names or Vaihingen2D.splits[part.split]
    ]
    return _find(part, files, [home / folder for folder in _VAIHINGEN_LABELS])


def _measured(name: str) -> str:
    """Return how the heights of ``top_potsdam_2_10`` are called: ``dsm_potsdam_02_10``."""
    row, col = name.split("_")[-2:]
    return f"dsm_potsdam_{int(row):02}_{int(col):02}"


def _find(part: Part, files: Sequence[_Files], folders: Sequence[Path]) -> Found:
    eroded = part.borders == "eroded"
    absent = eroded and not any(_label(folders, f.label + _ERODED).is_file() for f in files)
    ending = _ERODED if eroded and not absent else _COMPLETE
    listed = [
        Pair(
            file.image,
            _label(folders, file.label + ending),
            height=file.height if part.heights else None,
        )
        for file in files
    ]
    missing = [path for pair in listed for path in pair.files if not path.is_file()]
    pairs = [pair for pair in listed if not {*pair.files} & {*missing}]
    return Found(
        pairs=tuple(pairs),
        missing=tuple(map(str, missing)),
        remarks=(f"no labels *{_ERODED} of {part.dataset}, so borders count",) if absent else (),
    )


def _label(folders: Sequence[Path], name: str) -> Path:
    """Return the file of that name, or where TorchGeo would look for it."""
    paths = [folder / name for folder in folders]
    return next((path for path in paths if path.is_file()), paths[0])
