"""Measure what the gate costs and saves, and write the tables of `gate_cost.md`.

    python benchmarks/gate_cost.py steps    # about 2 minutes on an idle core
    python benchmarks/gate_cost.py scores   # Fisher scores: one pass an image, or one vmap

Policies take turns in one process, step by step, on one thread. Seconds are of the processor, so
that other programs on the machine count little and strike all policies alike; every figure is the
median over the rounds.
"""

import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import profile

from earthgate_geo.gate import fisher_scores
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.model_file import load_model
from earthgate_geo.models.backbone import BackboneConfig
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.policies import Tuner
from earthgate_geo.recipe import Policy, Selection
from earthgate_geo.toolbox.attach import attach
from earthgate_geo.toolbox.base import Slot, Toolbox, ToolboxConfig
from earthgate_geo.training.loop import fast_arithmetic

PAGE = Path(__file__).with_suffix(".md")
ALL_OPEN = "`all`"
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and what a training step shows it."""

    name: str
    model: Segmenter
    size_px: int
    batch: int


def cases() -> Iterator[Case]:
    """Make the packaged model, and a ViT-S of random weights as DINOv2's are used."""
    loaded = load_model()
    yield Case(name="earthgate-tiny, 192 px", model=loaded.segmenter, size_px=192, batch=4)
    options = {"patch_size": 16, "img_size": 256}
    config = replace(
        loaded.segmenter.config,
        backbone=BackboneConfig(name="vit_small_patch14_dinov2", options=options),
    )
    torch.manual_seed(0)
    model = Segmenter(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):  # LayerScale: as it starts, gradients would not reach far
            nn.init.constant_(parameter, 0.5)
    yield Case(name="ViT-S/16 (random weights), 256 px", model=model, size_px=256, batch=2)


class Tiles:
    """The labelled tiles of the packaged model, cut to size; one after another, for ever."""

    def __init__(self, size_px: int) -> None:
        replay = load_model().replay
        assert replay is not None  # noqa: S101 - a script
        corner = (..., slice(size_px), slice(size_px))
        self.images = torch.from_numpy(replay.images[corner]).float() / 255
        self.labels = torch.from_numpy(replay.labels[corner]).long()

    def draw(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` tiles from number ``first`` on."""
        chosen = torch.arange(first, first + count) % len(self.images)
        return self.images[chosen], self.labels[chosen]


def loss(model: Segmenter, images: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy in the arithmetic of training."""
    with fast_arithmetic(images.device):
        logits: Tensor = model(images)
    return functional.cross_entropy(logits.float(), labels, ignore_index=UNKNOWN)


@dataclass
class Run:
    """One policy at work on a copy of a case's network."""

    case: Case
    tiles: Tiles
    tuner: Tuner
    model: Segmenter
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters = self.tuner.parameters.values()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05)

    @classmethod
    def start(cls, case: Case, tiles: Tiles, policy: Policy) -> "Run":
        """Copy the network; a policy that chooses makes its first choice."""
        model = copy.deepcopy(case.model)
        tuner = Tuner(model, policy, selection=Selection(interval=50), seed=0, batch=case.batch)
        run = cls(case, tiles, tuner, model)
        if tuner.due(0):
            tuner.select(run.single_losses(0, tuner.images))
        return run

    def single_losses(self, first: int, count: int) -> list[Callable[[], Tensor]]:
        """Return the losses of single images."""
        pairs = [self.tiles.draw(index, 1) for index in range(first, first + count)]
        return [partial(loss, self.model, *pair) for pair in pairs]

    def step(self, number: int) -> None:
        """Take a training step: forward, backward, AdamW."""
        images, labels = self.tiles.draw(number * self.case.batch, self.case.batch)
        self.optimizer.zero_grad(set_to_none=True)
        started = time.process_time()
        loss(self.model, images, labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.seconds.append(time.process_time() - started)

    def memory_mb(self) -> tuple[float, float]:
        """Return the peak of what a step allocates, and what AdamW keeps between steps.

        The weights themselves, the same for all, are in neither.
        """
        peak = peak_mb(lambda: self.step(0))
        self.seconds.pop()
        kept = sum(v.nbytes for state in self.optimizer.state.values() for v in state.values())
        return peak, kept / 1e6


def peak_mb(work: Callable[[], object]) -> float:
    """Return the peak of what torch allocates during ``work``."""
    with profile(profile_memory=True) as recorded:
        work()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak: int = max(accumulate(change for _, change in changes))
    return peak / 1e6


def toolbox_of(run: Run) -> Toolbox:
    """Return the toolbox of a run that has one."""
    assert run.tuner.toolbox is not None  # noqa: S101 - a script
    return run.tuner.toolbox


def all_used(run: Run) -> Run:
    """Put every module into the forward pass, as after many choices."""
    toolbox = toolbox_of(run)
    toolbox.used = toolbox.slots
    return run


def only_from(run: Run, layer: int) -> Run:
    """Open as many modules as the gate does, from ``layer`` upwards, and use no others."""
    toolbox = toolbox_of(run)
    count = len(toolbox.opened)
    toolbox.used = ()
    toolbox.open([slot for slot in sorted(toolbox.slots) if slot.layer >= layer][:count])
    return run


def lowest(run: Run) -> str:
    """Say which layer is the lowest open one."""
    if run.tuner.toolbox is None:
        return "whole" if run.tuner.policy is Policy.FULL else "none"
    return str(min(slot.layer for slot in run.tuner.toolbox.opened))


def quartiles(values: Sequence[float], form: str) -> str:
    """Write the median and the quartiles around it."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def write(block: str, text: str) -> None:
    """Put ``text`` between the marks of ``block`` on the page, and print it."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {block} -->\n", f"<!-- end of {block} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")
    print(text)


@click.group()
def main() -> None:
    """Measure what the gate costs and saves."""


@main.command()
@click.option("--rounds", default=9, help="Turns of every policy, after two to warm up.")
def steps(rounds: int) -> None:
    """Measure training steps and the selection."""
    torch.set_num_threads(1)
    told = []
    for case in cases():
        told.append(f"**{case.name}, batch {case.batch}**\n\n{_steps(case, rounds)}")
        gc.collect()
    write("steps", "\n\n".join(told))


def _steps(case: Case, rounds: int) -> str:
    tiles = Tiles(case.size_px)
    layers = len(case.model.backbone.blocks)

    def gate() -> Run:
        return Run.start(case, tiles, Policy.GATE)

    runs = {
        "`gate`, first choice": gate(),
        "`gate`, every module used": all_used(gate()),
        ALL_OPEN: Run.start(case, tiles, Policy.ALL),
        "`full`": Run.start(case, tiles, Policy.FULL),
        "`head-only`": Run.start(case, tiles, Policy.HEAD_ONLY),
    }
    for layer in (0, layers // 4, layers // 2, 3 * layers // 4):
        runs[f"as many from layer {layer} up"] = only_from(gate(), layer)
    scorer = next(iter(runs.values()))
    scoring = []
    for number in range(WARM_UP + rounds):
        for run in runs.values():
            run.step(number)
        started = time.process_time()
        fisher_scores(toolbox_of(scorer), scorer.single_losses(number, 1))
        scoring.append(time.process_time() - started)
    return f"{_step_table(runs)}\n\n{_selection(case, scorer, scoring[WARM_UP:])}"


def _step_table(runs: dict[str, Run]) -> str:
    whole = runs[ALL_OPEN].seconds[WARM_UP:]
    rows = []
    for name, run in runs.items():
        seconds = run.seconds[WARM_UP:]
        ratios = [own / other for own, other in zip(seconds, whole, strict=True)]
        peak, kept = run.memory_mb()
        rows.append(
            (
                *(name, lowest(run), f"{run.tuner.trained_parameters / 1e6:.2f}"),
                *(f"{statistics.median(seconds):.3f}", quartiles(ratios, ".2f")),
                *(f"{peak:.0f}", f"{kept:.0f}"),
            )
        )
    head = ("policy", "lowest open layer", "parameters used, M", "s a step", "of an `all` step")
    return table((*head, "peak of a step, MB", "AdamW, MB"), rows)


def _selection(case: Case, run: Run, scoring: Sequence[float]) -> str:
    step, image = statistics.median(run.seconds[WARM_UP:]), statistics.median(scoring)
    rows = []
    for interval in (50, 100):
        images = Selection(interval=interval).images_for(case.batch)
        seconds = images * image
        share = seconds / (interval * step)
        rows.append((str(interval), str(images), f"{seconds:.2f}", f"{share:.1%}"))
    return table(("steps between choices", "images", "s a choice", "of the steps' time"), rows)


@main.command()
@click.option("--rounds", default=3, help="Turns of either way.")
def scores(rounds: int) -> None:
    """Compare one pass an image with all images in one vmap."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="There is a performance drop")
    rows = []
    for case in cases():
        for count in (6, 16):
            rows.append(_compare(case, count, rounds))
            gc.collect()
    head = ("network", "images", "passes, s", "vmap, s", "peak of passes, MB", "of vmap, MB")
    write("scores", table(head, rows))


def _compare(case: Case, count: int, rounds: int) -> tuple[str, ...]:
    images, labels = Tiles(case.size_px).draw(0, count)
    model = copy.deepcopy(case.model).requires_grad_(False)
    toolbox = attach(model.backbone, ToolboxConfig())

    def passes() -> dict[Slot, float]:
        pairs = zip(torch.split(images, 1), torch.split(labels, 1), strict=True)
        losses = [partial(loss, model, image, label) for image, label in pairs]
        return dict(fisher_scores(toolbox, losses).raw)

    def together() -> dict[Slot, float]:
        return _scores_by_vmap(model, toolbox, images, labels)

    ways: dict[Callable[[], dict[Slot, float]], list[float]] = {passes: [], together: []}
    peaks = [peak_mb(way) for way in ways]
    for _ in range(rounds):
        for way, seconds in ways.items():
            started = time.process_time()
            way()
            seconds.append(time.process_time() - started)
    medians = [f"{statistics.median(seconds):.2f}" for seconds in ways.values()]
    return (case.name, str(count), *medians, *(f"{peak:.0f}" for peak in peaks))


def _scores_by_vmap(
    model: Segmenter, toolbox: Toolbox, images: Tensor, labels: Tensor
) -> dict[Slot, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def single(own: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        with fast_arithmetic(image.device):
            logits = torch.func.functional_call(model, own, (image[None],))
        return functional.cross_entropy(logits.float(), label[None], ignore_index=UNKNOWN)

    with toolbox.all_open():
        slots = {s: [names[id(p)] for p in toolbox.parameters(s).values()] for s in toolbox.slots}
        own = {name: model.get_parameter(name).detach() for s in slots.values() for name in s}
        each = torch.func.vmap(torch.func.grad(single), in_dims=(None, 0, 0))(own, images, labels)
    squares = {name: gradient.square().sum() / len(images) for name, gradient in each.items()}
    return {slot: float(sum(squares[name] for name in own)) for slot, own in slots.items()}


if __name__ == "__main__":
    main()
