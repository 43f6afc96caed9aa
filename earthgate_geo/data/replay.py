"""Generated, labelled tiles that a model file carries, coded as JPEG and PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Replay:
    """Generated, labelled tiles for adaptation without source data."""

    images: NDArray[np.uint8]
    """(tile, 3, row, col), 0..255 after radiometric scaling."""

    labels: NDArray[np.uint8]
    """Class values, (tile, row, col)."""

    def pack(self) -> tuple[Tensor, list[list[int]]]:
        """Return the coded tiles as bytes, one after another, and the lengths of each pair.

        Images lose a little (JPEG, quality 90), labels nothing.
        """
        coded = [
            [_encode(image.transpose(1, 2, 0), "JPEG", quality=90), _encode(label, "PNG")]
            for image, label in zip(self.images, self.labels, strict=True)
        ]
        joined = np.frombuffer(b"".join(part for pair in coded for part in pair), np.uint8)
        return torch.from_numpy(joined.copy()), [[len(part) for part in pair] for pair in coded]

    @classmethod
    def unpack(cls, packed: Tensor, lengths: Sequence[Sequence[int]]) -> "Replay":
        """Read what ``pack`` returned."""
        flat = [length for pair in lengths for length in pair]
        parts = [
            np.asarray(Image.open(BytesIO(part.numpy().tobytes())))
            for part in torch.split(packed, flat)
        ]
        images = np.stack(parts[::2]).transpose(0, 3, 1, 2)
        return cls(images=np.ascontiguousarray(images), labels=np.stack(parts[1::2]))


def _encode(pixels: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
