"""One place of a scene, as it is and as two models see it, for the report."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from earthgate_geo.data.scenes import NetworkInput, SceneDataset, TilePlan
from earthgate_geo.page import Picture
from earthgate_geo.raster.classes import ClassTable
from earthgate_geo.raster.grid import Size, Tiling, Window
from earthgate_geo.raster.read import Radiometry, Scene

_SIDE_PX = 512
_GAP = 128


class Place:
    """A square of the scene that shows much: mostly valid, and varied.

    Args:
        dataset: The scene, without transforms.
        plan: The scale at which networks see it.
        radiometry: Of the scene.
        heights: Of its heights, as ``NetworkInput`` has it.
    """

    def __init__(
        self,
        dataset: SceneDataset,
        plan: TilePlan,
        radiometry: Radiometry,
        *,
        heights: Radiometry | None = None,
    ) -> None:
        scene = dataset.scene.grid.size
        down = plan.network.rows / plan.tile.rows
        across = plan.network.cols / plan.tile.cols
        shape = Size(
            min(scene.rows, max(1, round(_SIDE_PX / down))),
            min(scene.cols, max(1, round(_SIDE_PX / across))),
        )
        network = Size(max(1, round(shape.rows * down)), max(1, round(shape.cols * across)))
        window = _telling(dataset.scene, dataset.bands, shape)
        prepare = NetworkInput(radiometry, network, heights=heights)
        sample = prepare(dataset[dataset.query(window)])
        self._image: Tensor = sample["image"]
        valid = sample["valid"][None, None].float()
        resized = functional.interpolate(valid, size=(network.rows, network.cols))
        self._valid: NDArray[np.bool_] = resized[0, 0].numpy() > 0

    def photograph(self) -> Picture:
        """Return the scene there, (row, col, 3)."""
        return (self._image[:3].permute(1, 2, 0).numpy() * 255).astype(np.uint8)

    @torch.inference_mode()
    def mapped(
        self, network: Callable[[Tensor], Tensor], classes: ClassTable, device: torch.device
    ) -> tuple[Picture, NDArray[np.float32]]:
        """Return a network's map there and how sure it is.

        Returns:
            The colours of the classes, (row, col, 3), grey where invalid; their probabilities,
            (row, col), 0..1, NaN there.
        """
        logits = network(self._image[None].to(device))[0].float()
        likeliest, found = torch.softmax(logits, 0).cpu().max(0)
        colors = np.array([entry.rgb for entry in classes], np.uint8)
        picture = np.where(self._valid[..., None], colors[found.numpy()], _GAP).astype(np.uint8)
        return picture, np.where(self._valid, likeliest.numpy(), np.float32(np.nan))


def _telling(scene: Scene, bands: tuple[int, ...], size: Size) -> Window:
    """Return the window whose overview is most valid and most varied."""
    overview = scene.preview(bands)
    rows, cols = overview.valid.shape
    down, across = rows / scene.grid.size.rows, cols / scene.grid.size.cols

    def worth(window: Window) -> float:
        area = (
            slice(int(window.row * down), max(int(window.row_stop * down), 1)),
            slice(int(window.col * across), max(int(window.col_stop * across), 1)),
        )
        valid = overview.valid[area]
        if not valid.any():
            return -1.0
        return float(valid.mean() * overview.values[(slice(None), *area)][:, valid].std())

    stride = Size(max(1, size.rows // 2), max(1, size.cols // 2))
    return max(Tiling(scene.grid.size, size, stride), key=worth)
