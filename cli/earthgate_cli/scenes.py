"""Which scenes a command line means, and where their maps go."""

from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from earthgate_geo.errors import InputError
from earthgate_geo.jobs.manifest import Manifest
from earthgate_geo.raster.stac_item import COLLECTION_NAME


def scene_paths(sources: Sequence[str], *, out_dir: Path | None) -> tuple[str, ...]:
    """Return the scenes that ``--src`` means, each once, in their order.

    Args:
        sources: Each a file or address, a pattern like ``images/*.tif`` (``**`` for all folders
            below), or ``@`` and a text file of such, one a line; ``#`` begins a comment.
        out_dir: Folder of maps: those that its manifest names, and their Collection, are no
            scenes, so that a pattern means the same the next time.

    Raises:
        InputError: A pattern fits no file, a list cannot be read, or there is no scene.
    """
    found: list[str] = []
    for source in sources:
        for entry in _listed(Path(source[1:])) if source.startswith("@") else [source]:
            found += _fitting(entry) if _is_pattern(entry) else [entry]
    maps = set()
    if out_dir:
        maps = {(out_dir / COLLECTION_NAME).resolve()}
        maps |= Manifest(out_dir / "manifest.jsonl").outputs()
    scenes = tuple(dict.fromkeys(path for path in found if Path(path).resolve() not in maps))
    if not scenes:
        raise InputError(found=f"only maps of {out_dir} as scenes", expected="images to map")
    return scenes


def check_place(scenes: int, *, dst: Path | None, out_dir: Path | None) -> None:
    """Refuse maps that have no place.

    Raises:
        InputError: As the sentence says.
    """
    if out_dir is None and scenes > 1:
        raise InputError(
            found=f"{scenes} scenes without --out-dir", expected="a folder for their maps"
        )
    if out_dir is None and dst is None:
        raise InputError(
            found="neither --dst nor --out-dir", expected="a file for the map or a folder for maps"
        )


def in_folder(out_dir: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of maps in a folder that are given.

    Raises:
        InputError: There are some, but no folder.
    """
    given = {name: value for name, value in options.items() if value}
    if given and out_dir is None:
        names = [f"--{name.replace('_', '-')}" for name in given]
        raise InputError(
            found=f"{' and '.join(names)} without --out-dir",
            expected="the folder that they are about",
        )
    return given


def exit_code(document: Mapping[str, Any]) -> int:
    """Return the exit code of a job on scenes: 3 if some of them failed."""
    states = [entry["state"] for entry in document.get("scenes", ())]
    return 3 if "failed" in states else 0


def _listed(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            found=f"the list {path} cannot be read",
            expected="a text file in UTF-8 with one scene a line",
        ) from error
    entries = [line for each in lines if (line := each.strip()) and not line.startswith("#")]
    if not entries:
        raise InputError(found=f"the list {path} is empty", expected="one scene a line")
    return entries


def _is_pattern(entry: str) -> bool:
    address = entry.startswith("/vsi") or "://" in entry
    return has_magic(entry) and not address and not Path(entry).exists()


def _fitting(pattern: str) -> list[str]:
    # Path.glob takes no absolute pattern, and finds hidden files.
    found = sorted(glob(pattern, recursive=True))  # noqa: PTH207
    if not found:
        raise InputError(found=f"no file fits the pattern {pattern}", expected="at least one scene")
    return found
