"""What sensors, haze and compression do to an image, drawn at random for training."""

from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional


def resize(bands: Tensor, size_px: int) -> Tensor:
    """Resize an image (band, row, col) to a square of ``size_px``, anti-aliased."""
    return functional.interpolate(
        bands[None], size=(size_px, size_px), mode="bilinear", antialias=True
    )[0]


def vary_radiometry(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary an image (3 or more, height, width) in 0..1 as sensors, haze and compression do.

    What follows the three bands, heights, stays as it is.
    """
    image, rest = image[:3], image[3:]
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
    return torch.cat([image.clamp(0, 1), rest])


def vary_sensor(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary an image as other air, optics, sensors, band orders and files would.

    Stronger than ``vary_radiometry``: for the training of source models that have to travel.

    Args:
        image: Tensor (3, height, width) in 0..1.
        rng: Source of all randomness.

    Returns:
        Tensor (3, height, width) in 0..1.
    """
    for effect, share in _EFFECTS:
        if rng.random() < share:
            image = effect(image, rng)
    return image


def vary_haze(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Put up to 0.6 of haze over an image (3, height, width), in half of all cases in drifts."""
    density = float(rng.uniform(0.1, 0.6))
    if rng.random() < 0.5:
        knots = int(rng.integers(2, 6))
        drawn = torch.from_numpy(rng.random((1, 1, knots, knots), np.float32))
        drifts = functional.interpolate(drawn, size=image.shape[1:], mode="bicubic")[0]
        haze = density * drifts.clamp(0, 1)
    else:
        haze = torch.full((1, 1, 1), density)
    # Airlight is bluish: of bands red, green, blue the last is lit most.
    airlight = rng.uniform(0.6, 0.95) + np.array([-0.04, 0, 0.04]) * rng.uniform(0, 1)
    return torch.lerp(image, _per_band(airlight), haze)


def vary_blur(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur an image (3, height, width) by a Gaussian of 0.4 to 1.6 pixels."""
    sigma_px = float(rng.uniform(0.4, 1.6))
    reach = int(np.ceil(2.5 * sigma_px))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px).square())
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    padded = functional.pad(image[:, None], (reach, reach, reach, reach), mode="reflect")
    across = functional.conv2d(padded, kernel.mT)
    return functional.conv2d(across, kernel)[:, 0].clamp(0, 1)


def vary_sharpness(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Make an image (3, height, width) 1.2 to 3 times coarser, and large again."""
    side = image.shape[-1]
    return resize(resize(image, max(1, int(side / rng.uniform(1.2, 3.0)))), side).clamp(0, 1)


def vary_tone(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary gamma, contrast and brightness of an image (3, height, width)."""
    image = image ** float(np.exp(rng.normal(0, 0.35)))
    mean = image.mean()
    contrast, offset = float(np.exp(rng.normal(0, 0.25))), float(rng.normal(0, 0.07))
    return ((image - mean) * contrast + mean + offset).clamp(0, 1)


def vary_color(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary the gain and offset of each band of an image (3, height, width), and saturation."""
    grey = image.mean(0, keepdim=True)
    image = torch.lerp(grey, image, float(rng.uniform(0.3, 1.5)))
    gains, offsets = np.exp(rng.normal(0, 0.12, 3)), rng.normal(0, 0.04, 3)
    return (image * _per_band(gains) + _per_band(offsets)).clamp(0, 1)


def vary_noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Add noise of a deviation of 0.01 to 0.06 to an image (3, height, width)."""
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))
    return (image + noise * float(rng.uniform(0.01, 0.06))).clamp(0, 1)


def vary_bands(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Show an image (3, height, width) as grey, as one of its bands, or in another band order."""
    draw = rng.random()
    if draw < 0.3:
        return image.mean(0, keepdim=True).expand(3, -1, -1)
    if draw < 0.55:
        return image[[int(rng.integers(3))] * 3]
    return image[torch.from_numpy(rng.permutation(3))]


def vary_compression(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Compress an image (3, height, width) as JPEG of a quality of 20 to 85."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0)
    buffer = BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=int(rng.integers(20, 86)))
    with Image.open(buffer) as coded:
        decoded = torch.from_numpy(np.array(coded))
    return decoded.permute(2, 0, 1).float() / 255


def _per_band(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float().view(3, 1, 1)


_EFFECTS = (
    (vary_haze, 0.25),
    (vary_blur, 0.15),
    (vary_sharpness, 0.15),
    (vary_tone, 0.7),
    (vary_color, 0.5),
    (vary_noise, 0.2),
    (vary_bands, 0.2),
    (vary_compression, 0.25),
)
"""What happens to light on its way from the ground into a file, and how often, 0..1."""
