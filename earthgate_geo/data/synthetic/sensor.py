"""How a camera sees: bands, sun, season, atmosphere, optics, noise."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.errors import InputError

BANDS = ("red", "green", "blue", "nir")
Season = Literal["summer", "dry", "autumn"]
_SKY = np.array([0.82, 0.95, 1.20, 0.70], dtype=np.float32)
_SUN = np.array([1.04, 1.00, 0.94, 1.05], dtype=np.float32)
_HAZE = np.array([0.74, 0.78, 0.82, 0.62], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """A camera, its flight and its day."""

    gsd_m: float
    """Ground size of a pixel."""

    bands: tuple[str, ...] = ("red", "green", "blue")
    """Subset of red, green, blue, nir in any order."""

    sun_azimuth_deg: float = 150.0
    """Where the sun stands, clockwise from north."""

    sun_elevation_deg: float = 50.0
    """Height of the sun above the horizon, 15..90."""

    diffuse: float = 0.3
    """Share of skylight: 0.2 in clear air, 1 under cloud (no shadows)."""

    haze: float = 0.03
    """Share of airlight, 0..0.6."""

    gain: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Factor per band: exposure and colour cast."""

    gamma: float = 1.0
    """Exponent of the tone curve; below 1 brightens."""

    noise: float = 0.01
    """Standard deviation of the noise at full light."""

    blur_px: float = 0.4
    """Standard deviation of the point spread."""

    vignetting: float = 0.05
    """Light lost in the corners, 0..1."""

    season: Season = "summer"
    """Summer greens, dry-season straw or autumn leaves."""

    jpeg: float = 0.0
    """Coarseness of a block compression, 0 none .. 1 strong."""

    def __post_init__(self) -> None:
        if self.gsd_m <= 0 or not set(self.bands) <= set(BANDS) or not self.bands:
            raise InputError(
                found=f"a sensor of {self.gsd_m} m with bands {', '.join(self.bands)}",
                expected=f"a positive ground size and bands of {', '.join(BANDS)}",
            )
        if len(self.gain) != len(self.bands):
            raise InputError(
                found=f"{len(self.gain)} gains for {len(self.bands)} bands",
                expected="one gain per band",
            )

    @property
    def band_numbers(self) -> tuple[int, ...]:
        """Positions of the bands in ``BANDS``."""
        return tuple(BANDS.index(name) for name in self.bands)

    @property
    def sun(self) -> tuple[float, float, float]:
        """Unit vector to the sun: east, south, up."""
        azimuth, elevation = map(math.radians, (self.sun_azimuth_deg, self.sun_elevation_deg))
        flat = math.cos(elevation)
        return flat * math.sin(azimuth), -flat * math.cos(azimuth), math.sin(elevation)

    def light(self, band: int) -> tuple[float, float]:
        """Return skylight and full sunlight of ``band``; together about 1."""
        return float(self.diffuse * _SKY[band]), float((1 - self.diffuse) * _SUN[band])


def draw_sensor(rng: np.random.Generator, *, gsd_m: float) -> Sensor:
    """Return a random camera on a random day; most are RGB."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    if rng.random() < 0.12:
        bands = ("nir", "red", "green")
    clear = rng.random() < 0.75
    cast = rng.normal(1.0, 0.045, 3) * rng.uniform(0.8, 1.25)
    return Sensor(
        gsd_m=gsd_m,
        bands=bands,
        sun_azimuth_deg=float(rng.uniform(0, 360)),
        sun_elevation_deg=float(rng.uniform(28, 85)),
        diffuse=float(rng.uniform(0.28, 0.5) if clear else rng.uniform(0.5, 1.0)),
        haze=float(min(0.5, rng.exponential(0.06))),
        gain=tuple(float(c) for c in cast),
        gamma=float(rng.uniform(0.75, 1.15)),
        noise=float(rng.uniform(0.002, 0.025)),
        blur_px=float(rng.uniform(0.0, 0.9)),
        vignetting=float(rng.uniform(0, 0.15)),
        season=("summer", "summer", "dry", "autumn")[int(rng.integers(4))],
        jpeg=float(rng.uniform(0.1, 0.8) if rng.random() < 0.5 else 0.0),
    )


def expose(
    radiance: NDArray[np.float32], sensor: Sensor, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return what the camera records of ``radiance`` (band, row, col), 0..1 and beyond."""
    bands = list(sensor.band_numbers)
    image = _blur(radiance, sensor.blur_px)
    haze = sensor.haze * _cloudiness(image.shape[1:], rng)
    image += haze * (_HAZE[bands][:, None, None] - image)
    image *= _falloff(image.shape[1:], sensor.vignetting)
    image *= np.array(sensor.gain, np.float32)[:, None, None]
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    image += sensor.noise * np.sqrt(np.maximum(image, 0.02)) * grain
    image = np.clip(image, 0.0, 1.0) ** np.float32(sensor.gamma)
    if sensor.jpeg > 0:
        image = _block_code(image, sensor.jpeg)
    return np.rint(np.clip(image, 0, 1) * 254 + 1).astype(np.uint8)


def _blur(image: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    if sigma_px < 0.1:
        return image
    side = np.float32(math.exp(-0.5 / sigma_px**2))
    side /= 1 + 2 * side
    for axis in (1, 2):
        ends = [(0, 0), (0, 0), (0, 0)]
        ends[axis] = (1, 1)
        wide = np.pad(image, ends, mode="edge")
        first, last = (
            (slice(None),) * axis + (slice(None, -2),),
            (slice(None),) * axis + (slice(2, None),),
        )
        image = (1 - 2 * side) * image + side * (wide[first] + wide[last])
    return np.asarray(image)


def _cloudiness(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in shape)
    fx, fy, px, py = rng.uniform(0, 4, 4)
    wave = np.cos(fy * y + py)[:, None] * np.cos(fx * x + px)[None, :]
    return np.asarray(1 + 0.4 * wave, dtype=np.float32)


def _falloff(shape: tuple[int, ...], strength: float) -> NDArray[np.float32]:
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in shape)
    return (1 - np.float32(strength / 2) * (y[:, None] + x[None, :])).astype(np.float32)


def _block_code(image: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    k = np.arange(8)
    basis = np.cos(np.pi * (2 * k[None, :] + 1) * k[:, None] / 16) * 0.5
    basis[0] /= math.sqrt(2)
    basis = basis.astype(np.float32)
    step = np.float32(0.02 * strength) * (1 + (k[:, None] + k[None, :])).astype(np.float32)
    bands, rows, cols = image.shape
    padded = np.pad(image, ((0, 0), (0, -rows % 8), (0, -cols % 8)), mode="edge")
    blocks = padded.reshape(bands, padded.shape[1] // 8, 8, -1, 8).swapaxes(2, 3)
    coded = np.rint(basis @ blocks @ basis.T / step) * step
    decoded = (basis.T @ coded @ basis).swapaxes(2, 3).reshape(padded.shape)
    return np.asarray(decoded[:, :rows, :cols])
