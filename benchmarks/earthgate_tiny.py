"""Train the packaged default model, earthgate-tiny.

Every step is a command; `benchmarks/earthgate_tiny.md` holds those that were run:

    python benchmarks/earthgate_tiny.py pack-real DATA real.npz
    python benchmarks/earthgate_tiny.py pack-made made.npz
    python benchmarks/earthgate_tiny.py train out.safetensors --made made.npz --real real.npz
    python benchmarks/earthgate_tiny.py finish out.safetensors card.json

DATA holds the folders `fair_buildings` and `scenes`: drone tiles of three places with building
footprints. `--without PLACE` leaves one place out, for honest figures on that place.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import rasterio
import torch

from earthgate_geo.data.replay import Replay
from earthgate_geo.data.synthetic import (
    CLASSES,
    Rendering,
    View,
    draw_sensor,
    draw_town,
    random_tile,
    render,
)
from earthgate_geo.metrics import OTHER, UNKNOWN
from earthgate_geo.model_file import DEFAULT_MODEL, PACKAGED, load_model, save_model
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.grid import Size
from earthgate_geo.training.source import SourceOptions, TilePool, load_pool, train_source

TILE_PX = 256
PLACES = ("zanzibar_tz", "kampala_ug", "catanduanes_ph")


class Printer(SilentMonitor):
    """Print how far training is."""

    def update(self, done: int) -> None:
        """Print every fiftieth step."""
        if done % 50 == 0:
            print(f"step {done}", flush=True)


@click.group()
def main() -> None:
    """Train the packaged default model."""


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def pack_real(data: Path, out: Path) -> None:
    """Pack the drone tiles and scenes of DATA into one array file."""
    images, labels, places = [], [], []
    for place in PLACES:
        tiles = [*_fair_tiles(data / "fair_buildings", place), *_scene_tiles(data, place)]
        stacked = np.stack([image for image, _ in tiles])
        low, high = np.percentile(stacked[:, :, ::4, ::4], (1, 99), axis=(0, 2, 3))
        scale = np.clip((stacked - low[:, None, None]) / (high - low)[:, None, None], 0, 1)
        images.append((scale * 255).round().astype(np.uint8))
        labels.append(np.stack([label for _, label in tiles]))
        places += [place] * len(tiles)
        print(place, len(tiles), "tiles, percentiles", low, high)
    np.savez(
        out,
        real_images=np.concatenate(images),
        real_labels=np.concatenate(labels),
        real_places=np.array(places),
    )


def _fair_tiles(folder: Path, place: str) -> list[tuple[np.ndarray, np.ndarray]]:
    with (folder / "manifest.csv").open() as manifest:
        rows = [row for row in csv.DictReader(manifest) if row["domain"] == place]
    tiles = []
    for row in rows:
        with rasterio.open(folder / row["image"]) as source:
            image = source.read((1, 2, 3))
        with rasterio.open(folder / row["label"]) as source:
            tiles.append((image, _codes(source.read(1))))
    return tiles


def _scene_tiles(data: Path, place: str) -> list[tuple[np.ndarray, np.ndarray]]:
    tiles = []
    with (
        rasterio.open(data / "scenes" / f"{place}_scene.tif") as scene,
        rasterio.open(data / "scenes" / f"{place}_truth.tif") as truth,
    ):
        for row in range(0, scene.height - TILE_PX + 1, TILE_PX):
            for col in range(0, scene.width - TILE_PX + 1, TILE_PX):
                window = rasterio.windows.Window(col, row, TILE_PX, TILE_PX)
                if scene.dataset_mask(window=window).mean() > 0.95 * 255:
                    label = _codes(truth.read(1, window=window))
                    tiles.append((scene.read((1, 2, 3), window=window), label))
    return tiles


def _codes(mask: np.ndarray) -> np.ndarray:
    """Turn 1 = building, 0 = anything else, 255 = unknown into class values."""
    return np.choose(np.minimum(mask, 2), [OTHER, 0, UNKNOWN]).astype(np.uint8)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tiles", default=3000)
@click.option("--seed", default=0)
@click.option("--infrared", is_flag=True, help="Every sensor sees infrared, red and green.")
def pack_made(out: Path, tiles: int, seed: int, *, infrared: bool) -> None:
    """Pack generated tiles into one array file."""
    images, labels = _made_tiles(tiles, seed, infrared=infrared)
    np.savez(out, made_images=images, made_labels=labels)


def _made_tiles(tiles: int, seed: int, *, infrared: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = np.empty((tiles, 3, TILE_PX, TILE_PX), np.uint8)
    labels = np.empty((tiles, TILE_PX, TILE_PX), np.uint8)
    for index in range(tiles):
        made = _infrared_tile(rng) if infrared else random_tile(rng, TILE_PX)
        low, high = np.percentile(made.image, (1, 99), axis=(1, 2))
        scale = (made.image - low[:, None, None]) / np.maximum(high - low, 1)[:, None, None]
        images[index] = (np.clip(scale, 0, 1) * 255).round()
        labels[index] = made.labels
    return images, labels


def _infrared_tile(rng: np.random.Generator) -> Rendering:
    gsd_m = float(np.exp(rng.uniform(*np.log((0.07, 0.6)))))
    plan = draw_town(int(rng.integers(2**31)), TILE_PX * gsd_m)
    sensor = replace(draw_sensor(rng, gsd_m=gsd_m), bands=("nir", "red", "green"))
    return render(plan, sensor, rng, view=View(x_m=0, y_m=0, size=Size(TILE_PX, TILE_PX)))


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--made", type=click.Path(exists=True, path_type=Path), multiple=True)
@click.option("--real", type=click.Path(exists=True, path_type=Path))
@click.option("--without", type=click.Choice(PLACES), help="A place to leave out.")
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="Model to go on from.")
@click.option("--steps", default=1000)
@click.option("--learning-rate", default=1e-3)
@click.option("--seed", default=0)
def train(  # noqa: PLR0913 - one argument per option
    out: Path,
    made: tuple[Path, ...],
    real: Path | None,
    without: str | None,
    start: Path | None,
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train on generated tiles, drone tiles or both (35 to 65); write a model file."""
    torch.manual_seed(seed)
    model = Segmenter(SegmenterConfig(classes=CLASSES))
    if start is not None:
        model = load_model(start).segmenter.requires_grad_(True)
    pools = [load_pool(path, "made", share=0.35 / len(made)) for path in made]
    pools += _real_pools(real, without) if real else []
    torch.set_num_threads(1)  # two runs side by side are faster than one run on two cores
    options = SourceOptions(steps=steps, learning_rate=learning_rate, seed=seed)
    record = train_source(model, pools, options, monitor=Printer())
    save_model(out, model, card={"name": out.stem, "without": without, "steps": steps})
    print(json.dumps(record))


def _real_pools(real: Path, without: str | None) -> list[TilePool]:
    """Return one pool per place, so that a large place does not drown the others."""
    with np.load(real) as packed:
        images, labels = packed["real_images"], packed["real_labels"]
        places = packed["real_places"]
    kept = [place for place in PLACES if place != without]
    return [TilePool(images[places == p], labels[places == p], 0.65 / len(kept)) for p in kept]


@main.command()
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("card", type=click.Path(exists=True, path_type=Path))
@click.option("--tiles", default=80, help="Generated tiles to carry for adaptation.")
@click.option("--seed", default=2)
def finish(trained: Path, card: Path, tiles: int, seed: int) -> None:
    """Package TRAINED with replay tiles and the JSON CARD as the default model."""
    images, labels = _made_tiles(tiles, seed)
    replay = Replay(images=images, labels=labels)
    model = Segmenter(SegmenterConfig(classes=CLASSES))
    model.load_state_dict(load_model(trained).segmenter.state_dict())
    path = PACKAGED / f"{DEFAULT_MODEL}.safetensors"
    digest = save_model(path, model, card=json.loads(card.read_text()), replay=replay)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {digest}")


if __name__ == "__main__":
    main()
