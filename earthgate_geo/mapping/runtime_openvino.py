"""Networks in OpenVINO, on the CPU. The only importer of OpenVINO, but for ``doctor``."""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from earthgate_geo import __version__
from earthgate_geo.errors import InputError, MissingDependencyError, ModelFileError
from earthgate_geo.mapping.runtime import RuntimeOptions
from earthgate_geo.model_file import LoadedModel, file_digest
from earthgate_geo.models.tracing import FixedPositions
from earthgate_geo.raster.grid import Size

# OpenVINO tells its maker over the network of every import and conversion, unless it finds this
# module missing. What a user maps, and that they do, is nobody's business.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # how Python says it

try:
    import openvino
except ImportError as error:
    raise MissingDependencyError(
        found="OpenVINO cannot be imported",
        fix="Install earthgate-geo again in a fresh virtual environment, or add --runtime torch",
    ) from error

_CORE = openvino.Core()
"""The only one, for the whole process.

With the CPU plugin's, a core replaces its thread's alternate signal stack, and puts back the one
before when it goes. Of two that overlap the second puts back what the first had freed: the next
signal kills the process.
"""
_HINTS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}
_MOST_STREAMS = 16
_KEPT = 8
"""Converted networks that stay in the cache."""

_IR, _DIGEST = "network.xml", "sha256"
_AGREES = 0.05
"""Largest difference between both runtimes' logits, as a share of the logits' spread; both rms."""


class OpenVinoRuntime:
    """Runs a compiled network, one call per thread at a time.

    The bits of a call that several threads share depend on their number; those of calls with a
    thread each do not, and they are no slower together.

    Args:
        ir: The converted network, of one static shape.
        precision: ``fp32`` or ``bf16``.
        threads: Calls that run at a time, at most 16.
    """

    name = "openvino"

    def __init__(self, ir: openvino.Model, *, precision: str, threads: int) -> None:
        streams = min(threads, _MOST_STREAMS)
        self._compiled = _CORE.compile_model(
            ir,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams,
                # Pinned threads of several processes could meet on the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.precision = precision
        self.device = torch.device("cpu")
        self.batch = int(ir.input().shape[0])
        self.depth = streams + 1  # no thread waits while the caller uses a result
        self._requests = [self._compiled.create_infer_request() for _ in range(self.depth)]
        self._next = 0

    def start(self, images: Tensor) -> Callable[[], Tensor]:
        """Start one call, as ``Runtime`` says."""
        request = self._requests[self._next]
        self._next = (self._next + 1) % self.depth
        request.wait()
        torch.from_numpy(request.get_input_tensor().data).copy_(images)
        request.start_async()

        def result() -> Tensor:
            request.wait()
            return torch.from_numpy(request.get_output_tensor().data)

        return result


def open_openvino(model: LoadedModel, network: Size, options: RuntimeOptions) -> OpenVinoRuntime:
    """Convert a model, or find it converted, and compile it.

    Raises:
        InputError: The CPU has no bf16 and it was asked for.
        ModelFileError: The network cannot be converted, or gives other numbers when it is.
    """
    segmenter = model.segmenter.to("cpu")
    shape = (options.batch or 1, segmenter.config.channels, network.rows, network.cols)
    precision = _precision(options.precision)
    cache = None if options.cache is None else _Cache(options.cache, model, shape)
    ir = cache.read() if cache else None
    kept = ir is not None
    if ir is None:
        ir = _convert(segmenter, shape, name=model.name)
    runtime = OpenVinoRuntime(ir, precision=precision, threads=torch.get_num_threads())
    if not kept:
        _check(runtime, segmenter, shape, name=model.name)
        if cache:
            cache.write(ir)
    return runtime


def try_out() -> str:
    """Convert a layer and run it; return OpenVINO's version and what it computes in, one line.

    Raises:
        ModelFileError: It gives other numbers than torch, or none.
    """
    layer, shape, precision = nn.Conv2d(3, 2, 3), (1, 3, 16, 16), _precision("auto")
    ir = _convert(layer, shape, name="a convolution")
    _check(OpenVinoRuntime(ir, precision=precision, threads=1), layer, shape, name="a convolution")
    return f"{openvino.get_version().partition('-')[0]}, computes in {precision}"


def _precision(wanted: str) -> str:
    if wanted == "auto":
        # OpenVINO's own choice is bf16 where the CPU multiplies in it, f16 or f32 elsewhere.
        native = _CORE.get_property("CPU", "INFERENCE_PRECISION_HINT") == openvino.Type.bf16
        return "bf16" if native else "fp32"
    if wanted == "bf16" and "BF16" not in _CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError(
            found="--precision bf16 on a CPU that does not compute in it",
            expected="fp32 or auto",
        )
    return wanted


def _convert(network: nn.Module, shape: tuple[int, ...], *, name: str) -> openvino.Model:
    """Trace the network on a grey image; all its shapes become constants."""
    image = torch.full(shape, 0.5)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, on every shape that it makes constant
            with FixedPositions():
                traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                    network, image, check_trace=False
                )
            return openvino.convert_model(traced, example_input=image, input=list(shape))
    except Exception as error:  # the converter and what it traces raise any kind
        reason = " ".join(str(error).split())[:200]
        raise _unfit(f"OpenVINO cannot convert {name} ({reason})") from error


def _check(
    runtime: OpenVinoRuntime, network: nn.Module, shape: tuple[int, ...], *, name: str
) -> None:
    """Compare with torch on noise: what a tracer does not follow shows nowhere else."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(images)
    found = runtime.start(images)()
    if not (found - expected).square().mean() <= (_AGREES * expected.std()) ** 2:
        raise _unfit(f"{name} gives other numbers in OpenVINO than in torch")


def _unfit(found: str) -> ModelFileError:
    return ModelFileError(found=found, fix="Add --runtime torch")


class _Cache:
    """Converted networks on disk; trouble with them costs a conversion, never a run.

    Args:
        folder: Of all converted networks.
        model: To be converted.
        shape: Of its images.
    """

    def __init__(self, folder: Path, model: LoadedModel, shape: tuple[int, ...]) -> None:
        facts: list[Any] = [model.digest, model.adapter_digest, shape]
        facts += [openvino.get_version(), torch.__version__, __version__]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._folder, self._place = folder, folder / f"{key}.openvino"

    def read(self) -> openvino.Model | None:
        """Return the converted network if it is there, whole."""
        with suppress(OSError, RuntimeError):
            if (self._place / _DIGEST).read_text(encoding="ascii") == _digest(self._place):
                self._place.touch()  # its time says when it was last of use
                return _CORE.read_model(self._place / _IR)
        return None

    def write(self, ir: openvino.Model) -> None:
        """Keep a converted network, and of all others those that were of use last."""
        with suppress(OSError, RuntimeError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(
                dir=self._folder, suffix=".openvino", ignore_cleanup_errors=True
            ) as room:
                openvino.save_model(ir, Path(room) / _IR, compress_to_fp16=False)
                (Path(room) / _DIGEST).write_text(_digest(Path(room)), encoding="ascii")
                shutil.rmtree(self._place, ignore_errors=True)  # there only if damaged
                Path(room).replace(self._place)
            by_age = sorted(self._folder.glob("*.openvino"), key=lambda p: -p.stat().st_mtime)
            for place in by_age[_KEPT:]:
                shutil.rmtree(place, ignore_errors=True)


def _digest(place: Path) -> str:
    return file_digest(place / _IR) + file_digest((place / _IR).with_suffix(".bin"))
