"""What the bands of a file mean, and which of them a model gets."""

from collections.abc import Mapping, Sequence

from earthgate_geo.errors import BandError

ALPHA = "alpha"
GRAY = "gray"
RGB = ("red", "green", "blue")

NO_HEIGHT = -1.0
"""What stands in a channel of heights, whose values are in 0..1, where there is none."""

_SPELLINGS = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "grey": GRAY,
    "near infrared": "nir",
    "near-infrared": "nir",
    "near_infrared": "nir",
}
_DESCRIBED = {"red", "green", "blue", "nir", GRAY, ALPHA}
_UNSPECIFIC = {"undefined", GRAY, "palette"}


def band_meanings(
    interpretations: Sequence[str], descriptions: Sequence[str | None]
) -> tuple[str | None, ...]:
    """Return what each band of a file shows, ``None`` where the file does not say.

    A description wins over a colour interpretation: GDAL calls the bands of every new
    three-band byte file red, green and blue, whatever they hold.

    Args:
        interpretations: Names of GDAL's colour interpretations, per band.
        descriptions: Band descriptions, per band.
    """
    meanings = [
        described_band(text) or (None if name in _UNSPECIFIC else name)
        for name, text in zip(interpretations, descriptions, strict=True)
    ]
    pictures = [index for index, meaning in enumerate(meanings) if meaning != ALPHA]
    # "gray" is also GDAL's default for the first band of any stack: it counts only alone.
    if len(pictures) == 1 and interpretations[pictures[0]] == GRAY:
        meanings[pictures[0]] = meanings[pictures[0]] or GRAY
    return tuple(meanings)


def described_band(text: str | None) -> str | None:
    """Return what a band shows by its description or name; None where that is no known word."""
    word = (text or "").strip().lower()
    word = _SPELLINGS.get(word, word)
    return word if word in _DESCRIBED else None


def choose_bands(
    path: str,
    meanings: Sequence[str | None],
    *,
    wanted: Sequence[str],
    given: Mapping[str, int] | None,
) -> tuple[int, ...]:
    """Return the 1-based bands of a file that a model's inputs ``wanted`` are read from.

    Args:
        path: The file, for the sentence of an error.
        meanings: What each band shows, from ``band_meanings``.
        wanted: The inputs of the model, in its order.
        given: Bands by meaning, as the user gave them; wins over the file.

    Raises:
        BandError: The file does not say enough.
    """
    named = {name: band for band, name in reversed(list(enumerate(meanings, 1))) if name}
    named |= given or {}
    if all(name in named for name in wanted):
        return tuple(named[name] for name in wanted)
    missing = ", ".join(name for name in wanted if name not in named)
    if given:
        raise BandError(
            found=f"{path}: --bands names {', '.join(given)}, which leaves out {missing}",
            expected=f"a band for each of {', '.join(wanted)}",
            fix=f"Say which is which, e.g. --bands {_example(wanted, len(meanings))}",
        )
    pictures = tuple(band for band, name in enumerate(meanings, 1) if name != ALPHA)
    if len(pictures) == 1:
        return pictures * len(wanted)
    if len(pictures) == len(wanted) == 3:
        return pictures
    raise BandError(
        found=f"{path} has {_count(len(pictures))}, and nothing says which is {missing}",
        expected=f"colour interpretation or descriptions that name {', '.join(wanted)}",
        fix=f"Say which is which, e.g. --bands {_example(wanted, len(pictures))}",
    )


def _count(pictures: int) -> str:
    if pictures == 2:
        return "2 bands that are not grey and alpha"
    return f"{pictures} bands" if pictures else "no band but alpha"


def _example(wanted: Sequence[str], bands: int) -> str:
    return ",".join(f"{name}={min(i, max(bands, 1))}" for i, name in enumerate(wanted, 1))
