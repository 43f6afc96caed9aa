"""What tracing a network for another runtime needs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class FixedPositions(TorchFunctionMode):
    """Makes a constant, for a tracer, of what is resampled bicubically: tables of positions.

    Other runtimes resample by other rules: logits would differ in the third digit.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch."""
        options = kwargs or {}
        result = function(*args, **options)
        if function is functional.interpolate and options.get("mode") == "bicubic":
            return torch.from_numpy(result.numpy())
        return result
