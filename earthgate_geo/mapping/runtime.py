"""What runs the network: torch, or OpenVINO, which is much faster on a CPU."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from earthgate_geo.errors import (
    EarthgateError,
    EarthgateWarning,
    InputError,
    MissingDependencyError,
    ModelFileError,
)
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.raster.grid import Size

Network = Callable[[Tensor], Tensor]
"""Images (batch, channel, row, col) in 0..1 to logits (batch, class, row, col)."""

_GREY = 0.5
_MOST_AT_ONCE = 16
"""Images per call of a graphics card; more make it no faster."""


class Runtime(Protocol):
    """Runs a network on batches of one shape, several at a time where that is faster."""

    @property
    def name(self) -> str:
        """``torch`` or ``openvino``."""

    @property
    def precision(self) -> str:
        """``fp32`` or ``bf16``: in what the network computes."""

    @property
    def batch(self) -> int:
        """Images per call; fewer are filled up with grey ones."""

    @property
    def depth(self) -> int:
        """Calls that may be in flight at once."""

    @property
    def device(self) -> torch.device:
        """Where logits arrive."""

    def start(self, images: Tensor) -> Callable[[], Tensor]:
        """Start one call.

        Args:
            images: Float32 (batch, channel, row, col) on the CPU, in 0..1; free to change at once.

        Returns:
            A function that waits and returns the logits, float32 (batch, class, row, col), valid
            until ``depth`` further calls have started.
        """


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a network is to be run."""

    runtime: str = "auto"
    """``torch``, ``openvino``, or ``auto``: OpenVINO on a CPU, torch elsewhere."""

    precision: str = "auto"
    """``fp32``, ``bf16``, or ``auto``: bf16 where the device computes in it natively."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the network runs."""

    batch: int | None = None
    """Images per call; None is 1 on a CPU and what fits, up to 16, elsewhere."""

    cache: Path | None = None
    """Folder of converted networks, made where it is missing; None keeps none."""


class TorchRuntime:
    """Runs any callable in torch.

    On a CPU a call is done when it has started. On a CUDA device calls queue up on a stream of
    their own, so that images are copied and logits used while the network works. Where its
    memory runs out, batches are run in smaller parts from then on.

    Args:
        network: The network on ``device``, in evaluation mode.
        device: Where it is.
        precision: ``fp32`` or ``bf16``, by autocast.
        batch: Images per call.
    """

    name = "torch"

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        batch: int = 1,
    ) -> None:
        self.device, self.precision, self.batch = torch.device(device), precision, batch
        self.at_once = batch
        """Images that go through the network together: ``batch``, or fewer for want of memory."""
        self._network = network
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.depth = 2 if self._stream else 1

    def start(self, images: Tensor) -> Callable[[], Tensor]:
        """Start one call, as ``Runtime`` says.

        Raises:
            EarthgateError: Not even one image fits into the memory of the device.
        """
        if self._stream is None:
            logits = self._in_parts(images.to(self.device))
            return lambda: logits
        with torch.cuda.stream(self._stream):
            logits = self._in_parts(images.pin_memory().to(self.device, non_blocking=True))
            done = self._stream.record_event()

        def result() -> Tensor:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(done)
            logits.record_stream(current)
            return logits

        return result

    def _in_parts(self, images: Tensor) -> Tensor:
        while True:
            try:
                logits = [self._logits(part) for part in torch.split(images, self.at_once)]
                return logits[0] if len(logits) == 1 else torch.cat(logits)
            except torch.OutOfMemoryError as error:
                if self.at_once == 1:
                    raise EarthgateError(
                        found=f"the memory of {self.device} does not hold the network with a tile",
                        fix="Close other programs that use it, or map with --device cpu",
                    ) from error
            # Out here the error is gone, and with it what its frames held.
            self.at_once //= 2
            if self._stream:
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        # Convolutions are 10 to 20 % faster with the channels last, on a CPU too.
        images = images.contiguous(memory_format=torch.channels_last)
        half = self.precision == "bf16"
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=half),
            # cuDNN would take TF32 for fp32, which keeps three digits.
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=False, allow_tf32=False
            ),
        ):
            return self._network(images).float().contiguous()


def open_runtime(model: LoadedModel, network: Size, options: RuntimeOptions) -> Runtime:
    """Make a model ready to run on images of one size.

    Under ``auto`` a network that OpenVINO cannot run on the CPU runs in torch, with a warning.
    Memory: beside the model, its weights once more for OpenVINO, and for each thread what the
    layers hand on, 40 to 80 MB for 512 px; some 150 MB and the weights again to convert them.

    Args:
        model: Moved to the device where torch runs it.
        network: Height and width of the images.
        options: Which runtime, and how.

    Raises:
        InputError: The options do not go together, or not with this machine.
        ModelFileError: OpenVINO was asked for and cannot run the network.
        MissingDependencyError: OpenVINO was asked for and cannot be imported.
    """
    if options.runtime == "openvino" and options.device.type != "cpu":
        raise InputError(
            found=f"--runtime openvino on the device {options.device}",
            expected="the CPU",
            fix="Add --device cpu, or leave the runtime to earthgate",
        )
    if options.device.type == "cpu" and options.runtime != "torch":
        try:
            # Here and not above: torch alone needs no OpenVINO.
            from earthgate_geo.mapping.runtime_openvino import (  # noqa: PLC0415
                open_openvino,
            )

            return open_openvino(model, network, options)
        except (ModelFileError, MissingDependencyError) as error:
            if options.runtime == "openvino":
                raise
            warning = f"{error.found}: torch runs the network instead, which takes longer."
            warnings.warn(warning, EarthgateWarning, stacklevel=2)
    return _open_torch(model, network, options)


def _open_torch(model: LoadedModel, network: Size, options: RuntimeOptions) -> TorchRuntime:
    device = options.device
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if _computes_in_bf16(device) else "fp32"
    runtime = TorchRuntime(
        model.segmenter.to(device),
        device=device,
        precision=precision,
        batch=options.batch or (1 if device.type == "cpu" else _MOST_AT_ONCE),
    )
    if options.batch is None and runtime.batch > 1:
        shape = (runtime.batch, model.segmenter.config.channels, network.rows, network.cols)
        runtime.start(torch.full(shape, _GREY))()
        runtime.batch = runtime.at_once
    return runtime


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older torch cannot tell of a CPU.
    tell: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    able = tell() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
