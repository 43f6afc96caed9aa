"""What sensors, haze and compression do to an image, drawn at random for training."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def resize(bands: Tensor, size_px: int) -> Tensor:
    """Resize an image (band, row, col) to a square of ``size_px``, anti-aliased."""
    return functional.interpolate(
        bands[None], size=(size_px, size_px), mode="bilinear", antialias=True
    )[0]


def vary_radiometry(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary an image (3, height, width) in 0..1 as sensors, haze and compression do."""
    image = image.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.3)))
    contrast = torch.from_numpy(np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.06, 3))).float()
    offset = torch.from_numpy(rng.normal(0, 0.05) + rng.normal(0, 0.025, 3)).float()
    mean = image.mean((1, 2), keepdim=True)
    image = (image - mean) * contrast.view(3, 1, 1) + mean + offset.view(3, 1, 1)
    draw = rng.random()
    if draw < 0.15:
        image = image * (1 - (haze := float(rng.uniform(0.1, 0.5)))) + haze * 0.8
    elif draw < 0.3:
        shrink = int(image.shape[-1] / rng.uniform(1.2, 2.5))
        image = resize(resize(image, shrink), image.shape[-1])
    elif draw < 0.45:
        noise = rng.normal(0, rng.uniform(0.01, 0.05), tuple(image.shape))
        image = image + torch.from_numpy(noise).float()
    return image.clamp(0, 1)
