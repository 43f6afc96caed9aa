"""What ``earthgate export`` does, from a model file to an ONNX file."""

import time

from earthgate_geo.export_request import ExportRequest
from earthgate_geo.jobs.documents import Document
from earthgate_geo.model_file import load_model
from earthgate_geo.monitor import Monitor
from earthgate_geo.onnx import write_onnx
from earthgate_geo.raster.destination import Destination, publish


def run_export(request: ExportRequest, monitor: Monitor) -> Document:
    """Write a model, with an adapter folded in, as ONNX.

    Returns:
        The result document of ``earthgate export --json``.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    request.check()
    started = time.perf_counter()
    model = load_model(request.model, folders=request.model_folders)
    config = model.segmenter.config
    tile_px = request.tile_px or config.tile_px
    with Destination(request.onnx, overwrite=request.overwrite, inputs=request.inputs()) as place:
        built = place.scratch / request.onnx.name
        monitor.log("converting, and comparing with torch")
        facts = write_onnx(built, model, tile_px=tile_px)
        publish(built, request.onnx)
    return {
        "model": {"name": model.name, "digest": model.digest, "adapter": model.adapter_digest},
        "classes": list(config.classes.names),
        "bands": list(config.bands),
        "tile_px": tile_px,
        **facts,
        "outputs": {role: str(path) for role, path in request.outputs().items()},
        "seconds": {"total": time.perf_counter() - started},
    }
