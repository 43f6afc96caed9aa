"""Reconstruction of hidden parts of images, beside the classes: for training alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.data.augment import random_blocks
from earthgate_geo.models.extractor import Extractor
from earthgate_geo.models.reconstruction import ReconstructionHead
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.recipe import MultiTask


class Reconstruction(nn.Module):
    """Hides blocks of images behind a learned token and reconstructs the images from the rest.

    Nothing of it is part of the model that it trains beside its own weights.

    Source:
        CrossEarth, arXiv:2410.22629, multi-task training, as a training build had it that its
        authors once published: L1 of the image reconstructed from the rest against the image, in
        a styled step also of the one from the styled image against the image and of the two
        against each other, all of weight 1 and over all pixels, hidden or not. Ours: any batch
        size, where that build is correct for one image; the head is as wide as the model's own,
        which is that build's 256 for Mask2Former; and the maps that the extractor enriched are
        for reconstruction alone, so that labels teach what is saved.

    Args:
        model: The network that it trains; it is not kept.
        choice: How much is hidden, and whether there is an extractor.
        crop_px: Height and width of the largest image, the size of the token.
        seed: Of new weights.
    """

    token: nn.Parameter
    """What the backbone sees in place of hidden pixels, (1, band, crop_px, crop_px), normalised."""

    def __init__(self, model: Segmenter, choice: MultiTask, *, crop_px: int, seed: int) -> None:
        super().__init__()
        self.choice = choice
        channels, bands = model.backbone.channels, model.mean.shape[1]
        self.token = nn.Parameter(torch.zeros(1, bands, crop_px, crop_px))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            self.head = ReconstructionHead(channels, width=model.config.head.width, bands=bands)
            self.extractor = (
                Extractor(channels, width=model.backbone.dim, bands=bands)
                if choice.extractor
                else None
            )

    def loss(
        self,
        model: Segmenter,
        images: Tensor,
        rngs: Sequence[np.random.Generator],
        *,
        styled: tuple[Tensor, Sequence[Tensor]] | None = None,
    ) -> Tensor:
        """Return the loss of reconstructing images (batch, band, row, col) in 0..1.

        Args:
            model: The network.
            images: No larger than the token.
            rngs: Choose the hidden blocks, one for each image.
            styled: The images in another style and their feature maps, in a styled step.
        """
        hidden = self.hidden(model, images, rngs)
        wanted = self._small(model.scaled(images))
        rest = self._reconstructed(model, hidden, model.features(hidden)[0], like=wanted)
        loss = functional.l1_loss(rest, wanted)
        if styled is None:
            return loss
        other = self._reconstructed(model, *styled, like=wanted)
        return loss + functional.l1_loss(other, wanted) + functional.l1_loss(rest, other)

    def hidden(
        self, model: Segmenter, images: Tensor, rngs: Sequence[np.random.Generator]
    ) -> Tensor:
        """Return the images, in 0..1 but for what the token puts in the place of hidden blocks."""
        rows, cols = images.shape[-2:]
        share, side = self.choice.masked, self.choice.block_px
        mask = torch.stack(
            [random_blocks(rows, cols, share=share, block_px=side, rng=rng) for rng in rngs]
        )
        token = self.token[..., :rows, :cols] * model.std + model.mean
        return torch.where(mask[:, None].to(images.device), token, images)

    def _small(self, images: Tensor) -> Tensor:
        rows, cols = (min(length, self.choice.side_px) for length in images.shape[-2:])
        return functional.interpolate(images, size=(rows, cols), mode="bilinear")

    def _reconstructed(
        self, model: Segmenter, images: Tensor, maps: Sequence[Tensor], *, like: Tensor
    ) -> Tensor:
        if self.extractor is not None:
            maps = self.extractor(model.scaled(images), maps)
        image: Tensor = self.head(maps, size=like.shape[-2:])
        return image.float()
