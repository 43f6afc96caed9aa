"""Our own pairs of places: drone tiles with building footprints."""

from collections.abc import Sequence
from pathlib import Path

from earthgate_geo.data.benchmarks.part import Found, Part
from earthgate_geo.data.pairs import Pair, open_pairs

MOST_TESTED = 96
"""Test tiles of a place at most: a score should not take longer than the training."""


def find(home: Path, part: Part) -> Found:
    """Return the tiles of one place, in the order of the manifest.

    The split ``all`` has every tile. ``adapt`` and ``test`` share no ground: they take turns in
    the sorted list of the zoom-19 tiles that the manifest names as ``ground``. Of ``test`` at
    most ``MOST_TESTED`` tiles are kept, evenly spaced.
    """
    (place,) = part.tiles
    pairs, _ = open_pairs(home, where={"domain": place})
    if part.split == "all":
        return Found(pairs=tuple(pairs))
    grounds = sorted({pair.row["ground"] for pair in pairs})
    kept = set(grounds[0 if part.split == "adapt" else 1 :: 2])
    chosen = [pair for pair in pairs if pair.row["ground"] in kept]
    return Found(pairs=tuple(chosen if part.split == "adapt" else spaced(chosen)))


def spaced(pairs: Sequence[Pair]) -> list[Pair]:
    """Return at most ``MOST_TESTED`` of some pairs, evenly spaced."""
    count = min(len(pairs), MOST_TESTED)
    return [pairs[index * len(pairs) // count] for index in range(count)]
