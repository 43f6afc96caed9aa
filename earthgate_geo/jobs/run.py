"""What the quick commands do, from paths to files and a result document."""

from pathlib import Path

from earthgate_geo import model_file
from earthgate_geo.data.labels import open_labels
from earthgate_geo.jobs.documents import Document
from earthgate_geo.jobs.prepare import label_options
from earthgate_geo.mapping.vectorize import vectorize
from earthgate_geo.metrics import Confusion
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.class_map import class_table
from earthgate_geo.raster.classes import NODATA
from earthgate_geo.raster.grid import blocks
from earthgate_geo.raster.read import open_scene
from earthgate_geo.request import EvaluateRequest, VectorizeRequest, check_outputs

_BLOCK_PX = 1024


def load_model(source: str | Path | None = None) -> Segmenter:
    """Load a network: images (batch, channel, height, width) in 0..1 to logits.

    >>> import earthgate_geo, torch
    >>> network = earthgate_geo.load_model()
    >>> network(torch.rand(1, 3, 64, 64)).shape
    torch.Size([1, 5, 64, 64])
    >>> network.config.classes.names
    ('building', 'road', 'bare ground', 'vegetation', 'water')

    Args:
        source: Model or adapter file, the name of a packaged model, or None for the default one.

    Raises:
        InputError: There is no such file or name.
        ModelFileError: The file is not ours, is damaged, too new, or its base is missing.
    """
    return model_file.load_model(source).segmenter


def run_vectorize(request: VectorizeRequest, monitor: Monitor) -> Document:
    """Turn a map into polygons.

    Returns:
        ``polygons``, by class name in ``classes`` ``polygons`` and ``area_m2``, and ``outputs``.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    check_outputs({"vector": request.dst}, overwrite=request.overwrite, inputs=[request.map])
    document = vectorize(
        request.map,
        request.dst,
        options=request.vectors,
        overwrite=request.overwrite,
        monitor=monitor,
    )
    return document | {"outputs": {"vector": document.pop("output")}}


def run_evaluate(request: EvaluateRequest) -> Document:
    """Compare a map with known classes.

    Returns:
        Scores per class and overall, and the table of confusions.

    Raises:
        InputError: A file is missing or is no map of ours, or the labels do not fit it.
        DataError: A file is damaged, or the labels lie elsewhere.
    """
    with open_scene(request.map) as scene:
        classes = class_table(scene)
        labels = open_labels(request.labels, scene.grid, classes, label_options(request))
        confusion = Confusion(classes.names, named=labels.named)
        for window in blocks(scene.grid.size, _BLOCK_PX):
            pixels = scene.read(window, (1,))
            found = pixels.values[0]
            found[~pixels.valid] = NODATA
            confusion.add(labels.read(window), found)
    return confusion.to_dict()
