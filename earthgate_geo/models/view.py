"""How a scene is shown to a network that was trained on another sensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from earthgate_geo.errors import InputError


@dataclass(frozen=True, kw_only=True)
class View:
    """Bands in another order, and another curve of tones. The default changes no bit."""

    order: tuple[int, ...] | None = None
    """Which band of the scene stands where, from 0; as they come if absent."""

    gamma: float = 1.0
    """Exponent of values in 0..1: above 1 darker."""

    def __post_init__(self) -> None:
        if self.order is not None and sorted(self.order) != list(range(len(self.order))):
            raise InputError(found=f"bands in the order {self.order}", expected="each band once")
        if self.gamma <= 0:
            raise InputError(found=f"a gamma of {self.gamma:g}", expected="a positive number")

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (batch, band, row, col) in 0..1 to images of the same kind."""
        if self.order is not None:
            images = images[:, list(self.order)]
        return images if self.gamma == 1 else images.clamp(min=0).pow(self.gamma)

    def undone(self, images: Tensor) -> Tensor:
        """Map images to those that this view would show as they were."""
        if self.order is not None:
            images = images[:, [self.order.index(band) for band in range(len(self.order))]]
        return images if self.gamma == 1 else images.clamp(min=0).pow(1 / self.gamma)

    def to_json(self) -> dict[str, Any]:
        """Return the view as JSON values."""
        return {"order": self.order and list(self.order), "gamma": self.gamma}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "View":
        """Read what ``to_json`` wrote; what it lacks is as by default."""
        order = document.get("order")
        return cls(order=order and tuple(order), gamma=document.get("gamma", 1.0))
