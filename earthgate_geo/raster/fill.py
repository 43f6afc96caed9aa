"""Values that seem to stand for no data although the file does not say so."""

from collections.abc import Sequence

from earthgate_geo.raster.bands import ALPHA
from earthgate_geo.raster.read import Pixels, Scene

_SUSPICIOUS = 0.1
"""Share of the pixels from which it is worth a word."""


def likely_fill(scene: Scene, bands: Sequence[int]) -> tuple[float, float] | None:
    """Return the value that seems to stand for no data, and its share of the valid pixels.

    It is the least or the largest value of ``bands``, on a tenth of the pixels in all bands of
    the file, as ``--nodata`` would need it, but not everywhere.
    """
    value, share = _end_value(scene.preview(bands))
    if share < _SUSPICIOUS:
        return None
    pictures = [n for n, meaning in enumerate(scene.meanings, start=1) if meaning != ALPHA]
    # Only now: there may be many bands.
    pixels = scene.preview(pictures)
    share = float((pixels.values[:, pixels.valid] == value).all(0).mean())
    return (value, share) if _SUSPICIOUS <= share < 1 else None


def _end_value(pixels: Pixels) -> tuple[float, float]:
    """Return the least or the largest value, whichever more pixels have, and their share."""
    known = pixels.values[:, pixels.valid]
    if not known.size:
        return 0, 0.0
    ends = known.min().item(), known.max().item()
    shares = {end: float((known == end).all(0).mean()) for end in ends}
    return max(shares.items(), key=lambda found: found[1])
