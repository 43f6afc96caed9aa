"""Styles of images: measured, gathered in a bank, simulated, and put on other images."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from earthgate_geo.data.augment import random_blocks
from earthgate_geo.data.style_networks import EMBEDDED, PublishedStyle
from earthgate_geo.errors import InputError
from earthgate_geo.recipe import Styles

StyleKind = Literal["statistics", "published"]

_RINGS = 16
_SLOWEST, _FASTEST = 1 / 64, 1 / 2
"""Cycles per pixel of the first and the last ring; slower and faster waves belong to them."""

_FLOOR = 0.01**2
"""Least variance along any direction of colour: a flat image has a style, too."""

_ROUNDING = 1 / (12 * 255**2)
"""Variance of what bytes round away: power below it is no property of an image."""

_MOST_GAIN = 2.5
"""Of a ring or a colour: what an image hardly shows, such as waves of a dark sea, is noise."""


class Style(Protocol):
    """A way to measure the style of an image and to give it another one."""

    @property
    def kind(self) -> StyleKind:
        """Its name in a bank's file."""

    @property
    def least_px(self) -> int:
        """Height and width below which an image says too little of its style."""

    def embed(self, images: Tensor) -> Tensor:
        """Measure styles: images (batch, channel, row, col) in 0..1 -> (batch, dimension)."""

    def restyle(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """Return the images, each in the style that its row of ``embeddings`` describes."""


class StatisticsStyle:
    """Style as the statistics of colours and of the spectrum; no weights, any number of bands.

    An embedding holds, for c bands, the c means, the matrix logarithm of their covariance,
    c (c + 1) / 2 numbers, and the logarithms of the amplitudes in 16 rings of the cosine spectrum,
    1/64 to 1/2 cycles a pixel in equal ratios, each relative to that of the whole image. Every
    vector of that length describes a style, so they may be drawn and averaged; averages of matrix
    logarithms keep bands correlated and depend on no order of them. The spectrum is that of the
    bands' mean: each band's own amplitude is in the covariance already, and one gain for all bands
    leaves no coloured fringes. It does not depend on the size of the image.

    Source:
        Our stand-in, without downloads, for the style networks of CrossEarth, arXiv:2410.22629.
        The transport of colours is the linear one of Pitie and Kokaram 2007, "The linear
        Monge-Kantorovitch linear colour mapping for example-based colour transfer"; taking the
        spectrum for style follows FDA, arXiv:2004.05498, which swaps it where we give a gain.
    """

    kind: StyleKind = "statistics"
    least_px: int = 32

    def embed(self, images: Tensor) -> Tensor:
        """Measure styles.

        Args:
            images: float32 (batch, channel, row, col) in 0..1, of one channel and one pixel or
                more.

        Returns:
            float32 (batch, dimension), the dimension ``c + c * (c + 1) / 2 + 16``.
        """
        mean, covariance = _moments(images)
        colors = _logarithm(covariance).to(mean)
        return torch.cat([mean, colors, _spectrum(images, _rings(images))], 1)

    def restyle(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """Give images another spectrum, then other colours.

        Args:
            images: float32 (batch, channel, row, col) in 0..1.
            embeddings: float32 (batch, dimension), as ``embed`` returns for as many channels.

        Returns:
            float32 (batch, channel, row, col) in 0..1: the image itself for its own embedding.
            No ring and no colour is amplified by more than 2.5, no ring dampened by more. Where
            that is enough and nothing was cut off at 0 and 1, the mean and the covariance are those
            of the embedding, but for directions of colour that deviate by less than 0.01.
        """
        bands = images.shape[1]
        lengths = [bands, bands * (bands + 1) // 2, _RINGS]
        mean, colors, wanted = torch.split(embeddings, lengths, dim=1)
        rings = _rings(images)
        most = math.log(_MOST_GAIN)
        gains = (wanted - _spectrum(images, rings)).clamp(-most, most)
        filtered = _filtered(images, torch.einsum("bk,rck->brc", gains, rings).exp())
        filtered = filtered * (_contrast(images) / _contrast(filtered))
        own_mean, covariance = _moments(filtered)
        own = _covariance(_logarithm(covariance), bands)
        change = _transport(own, _covariance(colors, bands)).to(images)
        moved = change @ (filtered.flatten(2) - own_mean[..., None]) + mean[..., None]
        restyled: Tensor = moved.view_as(images).clamp(0, 1)
        return restyled


def dimension(kind: StyleKind, *, bands: int) -> int:
    """Return the length of the embeddings of images of so many bands."""
    if kind == "published":
        return EMBEDDED
    return bands + bands * (bands + 1) // 2 + _RINGS


@dataclass(frozen=True, kw_only=True)
class StyleBank:
    """The styles of many images, as a normal distribution of their embeddings.

    Source:
        CrossEarth, arXiv:2410.22629, keeps the mean and the covariance of the embeddings of
        Million-AID; we shrink the correlations (``build_bank``), so that fewer images do.
    """

    kind: StyleKind
    """What measured the embeddings."""

    bands: int
    """Channels of the images."""

    count: int
    """Images seen."""

    mean: Tensor
    """float64 (dimension,)."""

    covariance: Tensor
    """float64 (dimension, dimension)."""

    networks: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of the published style's networks; none for statistics."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What made it and of which images, for people."""

    def style(self) -> Style:
        """Return what measured the embeddings, to restyle with."""
        return PublishedStyle(self.networks) if self.kind == "published" else StatisticsStyle()


def build_bank(style: Style, images: Iterable[Tensor]) -> StyleBank:
    """Gather the styles of images; memory does not grow with their number.

    Few images show correlations by chance, above all fewer images than an embedding has
    dimensions: correlations shrink towards zero by the share that Chen's estimator finds from
    their size and the number of images. The variances stay as they are.

    Source:
        Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", the oracle
        approximating one, applied to the correlations. CrossEarth shrinks nothing.

    Args:
        style: What measures.
        images: Each float32 (channel, row, col) in 0..1, of any size, all of as many channels.

    Raises:
        InputError: There are fewer than two images, or one has other channels than the first.
    """
    bands = count = 0
    mean = spread = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for image in images:
            bands = bands or len(image)
            if len(image) != bands:
                raise InputError(
                    found=f"images of {bands} and of {len(image)} bands", expected="one number"
                )
            embedding = style.embed(image[None])[0].cpu().double()
            count += 1
            before = embedding - mean
            mean = mean + before / count
            spread = spread + torch.outer(before, embedding - mean)
    if count < 2:
        raise InputError(
            found=f"{'no image' if count == 0 else 'one image'} to take styles from",
            expected="two or more",
        )
    return StyleBank(
        kind=style.kind,
        bands=bands,
        count=count,
        mean=mean,
        covariance=_shrunk(spread / (count - 1), count),
        networks=style.networks() if isinstance(style, PublishedStyle) else {},
    )


class StyleInjector:
    """Images in a style that is mixed of their own and a simulated one, in random blocks.

    Source:
        CrossEarth, arXiv:2410.22629, Earth-Style Injection, and its code: a style is drawn as
        ``mean + U sqrt(S) n`` with U and S of the covariance's singular value decomposition and a
        standard normal n, and weighs 0.1 beside the image's own. That it is put on 70 % of the
        blocks, and these are of 64 px, is known only of a training build that its authors once
        published. Every image has its own draw here.

    Args:
        style: What measures and restyles, of the bank's kind.
        bank: The styles to simulate.
        choice: Weight of the simulated style, share and size of the blocks.

    Raises:
        InputError: The bank is of another kind of style.
    """

    def __init__(self, style: Style, bank: StyleBank, choice: Styles) -> None:
        if style.kind != bank.kind:
            raise InputError(found=f"a bank of {bank.kind} styles", expected=style.kind)
        self._style, self._choice, self._bands = style, choice, bank.bands
        directions, scales, _ = torch.linalg.svd(bank.covariance)
        self._mean, self._root = bank.mean, directions * scales.sqrt()

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Restyle random blocks of images; nothing of it can be trained through.

        Args:
            images: float32 (batch, channel, row, col) in 0..1.
            rng: Source of all randomness; one after the other, images draw as in one batch.

        Returns:
            float32 (batch, channel, row, col) in 0..1; other blocks are those of ``images``.

        Raises:
            InputError: The images have other channels than those of the bank.
        """
        if images.shape[1] != self._bands:
            raise InputError(
                found=f"images of {images.shape[1]} bands and styles of {self._bands}",
                expected="one number",
            )
        drawn = [(self._simulated(rng), self._blocks(images, rng)) for _ in images]
        simulated = torch.stack([style for style, _ in drawn]).to(images.device)
        styled = torch.stack([blocks for _, blocks in drawn])[:, None].to(images.device)
        # Eight bits of mantissa are too few for a spectrum, and the caller may compute in them.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            mixed = torch.lerp(self._style.embed(images), simulated, self._choice.strength)
            restyled = self._style.restyle(images, mixed)
            return torch.where(styled, restyled, images)

    def _simulated(self, rng: np.random.Generator) -> Tensor:
        noise = torch.from_numpy(rng.standard_normal(len(self._mean)))
        simulated: Tensor = self._mean + self._root @ noise
        return simulated.float()

    def _blocks(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        (rows, cols), choice = images.shape[2:], self._choice
        return random_blocks(rows, cols, share=choice.styled, block_px=choice.block_px, rng=rng)


def _shrunk(covariance: Tensor, count: int) -> Tensor:
    """Shrink correlations towards zero; a dimension that never varies has none."""
    dimension, variances = len(covariance), covariance.diagonal()
    scales = torch.where(variances > 0, variances, 1).sqrt()
    correlations = covariance / torch.outer(scales, scales)
    power = float(correlations.square().sum())
    excess = (count + 1 - 2 / dimension) * (power - dimension)
    share = min(1.0, ((1 - 2 / dimension) * power + dimension**2) / excess) if excess > 0 else 1.0
    return torch.lerp(covariance, torch.diag(variances), share)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (batch, channel) and covariances (batch, channel, channel)."""
    flat = images.flatten(2)
    mean = flat.mean(2)
    centred = flat - mean[..., None]
    return mean, centred @ centred.mT / flat.shape[2]


def _contrast(images: Tensor) -> Tensor:
    """Return deviations of the bands' mean, (batch, 1, 1, 1)."""
    variances = images.mean(1).flatten(1).var(1, correction=0)
    return (variances + _ROUNDING).sqrt()[:, None, None, None]


def _logarithm(covariance: Tensor) -> Tensor:
    """Return the lower triangles of matrix logarithms, float64 on the CPU: they are tiny."""
    values, vectors = torch.linalg.eigh(covariance.cpu().double())
    rows, cols = torch.tril_indices(*covariance.shape[1:])
    return _symmetric(values.clamp(min=_FLOOR).log(), vectors)[:, rows, cols]


def _covariance(logarithm: Tensor, bands: int) -> Tensor:
    """Undo ``_logarithm``."""
    matrix = torch.zeros(len(logarithm), bands, bands, dtype=torch.float64)
    rows, cols = torch.tril_indices(bands, bands)
    matrix[:, rows, cols] = logarithm.cpu().double()
    values, vectors = torch.linalg.eigh(matrix)  # of which it reads the lower triangle
    return _symmetric(values.exp(), vectors)


def _symmetric(values: Tensor, vectors: Tensor) -> Tensor:
    """Return the matrices of these eigenvalues and eigenvectors."""
    matrices: Tensor = vectors * values[:, None] @ vectors.mT
    return matrices


def _transport(own: Tensor, wanted: Tensor) -> Tensor:
    """Return the matrices that turn covariances into others and move the colours least.

    None of them stretches any colour by more than ``_MOST_GAIN``.
    """
    values, vectors = torch.linalg.eigh(own)
    root, inverse = _symmetric(values.sqrt(), vectors), _symmetric(values.rsqrt(), vectors)
    values, vectors = torch.linalg.eigh(root @ wanted @ root)
    between = _symmetric(values.clamp(min=0).sqrt(), vectors)
    values, vectors = torch.linalg.eigh(inverse @ between @ inverse)
    return _symmetric(values.clamp(max=_MOST_GAIN), vectors)


def _cosines(length: int, like: Tensor) -> Tensor:
    """Return the orthonormal cosine transform (wave, place): its transpose undoes it.

    An image goes on as its mirror image: no edge at the border is taken for texture, and none
    comes back from the other side.
    """
    waves = torch.arange(length, dtype=torch.float64)
    basis = torch.cos(math.pi / length * torch.outer(waves, waves + 0.5)) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis.to(like)


def _rings(images: Tensor) -> Tensor:
    """Return how much each wave belongs to each ring: (row, col, ring), sums of 1."""
    return _rings_of(images.shape[2], images.shape[3]).to(images)


@lru_cache(maxsize=1)  # it takes longer than all the rest, and crops of a training are of one size
def _rings_of(rows: int, cols: int) -> Tensor:
    down, across = (torch.arange(n, dtype=torch.float64) / (2 * n) for n in (rows, cols))
    cycles = torch.hypot(down[:, None], across).clamp(_SLOWEST, _FASTEST)
    place = torch.log(cycles / _SLOWEST) * ((_RINGS - 1) / math.log(_FASTEST / _SLOWEST))
    return (1 - (place.float()[..., None] - torch.arange(_RINGS)).abs()).clamp(min=0)


def _spectrum(images: Tensor, rings: Tensor) -> Tensor:
    """Return log amplitudes (batch, ring), relative to that of the image; 0 where no wave is."""
    down, across = (_cosines(length, images) for length in images.shape[-2:])
    power = (down @ images.mean(1) @ across.T).square()
    power[:, 0, 0] = 0
    weights = rings.sum((0, 1)) - rings[0, 0]
    whole = power.sum((1, 2))[:, None] / max(power[0].numel() - 1, 1)
    sums = torch.einsum("brc,rck->bk", power, rings)
    means = torch.where(weights > 0, sums / weights, whole)
    return ((means + _ROUNDING) / (whole + _ROUNDING)).log() / 2


def _filtered(images: Tensor, gains: Tensor) -> Tensor:
    """Multiply the waves of every band by gains (batch, row, col)."""
    down, across = (_cosines(length, images) for length in images.shape[-2:])
    waves = down @ images @ across.T * gains[:, None]
    return down.T @ waves @ across
