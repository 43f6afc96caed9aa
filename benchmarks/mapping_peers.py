"""One way to map a scene with a model: ours, or a peer's. A child of ``mapping.py peers``.

    python benchmarks/mapping_peers.py WAY SCENE MODEL OUT

Every way runs the same network on the same tiles, 512 px at a distance of 384, and writes a map.
Peers get what is best for them here: one tile a call, as a larger batch is no faster on a CPU;
no padding, so that all run the same number of tiles; only labels to write, where we write a COG of
labels and one of confidences.
"""

import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
import psutil
import rasterio
import torch
from mapping_scenes import STRIDE_PX, TILE_PX, map_into, read_values, task_of
from numpy.typing import NDArray
from pages import quartiles, table
from torch import nn
from torch.utils.data import DataLoader
from watched import watch

from earthgate_geo.mapping.runtime import RuntimeOptions, open_runtime
from earthgate_geo.model_file import LoadedModel, load_model
from earthgate_geo.raster.grid import Size
from earthgate_geo.raster.read import Radiometry, open_scene

MAP = "map.tif"

Run = Callable[[Radiometry, Path, Path], None]
"""Maps a scene into a file."""

PACKAGES = {"terratorch": "terratorch", "geoai": "geoai-py", "torchgeo": "torchgeo"}
"""Where it comes from, by way."""

OURS = ("earthgate:openvino:bf16", "earthgate:openvino:fp32", "earthgate:torch:fp32")

Figures = dict[str, Any]


def terratorch(model: LoadedModel) -> Run:
    """Map with TerraTorch's ``tiled_inference``: the whole scene in memory, as its tasks do."""
    from terratorch.tasks.tiled_inference import tiled_inference  # noqa: PLC0415 - of a peer

    def run(radiometry: Radiometry, scene: Path, out: Path) -> None:
        with rasterio.open(scene) as source:
            image = torch.from_numpy(radiometry.scale(source.read()))[None]
        settings = {"crop": TILE_PX, "stride": STRIDE_PX, "batch_size": 1, "padding": False}
        logits = tiled_inference(model.segmenter, image, **settings)
        write_labels(logits[0].argmax(dim=0).numpy(), scene, out)

    return run


def geoai(model: LoadedModel) -> Run:
    """Map with geoai's ``predict_geotiff``."""
    from geoai.inference import predict_geotiff  # noqa: PLC0415 - of a peer

    def labels(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
        return probabilities.argmax(axis=0).astype(np.uint8)

    def run(radiometry: Radiometry, scene: Path, out: Path) -> None:
        predict_geotiff(
            nn.Sequential(model.segmenter, nn.Softmax(dim=1)),
            str(scene),
            str(out),
            tile_size=TILE_PX,
            overlap=TILE_PX - STRIDE_PX,
            batch_size=1,
            num_classes=len(model.segmenter.config.classes),
            output_dtype="uint8",
            output_nodata=255,
            blend_mode="cosine",
            preprocess_fn=radiometry.scale,
            postprocess_fn=labels,
            device="cpu",
            verbose=False,
        )

    return run


def torchgeo(model: LoadedModel) -> Run:
    """Map with TorchGeo's recipe: grid sampler, DataLoader, and a sum of probabilities."""
    from torchgeo.datasets import RasterDataset, stack_samples  # noqa: PLC0415 - as the others
    from torchgeo.samplers import GridGeoSampler  # noqa: PLC0415

    def run(radiometry: Radiometry, scene: Path, out: Path) -> None:
        class OneScene(RasterDataset):
            filename_glob = scene.name

        dataset = OneScene(scene.parent)
        sampler = GridGeoSampler(dataset, size=TILE_PX, stride=STRIDE_PX)
        loader = DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=stack_samples)
        with rasterio.open(scene) as source:
            to_pixel, shape = ~source.transform, source.shape
        sums = torch.zeros(len(model.segmenter.config.classes), *shape)
        with torch.inference_mode():
            for batch in loader:
                image = torch.from_numpy(radiometry.scale(batch["image"].numpy()[0]))
                x, y, _ = batch["bounds"][0]
                col, row = (round(value) for value in to_pixel @ (x.start, y.stop))
                tile = sums[:, row : row + TILE_PX, col : col + TILE_PX]
                tile += model.segmenter(image[None])[0].softmax(dim=0)
        write_labels(sums.argmax(dim=0).numpy(), scene, out)

    return run


def earthgate(model: LoadedModel, runtime: str, precision: str) -> Run:
    """Map with earthgate."""
    options = RuntimeOptions(runtime=runtime, precision=precision, device=torch.device("cpu"))
    opened = open_runtime(model, Size(TILE_PX, TILE_PX), options)

    def run(radiometry: Radiometry, scene: Path, out: Path) -> None:
        classes = model.segmenter.config.classes
        with task_of(scene, classes, radiometry=radiometry) as task:
            map_into(out.parent, task, opened, confidence=False)

    return run


def write_labels(labels: NDArray[np.int64], scene: Path, out: Path) -> None:
    """Write labels (row, col) on the grid of the scene, compressed as the peers do."""
    with rasterio.open(scene) as source:
        profile = source.profile | {"count": 1, "compress": "lzw", "nodata": None}
    with rasterio.open(out, "w", **profile) as target:
        target.write(labels.astype(np.uint8), 1)


def environment(folder: Path) -> Path:
    """Make an environment with the peers beside the packages of this one; return its Python.

    They share our torch, so that the same kernels run. One environment serves all, as long as
    their pins allow: pip takes the newest release of each that fits our packages.
    """
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        (site,) = folder.glob("lib/python*/site-packages")
        ours = [p for p in sys.path if p.endswith("site-packages")]
        (site / "ours.pth").write_text(f"import site; site.addsitedir({ours[0]!r})\n")
        names = [PACKAGES["geoai"], PACKAGES["terratorch"]]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *names], check=True)
    return python


def compare(python: Path, scene: Path, model: Path, *, rounds: int, tiles: int) -> str:
    """Let all ways map a scene in turns, each in a process of its own; return the table."""
    measured: dict[str, list[Figures]] = {way: [] for way in (*OURS, *PEERS)}
    folder = scene.parent / "maps"
    for _ in range(rounds):
        for way, figures in measured.items():
            program = python if way in PEERS else sys.executable
            seen = watch([str(program), __file__, way, *map(str, (scene, model, folder / way))])
            figures.append(json.loads(seen.printed) | {"peak_bytes": seen.peak_bytes})
    labels = {way: read_values(folder / way / MAP)[0] for way in measured}
    fastest = max(PEERS, key=lambda way: _rate(measured[way], tiles))
    rows = []
    for way, figures in measured.items():
        ratios = [
            other["seconds"] / own["seconds"]
            for own, other in zip(figures, measured[fastest], strict=True)
        ]
        peak = statistics.median(f["peak_bytes"] for f in figures)
        before = statistics.median(f["before_bytes"] for f in figures)
        rows.append(
            (
                f"{way} {figures[0]['version']}".replace(":", " "),
                quartiles([tiles / f["seconds"] for f in figures], ".2f"),
                quartiles(ratios, ".2f"),
                f"{peak / 1e6:.0f}",
                f"{(peak - before) / 1e6:.0f}",
                f"{(labels[way] == labels[OURS[-1]]).mean():.2%}",
            )
        )
    head = ("way", "tiles/s", "of the fastest peer", "peak, MB", "of it while mapping, MB")
    return table((*head, f"labels as {OURS[-1].replace(':', ' ')}"), rows)


def _rate(figures: Sequence[Figures], tiles: int) -> float:
    return statistics.median(tiles / one["seconds"] for one in figures)


PEERS: dict[str, Callable[[LoadedModel], Run]] = {
    "terratorch": terratorch,
    "geoai": geoai,
    "torchgeo": torchgeo,
}


@click.command()
@click.argument("way")
@click.argument("scene", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(way: str, scene: Path, model: Path, out: Path) -> None:
    """Map SCENE with MODEL into the folder OUT; print seconds, and memory before it began.

    WAY is a peer, or earthgate:RUNTIME:PRECISION. Imports, the loading of the model and its
    conversion do not count.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    loaded = load_model(model)
    name, *how = way.split(":")
    run = earthgate(loaded, *how) if name == "earthgate" else PEERS[name](loaded)
    with open_scene(scene) as opened:
        radiometry = opened.radiometry((1, 2, 3))
    out.mkdir(parents=True, exist_ok=True)
    before = psutil.Process().memory_info().rss
    started = perf_counter()
    run(radiometry, scene, out / MAP)
    figures = {"seconds": perf_counter() - started, "before_bytes": before}
    package = PACKAGES.get(name)
    print(json.dumps(figures | {"version": version(package) if package else ""}))


if __name__ == "__main__":
    main()
