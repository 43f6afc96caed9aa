"""Masked image modelling: what a backbone learns from images that nobody has labelled."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.data.augment import random_blocks
from earthgate_geo.models.segmenter import Segmenter

_HIDDEN, _BLOCK_PX = 0.6, 32


class MaskedImages(nn.Module):
    """Hides blocks of images and paints them from the last feature map, by one linear layer.

    Source:
        Xie et al. 2022, "SimMIM", arXiv:2111.09886: a learned token in the place of 60 % of the
        blocks of 32 px, a linear decoder, L1 over hidden pixels. Ours: the token lies in the image
        and not among the tokens, so that no stem of convolutions sees what is hidden, and each
        block is hidden by a draw of its own.

    Args:
        model: Whose backbone is to learn; it is not kept.
    """

    token: nn.Parameter
    """What the backbone sees in place of hidden pixels, (1, band, 1, 1), normalised."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        bands, self._patch_px = model.mean.shape[1], model.backbone.patch_px
        self.token = nn.Parameter(torch.zeros(1, bands, 1, 1))
        self.paint = nn.Conv2d(model.backbone.channels[-1], bands * self._patch_px**2, 1)

    def loss(self, model: Segmenter, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the mean error on hidden pixels, in normalised values.

        Args:
            model: The network.
            images: Tensor (batch, band, row, col) in 0..1, rows and columns whole patches.
            rng: Chooses the hidden blocks.
        """
        rows, cols = images.shape[-2:]
        hidden = torch.stack(
            [random_blocks(rows, cols, share=_HIDDEN, block_px=_BLOCK_PX, rng=rng) for _ in images]
        )
        hidden = hidden[:, None].to(images.device)
        wanted = model.scaled(images)
        maps = model.backbone(torch.where(hidden, self.token, wanted))
        painted = functional.pixel_shuffle(self.paint(maps[-1]), self._patch_px).float()
        error = (painted - wanted).abs().mean(1, keepdim=True) * hidden
        return error.sum() / hidden.sum().clamp(min=1)
