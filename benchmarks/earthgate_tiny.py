"""Train the packaged default model, earthgate-tiny.

Every step is a command; `benchmarks/earthgate_tiny.md` holds those that were run:

    python benchmarks/earthgate_tiny.py pack-real DATA real.npz
    python benchmarks/earthgate_tiny.py pack-made made.npz
    python benchmarks/earthgate_tiny.py pretrain first.safetensors --made made.npz --real real.npz
    python benchmarks/earthgate_tiny.py train out.safetensors --made made.npz --real real.npz
    python benchmarks/earthgate_tiny.py finish out.safetensors card.json --replay replay.npz

DATA holds the folders `fair_buildings` and `scenes`: drone tiles of three places with building
footprints. `--without PLACE` leaves one place out, for honest figures on that place. `--start` goes
on from the model of another stage; with `--state FILE` a training that was killed goes on where it
was when it is started again. Only `pack-real` and `pack-made` read rasters or generate scenes: the
other commands run where neither rasterio nor TorchGeo is installed.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from torch import Tensor

from earthgate_geo.data.replay import Replay
from earthgate_geo.data.style import StyleInjector
from earthgate_geo.model_file import (
    DEFAULT_MODEL,
    PACKAGED,
    file_digest,
    load_model,
    save_model,
)
from earthgate_geo.models.heads import TemperedHead
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig
from earthgate_geo.models.statistics import FeatureStatistics
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.recipe import Styles
from earthgate_geo.style_file import load_bank
from earthgate_geo.training.crops import TilePool
from earthgate_geo.training.source import (
    Setup,
    SourceOptions,
    load_pool,
    pretrain_source,
    train_source,
)

PLACES = ("zanzibar_tz", "kampala_ug", "catanduanes_ph")
MADE_SHARE, REAL_SHARE = 0.35, 0.65
SEEN_M = (0.2, 0.6)
"""Ground sizes that scenes are seen at; finer images gain by being reduced."""
TEMPERATURE = 1.35
"""Of the logits: models are too sure on sensors that they never saw, and in bfloat16 the labels
then differ only where the two best classes are closer than 0.02."""
FILE = click.Path(exists=True, path_type=Path)
OUT = click.Path(path_type=Path)


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
@click.argument("data", type=FILE)
@click.argument("out", type=OUT)
def pack_real(data: Path, out: Path) -> None:
    """Pack the drone tiles and scenes of DATA into one array file."""
    from earthgate_tiny_tiles import real_tiles  # noqa: PLC0415 - it reads rasters

    np.savez(out, **real_tiles(data, PLACES))
    _tell(out)


@main.command()
@click.argument("out", type=OUT)
@click.option("--tiles", default=1000, help="Of each seed.")
@click.option("--seed", "seeds", multiple=True, default=(1,), type=int)
@click.option("--infrared", default=0.0, help="Share that is infrared, red and green for certain.")
@click.option("--gsd", "gsd_m", default=(0.07, 0.6), type=(float, float), help="Range in metres.")
def pack_made(
    out: Path, tiles: int, seeds: tuple[int, ...], infrared: float, gsd_m: tuple[float, float]
) -> None:
    """Pack generated tiles into one array file."""
    from earthgate_tiny_tiles import made_tiles  # noqa: PLC0415 - it draws with rasterio

    parts = [made_tiles(tiles, seed, infrared=infrared, gsd_m=gsd_m) for seed in seeds]
    arrays = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("made_images", "made_labels", "made_gsd_m")
    }
    np.savez(out, **arrays, classes=parts[0]["classes"])
    _tell(out)


def training(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that both stages share."""
    options = [
        click.argument("out", type=OUT),
        click.option("--made", type=FILE, multiple=True, help="Generated tiles."),
        click.option("--real", type=FILE, help="Drone tiles."),
        click.option("--without", type=click.Choice(PLACES), help="A place to leave out."),
        click.option("--start", type=FILE, help="Model to go on from."),
        click.option("--state", type=OUT, help="File from which a killed run goes on."),
        click.option("--steps", default=1000),
        click.option("--batch", default=16),
        click.option("--crop", "crop_px", default=192),
        click.option("--gsd", "gsd_m", default=(0.05, 1.0), type=(float, float)),
        click.option("--learning-rate", default=1e-3),
        click.option("--seed", default=0),
        click.option("--device", default="cpu"),
        click.option("--threads", default=0, help="That cut crops ahead."),
    ]
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


@main.command()
@training
def pretrain(**given: Any) -> None:
    """Train the backbone to paint what is hidden of tiles, without labels; write a model file."""
    run = Run(given)
    run.finish(
        pretrain_source(run.model, run.pools, run.options, monitor=Printer(), setup=run.setup)
    )


@main.command()
@training
@click.option("--styles", type=FILE, help="Bank of styles to inject into half of each image.")
def train(styles: Path | None, **given: Any) -> None:
    """Train on generated tiles, drone tiles or both (35 to 65); write a model file."""
    run = Run(given)
    restyle = None
    if styles is not None:
        bank = load_bank(styles)
        restyle = StyleInjector(bank.style(), bank, Styles(strength=0.5, styled=0.5))
    run.finish(
        train_source(
            run.model,
            run.pools,
            run.options,
            monitor=Printer(),
            setup=run.setup,
            restyle=restyle,
        )
    )


class Run:
    """A stage of the training, from its options."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.out, self.without, self.start = given["out"], given["without"], given["start"]
        self.setup = Setup(**{k: given[k] for k in ("state", "device", "threads")})
        names = ("steps", "batch", "crop_px", "gsd_m", "learning_rate", "seed")
        self.options = SourceOptions(**{name: given[name] for name in names})
        made, real = given["made"], given["real"]
        self.pools = [load_pool(path, "made", share=MADE_SHARE / len(made)) for path in made]
        self.pools += _real_pools(real, self.without) if real else []
        self.packed = [*made, *([real] if real else [])]
        torch.manual_seed(self.options.seed)
        torch.set_num_threads(1)  # two runs side by side are faster than one run on two cores
        if self.start is None:
            self.model = Segmenter(SegmenterConfig(classes=_classes(self.packed[0])))
        else:
            self.model = load_model(self.start).segmenter.requires_grad_(True)

    def finish(self, record: dict[str, Any]) -> None:
        """Write the model; print what it was made of, its digest and the losses."""
        card = {
            "name": self.out.stem,
            "without": self.without,
            "steps": self.options.steps,
            "seed": self.options.seed,
            "data": {path.name: file_digest(path) for path in self.packed},
            "start": self.start and file_digest(self.start),
        }
        # In full: what a later stage goes on from shall lose nothing.
        save_model(self.out, self.model.cpu(), card=card, dtype=torch.float32)
        print(json.dumps(card | record))
        _tell(self.out)


def _classes(packed: Path) -> ClassTable:
    with np.load(packed) as arrays:
        entries = json.loads(str(arrays["classes"]))
    return ClassTable(tuple(LandClass(**entry) for entry in entries))


def _real_pools(real: Path, without: str | None) -> list[TilePool]:
    """Return one pool per place, so that a large place does not drown the others."""
    with np.load(real) as packed:
        arrays = [packed[f"real_{name}"] for name in ("images", "labels", "gsd_m")]
        places = packed["real_places"]
    kept = [place for place in PLACES if place != without]
    share = REAL_SHARE / len(kept)
    return [TilePool(*(array[places == place] for array in arrays), share=share) for place in kept]


def _seen(pool: TilePool, rng: np.random.Generator) -> Tensor:
    """Return images of a pool at the ground sizes of scenes, which the first layers notice."""
    return torch.stack([pool.crop(256, rng, gsd_m=SEEN_M)[0] for _ in range(8)])


def _tell(path: Path) -> None:
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {file_digest(path)}", flush=True)


@main.command()
@click.argument("trained", type=FILE)
@click.argument("card", type=FILE)
@click.option("--replay", type=FILE, required=True, help="Generated tiles, as `pack-made` packs.")
@click.option("--real", type=FILE, required=True, help="Drone tiles that it was trained on.")
@click.option("--without", type=click.Choice(PLACES), help="The place that was left out.")
@click.option("--tiles", default=80, help="How many generated tiles to carry for adaptation.")
@click.option("--out", type=OUT, default=PACKAGED / f"{DEFAULT_MODEL}.safetensors")
def finish(  # noqa: PLR0913 - one argument per option
    trained: Path,
    card: Path,
    replay: Path,
    real: Path,
    without: str | None,
    tiles: int,
    out: Path,
) -> None:
    """Package TRAINED with the JSON CARD and what adaptation needs as the default model."""
    with np.load(replay) as packed:
        images, labels = packed["made_images"][:tiles], packed["made_labels"][:tiles]
    model, rng = load_model(trained).segmenter, np.random.default_rng(0)
    finest, coarsest = SEEN_M
    model.config = replace(model.config, gsd_min_m=finest, gsd_max_m=coarsest)
    cast(TemperedHead, model.head).temper(TEMPERATURE)
    pools = _real_pools(real, without)
    save_model(
        out,
        model,
        card=json.loads(card.read_text(encoding="utf-8")),
        replay=Replay(images=images, labels=labels),
        statistics=FeatureStatistics.gather(
            model, (_seen(pool, rng) for _ in range(4) for pool in pools)
        ),
    )
    _tell(out)


if __name__ == "__main__":
    main()
