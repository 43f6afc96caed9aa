"""What maps, kept from one scene to the next: the model, its converted network, a cluster."""

import threading
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

from earthgate_geo import model_file
from earthgate_geo.mapping.runtime import Runtime, RuntimeOptions, open_runtime
from earthgate_geo.mapping.scene import Engine, LocalEngine
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.grid import Size
from earthgate_geo.request import MapRequest

_OF_A_CLUSTER = (
    *("model", "model_folder", "runtime", "precision", "device", "cache"),
    *("scheduler", "workers", "memory"),
)
"""What of a request decides how its cluster works."""

_LEAST_BYTES = 1_000_000_000
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Engines:
    """Loads, converts and starts what requests ask for, each once as long as they ask the same.

    ``model`` and the engine of a cluster may be asked for from several threads.
    """

    def __init__(self) -> None:
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._model: tuple[object, LoadedModel] | None = None
        self._runtime: tuple[object, Runtime] | None = None
        self._cluster: tuple[object, Engine] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def model(self, request: MapRequest) -> LoadedModel:
        """Return the model of a request, with a part for heights where it adds one.

        Raises:
            InputError, ModelFileError: As ``model_file.load_model``.
        """
        key = (request.model, request.model_folders, request.adds_heights)
        with self._lock:
            if self._model is None or self._model[0] != key:
                loaded = model_file.load_model(request.model, folders=request.model_folders)
                if request.adds_heights:
                    loaded = replace(loaded, segmenter=loaded.segmenter.with_heights())
                self._model = (key, loaded)
            return self._model[1]

    def engine(
        self,
        request: MapRequest,
        model: LoadedModel,
        network: Size,
        device: torch.device,
        monitor: Monitor,
    ) -> Engine:
        """Return what maps as a request asks, with tiles of ``network`` pixels.

        Raises:
            EarthgateError: The runtime or the cluster cannot be had.
        """
        if request.engine == "local":
            return self.local(request, model, network, device)
        digests = (model.digest, model.adapter_digest)
        key = (digests, network, *(getattr(request, name) for name in _OF_A_CLUSTER))
        with self._lock:
            if self._cluster is None or self._cluster[0] != key:
                self._stack.close()
                cluster = self._stack.enter_context(_on_dask(request, digests, network, monitor))
                self._cluster = (key, cluster)
            return self._cluster[1]

    def local(
        self, request: MapRequest, model: LoadedModel, network: Size, device: torch.device
    ) -> LocalEngine:
        """Return what maps in this process, whatever the request's engine.

        Raises:
            EarthgateError: The runtime cannot be had.
        """
        options = RuntimeOptions(
            runtime=request.runtime,
            precision=request.precision,
            device=device,
            cache=request.cache,
        )
        heights = model.segmenter.config.heights  # which a model may be given for an adaptation
        key = (model.digest, model.adapter_digest, heights, network, options)
        if self._runtime is None or self._runtime[0] != key:
            self._runtime = (key, open_runtime(model, network, options))
        return LocalEngine(self._runtime[1], memory_bytes=memory_bytes(request))


def _on_dask(
    request: MapRequest, digests: tuple[str, str | None], size: Size, monitor: Monitor
) -> AbstractContextManager[Engine]:
    from earthgate_geo.mapping.cluster_worker import ClusterNetwork  # noqa: PLC0415
    from earthgate_geo.mapping.dask_engine import DaskEngine  # noqa: PLC0415

    network = ClusterNetwork(
        model=request.model,
        folders=request.model_folders,
        digests=digests,
        size=size,
        runtime=request.runtime,
        precision=request.precision,
        device=request.device,
        cache=request.cache,
    )
    return DaskEngine(
        network,
        scheduler=request.scheduler,
        workers=request.workers,
        memory_bytes=memory_bytes(request),
        monitor=monitor,
    )


def memory_bytes(request: MapRequest) -> int:
    """Return what mapping may take: as asked, or a quarter of what there is, at least 1 GB."""
    if request.memory is not None:
        return request.memory
    there = int(psutil.virtual_memory().total)
    if _CONTAINER_LIMIT.is_file() and (limit := _CONTAINER_LIMIT.read_text().strip()).isdigit():
        there = min(there, int(limit))
    return max(_LEAST_BYTES, there // 4)
