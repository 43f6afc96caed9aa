"""The one training loop, the average of weights it keeps, and the arithmetic it runs in."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earthgate_geo.errors import EarthgateError
from earthgate_geo.monitor import Monitor


class WeightAverage:
    """An exponential average of weights, faster while it is young.

    Source:
        Tarvainen and Valpola 2017, "Mean teachers", arXiv:1703.01780.

    Args:
        parameters: The parameters to follow, by name.
        decay: Weight of the past in one update, 0..1.
        young: Numbers a and b: in update ``n``, from 1, the past weighs at most
            ``(a + n) / (b + n)``.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        decay: float,
        young: tuple[int, int] = (1, 10),
    ) -> None:
        self._decay, self._young, self._updates = decay, young, 0
        self._parameters = dict(parameters)
        self._values = {k: v.detach().clone() for k, v in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights as they are."""
        self._updates += 1
        above, below = (self._updates + each for each in self._young)
        decay = min(self._decay, above / below)
        for key, parameter in self._parameters.items():
            self._values[key].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the model's place while the context lasts: the teacher."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Give the model the averaged weights."""
        for key, parameter in self._parameters.items():
            parameter.copy_(self._values[key])

    def state(self) -> dict[str, Any]:
        """Return the averaged weights by name, not copied, and how many updates they have seen."""
        return {"values": self._values, "updates": self._updates}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned for parameters of the same names."""
        self._updates = state["updates"]
        for key, value in self._values.items():
            value.copy_(state["values"][key])

    def _swap(self) -> None:
        for key, parameter in self._parameters.items():
            parameter.data, self._values[key] = self._values[key], parameter.data


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long training runs and at which rate."""

    steps: int
    """Optimiser steps."""

    learning_rate: float
    """Peak rate; a warm-up of a twentieth of the steps, then a cosine to zero."""

    seconds: float | None = None
    """Stop early after so many seconds; the steps taken are reported."""

    done: int = 0
    """Steps that an earlier run took; this one goes on after them."""

    def rate(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0."""
        warm = max(self.steps // 20, 1)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        progress = (step - warm) / max(self.steps - warm, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def run(
    step_loss: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    *,
    schedule: Schedule,
    monitor: Monitor,
    after_step: Callable[[int, float], None] = lambda _done, _loss: None,
) -> list[float]:
    """Take optimiser steps on ``step_loss(step)`` and return the loss of each.

    A group of parameters with a ``share`` takes that share of the schedule's rate. ``after_step``
    is told how many steps are finished, and the loss of the last one.

    Raises:
        EarthgateError: The loss is not finite.
        CancelledError: The monitor cancelled.
    """
    started, losses = time.perf_counter(), []
    for step in range(schedule.done, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = group.get("share", 1.0) * schedule.rate(step)
        loss = step_loss(step)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise EarthgateError(
                found=f"training diverged at step {step + 1} (loss {losses[-1]})",
                fix="Try again with another --seed; the source model still maps the scene",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        average.update()
        after_step(step + 1, losses[-1])
        monitor.update(step + 1)
        if schedule.seconds is not None and time.perf_counter() - started > schedule.seconds:
            break
    return losses


@contextmanager
def fast_arithmetic(device: torch.device) -> Iterator[None]:
    """Run in bfloat16 where ``device`` has it in hardware, else in single precision."""
    native = (
        torch.cuda.is_bf16_supported()
        if device.type == "cuda"
        else device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    )
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=native):
        yield
