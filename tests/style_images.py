"""Images with colours and texture but no content."""

import numpy as np
import torch
from torch import Tensor


def smooth_noise(
    count: int,
    *,
    bands: int = 3,
    side_px: int = 48,
    length_px: float = 1.5,
    spread: float = 0.08,
    seed: int = 0,
) -> list[Tensor]:
    """Return images (band, row, col) around 0.5, each of its own mean, contrast and correlation.

    Args:
        count: How many.
        bands: Channels of each.
        side_px: Height and width.
        length_px: Deviation of the Gaussian that smooths the noise.
        spread: Deviation of the pixels, varied from image to image.
        seed: Of the noise.
    """
    rng = np.random.default_rng(seed)
    waves = np.fft.fftfreq(side_px)
    blur = np.exp(-2 * (np.pi * length_px) ** 2 * (waves[:, None] ** 2 + waves**2))
    images = []
    for _ in range(count):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(bands, side_px, side_px))) * blur).real
        noise /= noise.std((1, 2), keepdims=True)
        mixed = np.tensordot(np.eye(bands) + rng.normal(0, 0.3, (bands, bands)), noise, 1)
        level = 0.5 + rng.normal(0, 0.03, (bands, 1, 1))
        image = level + spread * rng.uniform(0.6, 1.2) * mixed
        images.append(torch.from_numpy(image).float().clamp(0, 1))
    return images
