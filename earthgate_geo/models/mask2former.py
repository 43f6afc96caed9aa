"""The Mask2Former head: masks with classes instead of classes of pixels.

The only importer of transformers, which is optional. Weights keep the names that transformers
gives them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earthgate_geo.errors import InputError, MissingDependencyError
from earthgate_geo.metrics import OTHER
from earthgate_geo.models.heads import HeadConfig

try:
    from scipy.optimize import linear_sum_assignment
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import (
        Mask2FormerPixelDecoder,
        Mask2FormerTransformerModule,
        dice_loss,
        pair_wise_dice_loss,
        pair_wise_sigmoid_cross_entropy_loss,
        sigmoid_cross_entropy_loss,
    )
except ImportError as error:
    raise MissingDependencyError(
        found="the Mask2Former head needs transformers and scipy, and they are not both installed",
        fix="Install them with: pip install 'earthgate-geo[mask2former]'",
    ) from error

_CLASS_WEIGHT, _MASK_WEIGHT, _DICE_WEIGHT, _NO_OBJECT_WEIGHT = 2.0, 5.0, 5.0, 0.1
_POINTS = 112 * 112
_OVERSAMPLE = 3
_UNCERTAIN_SHARE = 0.75
_HEAD_CHANNELS = 32


class Mask2FormerHead(nn.Module):
    """A fixed number of queries that each propose a mask and its class.

    Deformable attention refines the three coarser maps, the finest gives the masks their
    resolution, and each layer of the decoder lets a query look where its mask was so far.

    Source:
        Cheng et al. 2022, "Masked-attention mask transformer", arXiv:2112.01527, with
        transformers' decoders at the sizes of Earth-Adapter's code, arXiv:2504.06220: width 256,
        100 queries, 6 and 9 layers. Heads of attention have 32 channels and feed-forward layers
        are 4 and 8 times as wide as the head, which gives the published 8, 1024 and 2048 at width
        256. Masks stay at the size of the finest map until they are summed; mmsegmentation, on
        which that code builds, enlarges each one first.

    Args:
        channels: Channels of each of the four maps, finest first.
        classes: Number of classes.
        config: Sizes of the head.

    Raises:
        InputError: The width is not a multiple of 32.
    """

    def __init__(self, channels: Sequence[int], *, classes: int, config: HeadConfig) -> None:
        super().__init__()
        width = config.width
        if width % _HEAD_CHANNELS:
            raise InputError(
                found=f"a Mask2Former head of width {width}",
                expected=f"a multiple of {_HEAD_CHANNELS}",
            )
        sizes = Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            num_attention_heads=width // _HEAD_CHANNELS,
            encoder_layers=config.pixel_layers,
            encoder_feedforward_dim=4 * width,
            decoder_layers=config.decoder_layers + 1,  # transformers counts the first guess
            dim_feedforward=8 * width,
            dropout=0.0,
            num_queries=config.queries,
        )
        self.pixels = Mask2FormerPixelDecoder(sizes, list(channels))
        self.queries = Mask2FormerTransformerModule(width, sizes)
        self.classify = nn.Linear(width, classes + 1)  # the last is "no object"
        _initialise(self.pixels, self.queries)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map four feature maps, finest first, to logits (b, classes, h, w) of the finest map.

        A class scores the sum over the queries of its probability, "no object" left out, times
        the mask's. The logits are the scores' logarithms: their softmax is the scores' share.
        """
        classes, masks = self._proposals(maps)[-1]
        shares = classes.softmax(dim=-1)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", shares, masks.sigmoid())
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()

    def set_loss(
        self,
        maps: Sequence[Tensor],
        labels: Tensor,
        *,
        named: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every layer's proposals against one mask per class of an image.

        Queries are matched to the masks one to one; a matched query learns class and mask, the
        others that they are no object.

        Source:
            Mask2Former as in the class, weights 2 (class), 5 (cross entropy of the mask) and 5
            (dice), 12,544 points of which 3/4 are the least certain of three times as many. We
            differ: points are centres of pixels, drawn in proportion to their weight and never from
            unknown pixels, which mmsegmentation counts as outside every mask; one draw serves the
            matching and all masks of an image; an image of unknown pixels alone teaches nothing. A
            query without a mask may also be of a class that the labels do not name. The mean over
            masks is one over this process's images.

        Args:
            maps: Four feature maps, finest first.
            labels: Tensor (batch, row, col) over the area of the maps: class indices, ``OTHER``
                (outside every mask) or ``UNKNOWN``.
            named: Bool tensor (class,), True for classes that the labels name; all if absent.
            weights: Tensor (batch, row, col), 0 or more per pixel; 1 everywhere if absent. Only
                their proportions within an image count.

        Returns:
            A scalar, 0 where no pixel is known.
        """
        proposals = self._proposals(maps)
        classes = self.classify.out_features - 1
        targets = _targets(labels, weights, classes=classes)
        if not targets:
            return torch.stack([0 * (c.sum() + m.sum()) for c, m in proposals]).sum()
        unnamed = torch.zeros(classes + 1, dtype=torch.bool, device=labels.device)
        unnamed[-1] = True
        if named is not None:
            unnamed[:-1] = ~named.to(labels.device)
        with torch.autocast(labels.device.type, enabled=False):
            losses = [_layer_loss(c.float(), m.float(), targets, unnamed) for c, m in proposals]
        return torch.stack(losses).sum()

    def _proposals(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return logits (b, query, class + 1) and (b, query, h, w), the first guess first."""
        pixels = self.pixels(list(maps))
        found = self.queries(pixels.multi_scale_features, pixels.mask_features)
        return [
            (self.classify(queries.transpose(0, 1)), masks)
            for queries, masks in zip(
                found.intermediate_hidden_states, found.masks_queries_logits, strict=True
            )
        ]


@torch.no_grad()
def _initialise(pixels: Any, queries: Any) -> None:
    """Start the layers as the paper's code does; transformers does so for whole models only."""
    nn.init.normal_(pixels.level_embed)
    for layer in [*pixels.encoder.layers, *queries.decoder.layers]:
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    for layer in pixels.encoder.layers:
        _spread(layer.self_attn)


def _spread(attention: Any) -> None:
    """Let each head of deformable attention look into a direction of its own, 1 to 4 px far."""
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, points + 1).view(1, 1, points, 1)
    offsets = (directions.view(heads, 1, 1, 2) * steps).expand(heads, levels, points, 2)
    attention.sampling_offsets.bias.copy_(offsets.flatten())
    for parameter in (
        attention.sampling_offsets.weight,
        *attention.attention_weights.parameters(),
        attention.value_proj.bias,
        attention.output_proj.bias,
    ):
        nn.init.zeros_(parameter)


@dataclass(frozen=True)
class _Target:
    """What the labels of one image say."""

    image: int
    """Index in the batch."""

    labels: Tensor
    """(row, col)."""

    mass: Tensor
    """Weight of each pixel, (row, col); 0 where unknown, not 0 everywhere."""

    present: Tensor
    """Classes that have a mask, (mask,)."""

    def draw(self, points: int) -> tuple[Tensor, Tensor]:
        """Return ``points`` positions (point, 2), x and y in -1..1, and the masks there."""
        # From torch's global generator, as dropout would; training seeds it for every step.
        picked = torch.multinomial(self.mass.flatten(), points, replacement=True)
        rows, cols = self.mass.shape
        x, y = (picked % cols + 0.5) / cols, (picked // cols + 0.5) / rows
        truth = self.labels.flatten()[picked] == self.present[:, None]
        return 2 * torch.stack([x, y], dim=-1) - 1, truth.float()


def _targets(labels: Tensor, weights: Tensor | None, *, classes: int) -> list[_Target]:
    mass = ((labels < classes) | (labels == OTHER)).float()
    if weights is not None:
        mass = mass * weights
    targets = []
    for image, (its_labels, its_mass) in enumerate(zip(labels, mass, strict=True)):
        if its_mass.any():
            found = its_labels[its_mass > 0].unique()
            targets.append(_Target(image, its_labels, its_mass, found[found < classes]))
    return targets


def _layer_loss(
    classes: Tensor, masks: Tensor, targets: Sequence[_Target], unnamed: Tensor
) -> Tensor:
    """Match and judge the proposals (b, query, class + 1) and (b, query, h, w) of one layer."""
    wanted = torch.full(classes.shape[:2], len(unnamed) - 1, device=classes.device)
    mask_loss, total = masks.new_zeros(()), max(sum(len(t.present) for t in targets), 1)
    for target in targets:
        points = min(_POINTS, target.labels.numel())
        certain = int(points * (1 - _UNCERTAIN_SHARE))
        places, truth = target.draw(_OVERSAMPLE * points + certain)
        image = target.image
        query, mask = _match(
            classes[image], _look(masks[image], places[:points]), target.present, truth[:, :points]
        )
        wanted[image, query] = target.present[mask]
        chosen, truth = _look(masks[image, query], places), truth[mask]
        kept = _hard(chosen, points - certain, certain)
        chosen, truth = chosen.gather(1, kept), truth.gather(1, kept)
        mask_loss = mask_loss + _MASK_WEIGHT * sigmoid_cross_entropy_loss(chosen, truth, total)
        mask_loss = mask_loss + _DICE_WEIGHT * dice_loss(chosen, truth, total)
    seen = [target.image for target in targets]
    return mask_loss + _CLASS_WEIGHT * _class_loss(classes[seen], wanted[seen], unnamed)


def _look(masks: Tensor, places: Tensor) -> Tensor:
    """Return the masks (mask, h, w) at ``places``, (mask, point)."""
    # As the channels of one image, since all masks are read at the same places.
    return functional.grid_sample(
        masks[None], places[None, None], padding_mode="border", align_corners=False
    )[0, :, 0]


@torch.no_grad()
def _match(
    classes: Tensor, logits: Tensor, present: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the queries and the masks that belong together, at the least total cost."""
    cost = (
        _MASK_WEIGHT * pair_wise_sigmoid_cross_entropy_loss(logits, truth)
        + _DICE_WEIGHT * pair_wise_dice_loss(logits, truth)
        - _CLASS_WEIGHT * classes.softmax(dim=-1)[:, present]
    )
    # Numbers that are not finite shall show in the loss, where training looks for them.
    query, mask = linear_sum_assignment(cost.nan_to_num().cpu().numpy())
    return torch.as_tensor(query, device=truth.device), torch.as_tensor(mask, device=truth.device)


@torch.no_grad()
def _hard(logits: Tensor, uncertain: int, others: int) -> Tensor:
    """Return the places of each mask's most uncertain points, and of the ``others`` last ones."""
    last = torch.arange(logits.shape[1] - others, logits.shape[1], device=logits.device)
    first = logits[:, : logits.shape[1] - others].abs().topk(uncertain, largest=False).indices
    return torch.cat([first, last.expand(len(logits), -1)], dim=1)


def _class_loss(classes: Tensor, wanted: Tensor, unnamed: Tensor) -> Tensor:
    log_probs = classes.log_softmax(dim=-1)
    nothing = log_probs[..., unnamed].logsumexp(dim=-1, keepdim=True)
    log_probs = torch.cat([log_probs[..., :-1], nothing], dim=-1)
    weights = torch.ones(len(unnamed), device=classes.device)
    weights[-1] = _NO_OBJECT_WEIGHT
    return functional.nll_loss(log_probs.flatten(0, 1), wanted.flatten(), weight=weights)
