"""Makers of small rasters for tests."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

UTM = "EPSG:32633"
NORTH_UP = Affine(0.5, 0, 500000, 0, -0.5, 5200000)
SOUTH_UP = Affine(0.5, 0, 500000, 0, 0.5, 5200000)
ROTATED = Affine.translation(500000, 5200000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.4)


@dataclass(frozen=True, kw_only=True)
class RasterSpec:
    """What a test raster looks like; the defaults are a plain RGB scene."""

    bands: int = 3
    rows: int = 60
    cols: int = 80
    dtype: str = "uint8"
    crs: str | None = UTM
    transform: Affine | None = NORTH_UP
    nodata: float | None = None
    interpretation: Sequence[ColorInterp] | None = None
    descriptions: Sequence[str] | None = None
    tags: dict[str, str] | None = None
    seed: int = 0


def noise(spec: RasterSpec) -> NDArray[Any]:
    """Return the random (band, row, col) pixels of a spec: its type's range, or 0..1 floats."""
    rng = np.random.default_rng(spec.seed)
    shape = (spec.bands, spec.rows, spec.cols)
    if np.dtype(spec.dtype).kind in "fc":
        return rng.random(shape).astype(spec.dtype)
    limits = np.iinfo(spec.dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=spec.dtype, endpoint=True)


def write_raster(
    path: Path,
    spec: RasterSpec | None = None,
    *,
    values: NDArray[Any] | None = None,
    mask: NDArray[Any] | None = None,
    external_mask: bool = False,
    **creation: Any,
) -> NDArray[Any]:
    """Write a raster and return its pixels (band, row, col).

    ``values`` replace the random pixels (their shape and type win over the spec's). ``mask``
    (row, col), non-zero where valid, becomes an internal mask, or a ``.msk`` file.
    """
    spec = spec or RasterSpec()
    pixels = noise(spec) if values is None else values
    profile = {
        "driver": "GTiff",
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype.name,
        "crs": spec.crs,
        "transform": spec.transform,
        "nodata": spec.nodata,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not external_mask),
            rasterio.open(path, "w", **(profile | creation)) as target,
        ):
            if spec.interpretation:
                target.colorinterp = spec.interpretation
            target.write(pixels)
            for band, text in enumerate(spec.descriptions or (), 1):
                target.set_band_description(band, text)
            target.update_tags(**(spec.tags or {}))
            if mask is not None:
                target.write_mask(mask.astype(bool))
    return pixels
