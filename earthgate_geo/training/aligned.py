"""A model aligned to a scene before any training there: its view, and classes held back."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from earthgate_geo.metrics import Confusion
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.models.heads import TemperedHead
from earthgate_geo.models.view import View
from earthgate_geo.training.alignment import ViewChoice, choose_view
from earthgate_geo.training.guard import label_fit
from earthgate_geo.training.loop import fast_arithmetic
from earthgate_geo.training.outlines import Restraint, restrain
from earthgate_geo.training.selftrain import ReplaySource, shares
from earthgate_geo.training.tiles import SceneTiles, TileBatch

_LOOKS = 3
"""Tiles that an alignment rests on, for each that the guard looks at. With a third of them it
changed from one draw to the next, and now and then for the worse (benchmarks/adaptation.md)."""

_CLEARLY, _CLEARLY_FEW = 0.02, 0.1
"""Labels refuse an alignment that fits them by so much less, of 1; a handful by the second: one
thing of ten moves their fit by some points, and once refused what had gained five."""


class AlignedModel:
    """A copy of a source model, aligned to a scene.

    Args:
        loaded: The source model; it is copied, not changed.
        device: Where the network runs.
        tile_px: Height and width of the tiles.
        looks: Tiles that the guard looks at; replay holds back as many.
    """

    choice: ViewChoice | None
    """How the scene is shown, and why; None for a model without statistics."""

    restraints: list[Restraint]
    """Classes that were said too readily."""

    wanted: Tensor
    """Share of each class in the scene, as it is seen before any training, (class,)."""

    def __init__(
        self, loaded: LoadedModel, *, device: torch.device, tile_px: int, looks: int
    ) -> None:
        self.model = copy.deepcopy(loaded.segmenter).to(device)
        self.choice, self.restraints = None, []
        self._statistics, self._device, self._looks = loaded.statistics, device, looks
        self.replay: ReplaySource | None = None
        self.held_back: tuple[Tensor, Tensor] | None = None
        """Replay tiles that never train, as the scene's sensor has them, and their labels."""
        if loaded.replay:
            self.replay, self.held_back = ReplaySource.split(
                loaded.replay,
                size_px=tile_px,
                held_back=looks,
                heights=self.model.config.heights,
            )
        self._set_aside = self.held_back

    @property
    def is_changed(self) -> bool:
        """Whether anything is other than in the source model."""
        return self.model.view != View() or bool(self.restraints)

    def align(self, tiles: SceneTiles) -> None:
        """Choose how the scene is shown and which classes are said too readily there.

        Labels, all of which are new to the model as yet, may refuse that.
        """
        scene = tiles.draw(_LOOKS * self._looks)
        self._show(View())
        self._plain = self._state()
        seen = self._looked_at(scene)
        source = shares(seen, scene.valid)
        if self._statistics is not None:
            images = self._bands(scene.images[: _LOOKS * self._looks // 2])
            self.choice = choose_view(self.model, self._statistics, images)
            self._show(self.choice.view)
            if self.is_changed:
                seen = self._looked_at(scene)
        head = self.model.head
        if isinstance(head, TemperedHead):
            self.restraints = restrain(seen, self._bands(scene.images), scene.valid)
            for each in self.restraints:
                head.offset(each.index, each.offset)
                seen[:, each.index] += each.offset
        aligned = shares(seen, scene.valid)
        self._shares = (source + aligned) / 2
        if self.is_changed and tiles.labelled and not self._labels_agree(tiles):
            self._restore(self._plain)
            self.restraints = []
        self.wanted = aligned if self.is_changed else source

    @contextmanager
    def unaligned(self) -> Iterator[None]:
        """Show the scene as it comes to the source model as it is, for a while."""
        aligned = self._state()
        self._restore(self._plain)
        try:
            yield
        finally:
            self._restore(aligned)

    def logits(self, images: Tensor) -> Tensor:
        """Map images (batch, channel, row, col) to float logits."""
        with fast_arithmetic(self._device):
            logits: Tensor = self.model(images.to(self._device))
        return logits.float()

    def logits_on_cpu(self, images: Tensor) -> Tensor:
        """Map images to logits for the guard."""
        return self.logits(images).cpu()

    @torch.no_grad()
    def _looked_at(self, batch: TileBatch) -> Tensor:
        """Return the logits of a batch, (batch, class, row, col)."""
        return torch.cat([self.logits_on_cpu(image[None]) for image in batch.images])

    def _labels_agree(self, tiles: SceneTiles) -> bool:
        """Tell whether labels do not clearly fit the source model better."""
        windows = tiles.held_back_windows()[: self._looks] + tiles.labelled_windows(self._looks)
        batch = tiles.read(windows, held_back=None)
        named = sorted(tiles.named)
        aligned = self._label_fit(batch, named)
        bar = _CLEARLY if tiles.holds_back else _CLEARLY_FEW
        with self.unaligned():
            return aligned > self._label_fit(batch, named) - bar

    def _label_fit(self, batch: TileBatch, named: list[int]) -> float:
        """Return how well the model fits the labels of a batch, 0..1."""
        found = Confusion(self.model.config.classes.names, named=named)
        said = self._looked_at(batch).argmax(1)
        found.add(batch.labels.numpy(), said.numpy())
        return label_fit(found, self._shares.tolist()) or 0.0

    def _state(self) -> tuple[View, dict[str, Any]]:
        return self.model.view, copy.deepcopy(self.model.head.state_dict())

    def _restore(self, state: tuple[View, dict[str, Any]]) -> None:
        view, head = state
        self.model.head.load_state_dict(head)
        self._show(view)

    def _show(self, view: View) -> None:
        """Show the scene so from now on."""
        self.model.view = view
        if self.replay is not None and self._set_aside is not None:
            self.replay.view = view
            images, labels = self._set_aside
            self.held_back = view.undone(images), labels

    def _bands(self, images: Tensor) -> Tensor:
        """Return images without their heights: light is what is looked at."""
        return images[:, : len(self.model.config.bands)]
