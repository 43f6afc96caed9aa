"""Training crops at any ground size from labelled tiles in memory."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_MOST_ENLARGED = 2.0
_NEAR, _NEAR_SPAN = 0.7, 2.0
"""Share of the crops that are seen close to a tile's own ground size, and how close."""


class TilePool:
    """Labelled square tiles of one origin, all of as many pixels.

    Args:
        images: Digital numbers scaled to 0..255, (tile, 3, row, col).
        labels: Class values, ``OTHER`` or ``UNKNOWN``, (tile, row, col).
        gsd_m: Ground size of a pixel, (tile,).
        share: Share of this pool in a batch, relative to the other pools.
    """

    share: float
    """Share of this pool in a batch, relative to the other pools."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        gsd_m: NDArray[np.float32],
        *,
        share: float,
    ) -> None:
        by_gsd = np.argsort(gsd_m, kind="stable")
        self.share, self._labels, self._gsd_m = share, labels[by_gsd], gsd_m[by_gsd]
        # Bands last: so torch resizes bytes several times faster.
        self._images = torch.from_numpy(images[by_gsd]).contiguous(
            memory_format=torch.channels_last
        )

    def __len__(self) -> int:
        return len(self._labels)

    def sample(self, count: int, rng: np.random.Generator) -> Tensor:
        """Return random whole tiles as they are, float32 (count, 3, row, col) in 0..1."""
        chosen = torch.from_numpy(rng.integers(len(self), size=count))
        return self._images[chosen].contiguous().float() / 255

    def crop(
        self, crop_px: int, rng: np.random.Generator, *, gsd_m: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Cut a random square out of a random tile, seen at a random ground size, and turn it.

        Most crops are seen within a factor of two of the tile's own ground size, where one tile
        nearly fills them; the rest are spread over the whole range. No tile is enlarged more than
        twice. Where the tile ends before the crop, other tiles of the pool, seen at the same
        ground size, lie beside it.

        Args:
            crop_px: Height and width.
            rng: Source of all randomness.
            gsd_m: Smallest and largest ground size of a pixel; draws are even by the logarithm.

        Returns:
            float32 (3, crop_px, crop_px) in 0..1, and class values, int64 (crop_px, crop_px).
        """
        tile, (finest, coarsest) = int(rng.integers(len(self))), gsd_m
        own_m = float(self._gsd_m[tile])
        if rng.random() < _NEAR:
            finest, coarsest = max(finest, own_m / _NEAR_SPAN), min(coarsest, own_m * _NEAR_SPAN)
        finest = max(finest, own_m / _MOST_ENLARGED)
        seen_m = float(np.exp(rng.uniform(np.log(finest), np.log(max(finest, coarsest)))))
        image, labels = self._mosaic(tile, seen_m, crop_px, rng)
        turns = int(rng.integers(4))
        image, labels = torch.rot90(image, turns, (1, 2)), torch.rot90(labels, turns, (0, 1))
        if rng.integers(2):
            image, labels = image.flip(2), labels.flip(1)
        return image.float() / 255, labels.long()

    def _mosaic(
        self, tile: int, seen_m: float, crop_px: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cover a crop with cells as large as ``tile`` looks, the tile itself among them."""
        cell_px = max(1, min(crop_px, int(self._side_px(tile, seen_m))))
        cells = -(-crop_px // cell_px)
        # Tiles in the order of their ground size: these are large enough, and not enlarged too far.
        first = int(np.searchsorted(self._gsd_m, self._gsd_m[tile]))
        last = int(np.searchsorted(self._gsd_m, seen_m * _MOST_ENLARGED, side="right"))
        chosen = rng.integers(first, max(last, first + 1), (cells, cells))
        chosen[tuple(rng.integers(cells, size=2))] = tile
        image = torch.empty(3, cells * cell_px, cells * cell_px, dtype=torch.uint8)
        labels = torch.empty(image.shape[1:], dtype=torch.uint8)
        for (down, across), other in np.ndenumerate(chosen):
            rows, cols = (slice(at * cell_px, (at + 1) * cell_px) for at in (down, across))
            image[:, rows, cols], labels[rows, cols] = self._cell(int(other), seen_m, cell_px, rng)
        row, col = rng.integers(cells * cell_px - crop_px + 1, size=2)
        rows, cols = slice(row, row + crop_px), slice(col, col + crop_px)
        return image[:, rows, cols], labels[rows, cols]

    def _cell(
        self, tile: int, seen_m: float, cell_px: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a random part of a tile, ``cell_px`` large where it is seen at ``seen_m``."""
        whole = self._images.shape[-1]
        side = max(1, min(whole, round(cell_px * whole / self._side_px(tile, seen_m))))
        row, col = rng.integers(whole - side + 1, size=2)
        part = self._images[tile : tile + 1, :, row : row + side, col : col + side]
        if side != cell_px:
            part = functional.interpolate(part, size=cell_px, mode="bilinear", antialias=True)
        nearest = ((np.arange(cell_px) + 0.5) * (side / cell_px)).astype(np.intp)
        labels = self._labels[tile][np.ix_(row + nearest, col + nearest)]
        return part[0], torch.from_numpy(labels)

    def _side_px(self, tile: int, seen_m: float) -> float:
        """Return how large a tile looks at the ground size ``seen_m``."""
        return float(self._images.shape[-1] * self._gsd_m[tile] / seen_m)
