"""Batches of tiles of scenes at the network's scale, for adaptation and its guard."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.overlap import window_there
from earthgate_geo.data.sampling import ValidRandomSampler
from earthgate_geo.data.scenes import NetworkInput, SceneDataset, TilePlan
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.raster.grid import Grid, Size, Window
from earthgate_geo.raster.read import Radiometry

HELD_BACK_SHARE = 0.2
"""Share of the labelled blocks that the guard keeps for itself."""

MIN_BLOCKS = 5
"""Fewer labelled blocks than this all train; the guard then sees the labels that train."""

ENOUGH_BLOCKS, ENOUGH_TILES = 20, 3.0
"""So do fewer blocks than this with labels for less than so many tiles. Two held back of ten
things judge a model no better than a coin, and are missed in training."""


@dataclass(frozen=True, kw_only=True)
class SceneView:
    """A scene as a network sees it."""

    dataset: SceneDataset
    """The scene, with labels or without, and without transforms."""

    plan: TilePlan
    """The scale."""

    radiometry: Radiometry
    """Of the scene, for the dataset's bands."""

    height_radiometry: Radiometry | None = None
    """Of its heights, ``UNSCALED`` where there are none; None for a network that takes none."""


class SceneWindow(NamedTuple):
    """A window of one of several scenes."""

    scene: int
    """Place of the scene among them."""

    window: Window
    """In pixels of that scene."""


_Spot = tuple[int, int, int, int]
"""A labelled pixel: place of its scene, row, column, class value."""

_Block = tuple[int, int, int]
"""A block of labels: place of its scene, row and column of the block."""


@dataclass(frozen=True)
class TileBatch:
    """Tiles as the network sees them."""

    images: Tensor
    """(batch, channel, row, col): bands in 0..1, then the heights where the network takes them."""

    valid: Tensor
    """(batch, row, col), True where the scene has data."""

    labels: Tensor
    """(batch, row, col) of class values, ``OTHER`` or ``UNKNOWN``; all unknown without labels."""


class SceneTiles:
    """Draws square tiles of scenes, ``size_px`` wide for the network.

    Each scene has its own scale and radiometry, and gives tiles by its valid area as the network
    sees it. Labels are split into blocks of one tile: a share of the blocks of all scenes, with
    every class in turn, is held back for the guard, the rest trains. Where scenes overlap, ground
    that one holds back trains in none. Memory: the tiles asked for, and the positions of labels.

    Args:
        views: The scenes.
        size_px: Height and width of a tile in network pixels.
        generator: Source of all randomness.

    Raises:
        EmptySceneError: A scene has no valid pixel.
    """

    def __init__(
        self, views: Sequence[SceneView], *, size_px: int, generator: torch.Generator
    ) -> None:
        self._generator = generator
        network = Size(size_px, size_px)
        self._scenes = [_Cut(view, network, generator) for view in views]
        self._areas = torch.tensor([scene.area_tiles for scene in self._scenes])
        self._spots = self._hold_back()

    @property
    def holds_back(self) -> bool:
        """Tell whether the guard has labels of its own."""
        return any(scene.held_back for scene in self._scenes)

    @property
    def labelled(self) -> bool:
        """Tell whether a scene has labels to train on."""
        return bool(self._spots)

    @property
    def named(self) -> frozenset[int]:
        """Values of the classes that the labels of any scene name; empty without labels."""
        return frozenset(chain.from_iterable(scene.named for scene in self._scenes))

    def draw(self, count: int) -> TileBatch:
        """Draw ``count`` random tiles with enough valid pixels."""
        drawn = []
        for _ in range(count):
            place = self._any_scene()
            drawn.append(SceneWindow(place, self._scenes[place].draw()))
        return self.read(drawn)

    def draw_labelled(self, count: int) -> TileBatch:
        """Draw ``count`` tiles as ``labelled_windows`` does."""
        return self.read(self.labelled_windows(count))

    def labelled_windows(self, count: int) -> list[SceneWindow]:
        """Return ``count`` windows around labelled pixels, every class as often as the others."""
        values = sorted({value for *_, value in self._spots})
        windows = []
        for _ in range(count):
            value = values[self._below(len(values))]
            own = [spot for spot in self._spots if spot[-1] == value]
            place, row, col, _ = own[self._below(len(own))]
            windows.append(SceneWindow(place, self._scenes[place].around(row, col)))
        return windows

    def scattered_windows(self, count: int) -> list[SceneWindow]:
        """Return random windows of the scenes, labelled or not.

        Each gives its area's share of ``count``, and at least one, so that none goes unseen.
        """
        shares = count * self._areas / self._areas.sum()
        return [
            SceneWindow(place, scene.draw())
            for place, scene in enumerate(self._scenes)
            for _ in range(max(1, round(float(shares[place]))))
        ]

    def held_back_windows(self) -> list[SceneWindow]:
        """Return the blocks whose labels are held back, as windows, the scenes in turn."""
        turns = zip_longest(
            *(
                [SceneWindow(place, scene.block_window(block)) for block in sorted(scene.held_back)]
                for place, scene in enumerate(self._scenes)
            )
        )
        return [window for window in chain.from_iterable(turns) if window is not None]

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Draw tiles that will be drawn once more afterwards: a look at the coming steps."""
        state = self._generator.get_state()
        try:
            yield
        finally:
            self._generator.set_state(state)

    def read(self, windows: Sequence[SceneWindow], *, held_back: bool | None = False) -> TileBatch:
        """Read tiles with their training labels, with the ``held_back`` ones, or (None) with all.

        Where none are held back, all labels are both.
        """
        wanted = held_back if self.holds_back else None
        tiles = [self._scenes[place].read(window, held_back=wanted) for place, window in windows]
        images, valid, labels = (torch.stack(parts) for parts in zip(*tiles, strict=True))
        return TileBatch(images, valid, labels)

    def _hold_back(self) -> list[_Spot]:
        """Hold back blocks of labels; return the labelled pixels that train."""
        spots = [
            (place, *spot) for place, scene in enumerate(self._scenes) for spot in scene.positions
        ]
        values: dict[_Block, set[int]] = defaultdict(set)
        for place, row, col, value in spots:
            values[place, *self._scenes[place].block(row, col)].add(value)
        labelled_tiles = sum(scene.labelled_tiles for scene in self._scenes)
        few = len(values) < ENOUGH_BLOCKS and labelled_tiles < ENOUGH_TILES
        if few or len(values) < MIN_BLOCKS:
            return spots
        left = round(HELD_BACK_SHARE * len(values))
        blocks = sorted(values)
        shuffled = torch.randperm(len(blocks), generator=self._generator).tolist()
        order = [blocks[chosen] for chosen in shuffled]
        for place, row, col in _in_turn(order, values):
            if left > 0:
                left -= self._withhold(place, (row, col))
        training = [spot for spot in spots if self._scenes[spot[0]].trains(*spot[1:3])]
        if training:
            return training
        for scene in self._scenes:  # pictures of one small place: there is nothing to part
            scene.release()
        return spots

    def _withhold(self, place: int, block: tuple[int, int]) -> int:
        """Hold a block back, and its ground from the training of all; return in how many scenes."""
        home = self._scenes[place]
        home.held_back.add(block)
        others = [scene for scene in self._scenes if scene is not home and scene.positions]
        met = [scene for scene in others if scene.withhold(home.grid, home.block_window(block))]
        return 1 + len(met)

    def _any_scene(self) -> int:
        if len(self._scenes) == 1:  # nothing to choose, so nothing random is used up
            return 0
        return int(torch.multinomial(self._areas, 1, generator=self._generator))

    def _below(self, stop: int) -> int:
        return int(torch.randint(stop, (), generator=self._generator))


class _Cut:
    """One scene, cut into tiles that have the size ``network`` for the network."""

    def __init__(self, view: SceneView, network: Size, generator: torch.Generator) -> None:
        dataset, plan = view.dataset, view.plan
        self._dataset, self._network, self._generator = dataset, network, generator
        self._prepare = NetworkInput(view.radiometry, network, heights=view.height_radiometry)
        self._tile = Size(
            max(1, round(network.rows * plan.tile.rows / plan.network.rows)),
            max(1, round(network.cols * plan.tile.cols / plan.network.cols)),
        )
        self._sampler = ValidRandomSampler(dataset, self._tile, 1, generator=generator)
        self.grid = dataset.scene.grid
        self.positions = dataset.labels.positions() if dataset.labels is not None else []
        self.named = dataset.labels.named if dataset.labels is not None else ()
        self.held_back: set[tuple[int, int]] = set()
        """Blocks whose labels are the guard's."""
        self._withheld: list[Window] = []
        """Ground of other scenes' held back blocks: its labels are nobody's."""

    @property
    def area_tiles(self) -> float:
        """How many tiles the valid pixels would fill."""
        size = self.grid.size
        share = self._dataset.scene.valid_share(Window(0, 0, size))
        return share * (size.rows / self._tile.rows) * (size.cols / self._tile.cols)

    @property
    def labelled_tiles(self) -> float:
        """How many tiles the labelled pixels would fill."""
        labels = self._dataset.labels
        known_px = 0 if labels is None else sum(labels.class_pixels().values())
        return known_px / (self._tile.rows * self._tile.cols)

    def draw(self) -> Window:
        return self._dataset.window(next(iter(self._sampler)))

    def around(self, row: int, col: int) -> Window:
        """Return a random window that holds a pixel."""
        size, tile = self.grid.size, self._tile
        top = row - self._below(tile.rows)
        left = col - self._below(tile.cols)
        return Window(
            max(0, min(top, size.rows - tile.rows)), max(0, min(left, size.cols - tile.cols)), tile
        )

    def block(self, row: int, col: int) -> tuple[int, int]:
        return row // self._tile.rows, col // self._tile.cols

    def block_window(self, block: tuple[int, int]) -> Window:
        row, col = block
        return Window(row * self._tile.rows, col * self._tile.cols, self._tile)

    def withhold(self, grid: Grid, window: Window) -> bool:
        """Keep the ground of a window of another grid from training; tell whether it is here."""
        seen = window_there(grid, window, self.grid)
        self._withheld += [seen] if seen else []
        return seen is not None

    def release(self) -> None:
        """Let all labels train."""
        self.held_back.clear()
        self._withheld.clear()

    def trains(self, row: int, col: int) -> bool:
        """Tell whether the label of a pixel trains."""
        return self.block(row, col) not in self.held_back and not any(
            seen.row <= row < seen.row_stop and seen.col <= col < seen.col_stop
            for seen in self._withheld
        )

    def read(self, window: Window, *, held_back: bool | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return a tile's image, validity and labels: training ones, held back ones, or all."""
        sample = self._prepare(self._dataset[self._dataset.query(window)])
        mask = sample.get("mask")
        if mask is None:
            mask = torch.full((window.size.rows, window.size.cols), UNKNOWN)
        elif held_back is not None:
            used = self._held(window) if held_back else self._trained(window)
            mask = mask.masked_fill(~used, UNKNOWN)
        return sample["image"], self._fit(sample["valid"]).bool(), self._fit(mask)

    def _held(self, window: Window) -> Tensor:
        """Return (row, col), True where a pixel's block is held back."""
        rows = np.arange(window.row, window.row_stop) // self._tile.rows
        cols = np.arange(window.col, window.col_stop) // self._tile.cols
        held = np.zeros((window.size.rows, window.size.cols), np.bool_)
        for row, col in self.held_back:
            held |= np.outer(rows == row, cols == col)
        return torch.from_numpy(held)

    def _trained(self, window: Window) -> Tensor:
        """Return (row, col), True where a pixel's label may train."""
        used = ~self._held(window)
        for seen in self._withheld:
            rows = slice(max(seen.row - window.row, 0), max(seen.row_stop - window.row, 0))
            cols = slice(max(seen.col - window.col, 0), max(seen.col_stop - window.col, 0))
            used[rows, cols] = False
        return used

    def _fit(self, mask: Tensor) -> Tensor:
        size = (self._network.rows, self._network.cols)
        if mask.shape == size:
            return mask
        return functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[
            0, 0
        ].long()

    def _below(self, stop: int) -> int:
        return int(torch.randint(stop, (), generator=self._generator))


def _in_turn(blocks: Sequence[_Block], values: Mapping[_Block, set[int]]) -> Iterator[_Block]:
    """Yield blocks so that every class has its turn, the rarest first, and none loses its last."""
    left = list(blocks)
    kept = Counter(value for block in blocks for value in values[block])
    turns = sorted(kept, key=lambda value: (kept[value], value))
    while turns:
        for value in tuple(turns):
            able = (
                block
                for block in left
                if value in values[block] and all(kept[each] > 1 for each in values[block])
            )
            chosen = next(able, None)
            if chosen is None:
                turns.remove(value)
                continue
            left.remove(chosen)
            kept.subtract(values[chosen])
            yield chosen
