"""Networks as ONNX files, with what the QGIS plugin Deepness wants to know of them."""

import json
import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earthgate_geo import __version__
from earthgate_geo.errors import InputError, MissingDependencyError, ModelFileError
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.models.tracing import FixedPositions

try:
    import onnx
    import onnxruntime
except ImportError as error:
    raise MissingDependencyError(
        found="an ONNX file needs onnx and onnxruntime, and they are not both installed",
        fix="Install them with: pip install 'earthgate-geo[onnx]'",
    ) from error

OPSET = 17
"""Version of the operators; ONNX Runtime runs it since 1.12."""

OVERLAP_PERCENT = 25
"""By how much tiles overlap: as much as when earthgate maps."""

_AGREES = 1e-3
"""Largest mean difference of both runtimes' probabilities."""

_INPUT, _OUTPUT, _BATCH = "image", "probabilities", "batch"


def write_onnx(path: Path, model: LoadedModel, *, tile_px: int) -> dict[str, Any]:
    """Write a network as ONNX and compare it, in ONNX Runtime, with torch.

    Its input are images (batch, channel, tile, tile) in 0..1, any batch; its output is the
    probability of every class, (batch, class, tile, tile). What normalises images is inside.

    Memory: twice the weights, and what the network holds for three tiles.

    Source:
        Deepness, ``model_base.py`` and ``map_processor_segmentation.py``: it hands over bytes
        divided by 255, sets a probability under the threshold to zero and takes the largest. We
        ask for no threshold: with one, a pixel without a clear winner would get the first class.

    Args:
        path: File to write.
        model: On the CPU; an adapter is part of it.
        tile_px: Height and width of its images, in pixels.

    Returns:
        ``opset``, ``gsd`` in metres, the metadata's ``resolution``, and ``difference``, the mean
        one of the probabilities.

    Raises:
        InputError: The network sees heights.
        ModelFileError: It cannot be converted, or gives other numbers when it is.
    """
    segmenter = model.segmenter
    if segmenter.config.heights:
        raise InputError(
            found=f"{model.name} sees heights, and ONNX files are for programs that give a network "
            "the bands of one image",
            expected="a model, or an adapter made without --dsm",
        )
    network = nn.Sequential(segmenter, nn.Softmax(dim=1)).eval()
    try:
        _convert(network, segmenter, path, tile_px)
        _describe(path, model, tile_px)
        difference = _difference(network, segmenter, path, tile_px)
    except Exception as error:  # the exporter, what it traces and ONNX Runtime raise any kind
        reason = " ".join(str(error).split())[:200]
        raise _unfit(f"{model.name} cannot be converted to ONNX ({reason})") from error
    if not difference <= _AGREES:
        raise _unfit(f"{model.name} gives other numbers in ONNX Runtime than in torch")
    return {"opset": OPSET, "gsd": _gsd_m(segmenter), "difference": difference}


def _convert(network: nn.Module, segmenter: Segmenter, path: Path, tile_px: int) -> None:
    images = torch.full((2, segmenter.config.channels, tile_px, tile_px), 0.5)
    with torch.inference_mode(), FixedPositions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, on every shape that it makes constant
        torch.onnx.export(
            network,
            (images,),
            path,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_axes={_INPUT: {0: _BATCH}, _OUTPUT: {0: _BATCH}},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter needs one more library, and fails for SAM
        )


def _describe(path: Path, model: LoadedModel, tile_px: int) -> None:
    """Add the metadata, and the sizes of the output that the exporter does not know."""
    config = model.segmenter.config
    document = onnx.load(path)
    sizes = document.graph.output[0].type.tensor_type.shape.dim
    for size, value in zip(sizes[1:], (len(config.classes), tile_px, tile_px), strict=True):
        size.dim_value = value
    facts = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(config.classes.names)),
        "resolution": round(100 * _gsd_m(model.segmenter), 2),  # in centimetres
        "tile_size": tile_px,
        "tiles_overlap": OVERLAP_PERCENT,
        "standardization_mean": [0.0] * config.channels,
        "standardization_std": [1.0] * config.channels,
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
        "EARTHGATE_VERSION": __version__,
        "EARTHGATE_BANDS": list(config.bands),
        "EARTHGATE_CLASSES": [asdict(entry) for entry in config.classes],
        "EARTHGATE_MODEL": {"name": model.name, "digest": model.digest},
        "EARTHGATE_ADAPTER": model.adapter_digest,
        "EARTHGATE_LICENCE": str(model.card.get("licence", "not stated")),
    }
    onnx.helper.set_model_props(document, {key: json.dumps(fact) for key, fact in facts.items()})
    onnx.checker.check_model(document)
    onnx.save(document, path)


def _difference(network: nn.Module, segmenter: Segmenter, path: Path, tile_px: int) -> float:
    """Return the mean difference of probabilities on noise, of two batches of other sizes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    for batch in (1, 3):
        shape = (batch, segmenter.config.channels, tile_px, tile_px)
        images = torch.rand(shape, generator=generator)
        (given,) = session.run([_OUTPUT], {_INPUT: images.numpy()})
        with torch.inference_mode():
            found.append((torch.from_numpy(given) - network(images)).abs().mean())
    return float(torch.stack(found).max())


def _gsd_m(segmenter: Segmenter) -> float:
    """Return the middle of the ground sizes that the network was trained for."""
    return math.sqrt(segmenter.config.gsd_min_m * segmenter.config.gsd_max_m)


def _unfit(found: str) -> ModelFileError:
    return ModelFileError(found=found, fix="Map with earthgate itself")
