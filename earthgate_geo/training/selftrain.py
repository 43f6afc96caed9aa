"""Self-training on a scene: pseudo-labels of a teacher, mixed with replayed or labelled tiles."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from earthgate_geo.data.augment import HEIGHTS_LOST
from earthgate_geo.data.replay import Replay
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.models.view import View
from earthgate_geo.raster.bands import NO_HEIGHT
from earthgate_geo.training.radiometry import vary_radiometry


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What a teacher thinks of a batch of tiles, and how much it is believed."""

    labels: Tensor
    """(batch, row, col), class indices; ``UNKNOWN`` where the scene has no data."""

    weights: Tensor
    """(batch, row, col), 0..1."""


class Alignment:
    """Holds the class shares of a teacher to those that the source model saw in the scene.

    Self-training lets common classes swallow rare ones: each round the teacher is surer of what
    it taught. Dividing by its running shares and multiplying by the source model's undoes that.

    Source:
        Distribution alignment, Berthelot et al. 2020, "ReMixMatch", arXiv:1911.09785, with the
        source model's shares in place of labelled ones.

    Args:
        wanted: Share of each class in the source model's labels of the scene, (class,).
    """

    wanted: Tensor
    """(class,)."""

    running: Tensor
    """Shares in what it has followed so far, (class,)."""

    def __init__(self, wanted: Tensor) -> None:
        self.wanted = wanted
        self.running = wanted.clone()

    def follow(self, probabilities: Tensor, valid: Tensor) -> None:
        """Take a batch (batch, class, row, col) of a training step into the running shares."""
        if valid.any():
            self.running.lerp_(shares(probabilities, valid), 0.1)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Align probabilities (batch, class, row, col)."""
        ratio = ((self.wanted + 1e-3) / (self.running + 1e-3)).clamp(max=10.0)
        aligned = probabilities * ratio.view(1, -1, 1, 1)
        return aligned / aligned.sum(1, keepdim=True)


def shares(probabilities: Tensor, valid: Tensor) -> Tensor:
    """Return the share of the valid pixels where each class is the likeliest, (class,)."""
    counts = torch.bincount(probabilities.argmax(1)[valid], minlength=probabilities.shape[1])
    return counts / counts.sum().clamp(min=1)


@torch.no_grad()
def both_ways(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the mean probabilities (batch, class, row, col) of images and their mirror images."""
    straight = torch.softmax(network(images).float(), 1)
    mirrored = torch.softmax(network(images.flip(-1)).float(), 1).flip(-1)
    return (straight + mirrored) / 2


def pseudo_label(probabilities: Tensor, valid: Tensor, *, keep: float) -> PseudoLabels:
    """Turn a teacher's probabilities into labels that are believed by their certainty.

    A class keeps the ``keep`` most certain share of its own pixels, so that classes the teacher is
    shy about are not starved (class-balanced self-training); a kept pixel weighs by its
    certainty.

    Source:
        Zou et al. 2018, "Class-balanced self-training", arXiv:1810.07911, per batch instead of
        over the data set.

    Args:
        probabilities: (batch, class, row, col).
        valid: (batch, row, col), True where the scene has data.
        keep: Share of each class's pixels that is believed, 0..1.
    """
    certainty, labels = probabilities.max(1)
    weights = torch.zeros_like(certainty)
    for value in torch.unique(labels):
        own = (labels == value) & valid
        if own.any():
            bar = torch.quantile(certainty[own][:: max(int(own.sum()) // 20000, 1)], 1 - keep)
            weights = torch.where(own & (certainty >= bar), certainty, weights)
    return PseudoLabels(labels=labels.masked_fill(~valid, UNKNOWN), weights=weights)


def class_mix(
    images: Tensor,
    pseudo: PseudoLabels,
    donors: tuple[Tensor, Tensor],
    *,
    weight: float,
    rng: np.random.Generator,
) -> tuple[Tensor, PseudoLabels]:
    """Paste half of the classes of labelled tiles onto pseudo-labelled ones.

    Source:
        DACS, Tranheden et al. 2021, arXiv:2007.08702, as used by Earth-Adapter; here the
        pseudo-labelled part is weighted by certainty, which that build leaves out.

    Args:
        images: Target tiles (batch, channel, row, col).
        pseudo: Their pseudo-labels.
        donors: As many labelled tiles: images and labels of the same shapes.
        weight: Of a pasted pixel; a pseudo-labelled one weighs by its certainty, at most 1.
        rng: Chooses the classes.
    """
    donor_images, donor_labels = donors
    pasted = torch.zeros_like(donor_labels, dtype=torch.bool)
    for index, labels in enumerate(donor_labels):
        present = [int(v) for v in torch.unique(labels) if v != UNKNOWN]
        for value in rng.permutation(present)[: (len(present) + 1) // 2]:
            pasted[index] |= labels == int(value)
    mixed = torch.where(pasted.unsqueeze(1), donor_images, images)
    return mixed, PseudoLabels(
        labels=torch.where(pasted, donor_labels, pseudo.labels),
        weights=torch.where(pasted, weight, pseudo.weights),
    )


class ReplaySource:
    """Draws labelled tiles from a model's replay set, at the size of the target's tiles."""

    view: View
    """How the target is shown to the network; the tiles are drawn as the target's sensor has it."""

    def __init__(self, replay: Replay, *, size_px: int, heights: bool = False) -> None:
        self.view = View()
        self._heights = heights
        self._images = torch.from_numpy(replay.images)
        self._labels = torch.from_numpy(replay.labels.astype(np.int64))
        self._size_px = size_px

    @classmethod
    def split(
        cls, replay: Replay, *, size_px: int, held_back: int, heights: bool = False
    ) -> tuple["ReplaySource", tuple[Tensor, Tensor]]:
        """Return a source for training, and up to ``held_back`` tiles that it never draws.

        Args:
            replay: The tiles.
            size_px: Height and width of the target's tiles.
            held_back: Most tiles to hold back; these are without a channel of heights.
            heights: Whether the network takes heights; those of the tiles are missing.
        """
        count = min(held_back, len(replay.images) // 4)
        rest = Replay(replay.images[count:], replay.labels[count:])
        guard = cls(Replay(replay.images[:count], replay.labels[:count]), size_px=size_px)
        return cls(rest, size_px=size_px, heights=heights), (
            guard._fit(guard._images.float() / 255),
            guard._fit(guard._labels.unsqueeze(1)).squeeze(1),
        )

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return ``count`` images in 0..1 and their labels, repeated to fill the tile size."""
        chosen = torch.from_numpy(rng.integers(len(self._images), size=count))
        images = self.view.undone(self._fit(self._images[chosen].float() / 255))
        if self._heights:
            images = without_heights(images)
        return images, self._fit(self._labels[chosen].unsqueeze(1)).squeeze(1)

    def _fit(self, tiles: Tensor) -> Tensor:
        repeats = -(-self._size_px // tiles.shape[-1])
        return tiles.tile(1, 1, repeats, repeats)[..., : self._size_px, : self._size_px]


def forget_heights(images: Tensor, rng: np.random.Generator, *, bands: int) -> Tensor:
    """Take the heights from a tenth of the tiles, so that a network does not come to need them.

    Source:
        Ours; dropping a whole modality is known as ModDrop, Neverova et al. 2014,
        arXiv:1501.00102.

    Args:
        images: (batch, channel, row, col), the bands first; as they are where there is no more.
        rng: Chooses the tiles.
        bands: Number of bands.
    """
    if images.shape[1] == bands:
        return images
    forgotten = torch.from_numpy(rng.random(len(images)) < HEIGHTS_LOST)
    images = images.clone()
    images[forgotten, bands:] = NO_HEIGHT
    return images


def without_heights(images: Tensor) -> Tensor:
    """Append a channel of heights that are missing to images (batch, band, row, col)."""
    return torch.cat([images, torch.full_like(images[:, :1], NO_HEIGHT)], dim=1)


def strengthen(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary the radiometry of every tile of a batch (batch, channel, row, col), for the student."""
    return torch.stack([vary_radiometry(image, rng) for image in images])
