"""Compare the policies on three real places: run the settings, then make the tables.

    python benchmarks/places.py run DATA RUNS --models DIR --stage screen
    python benchmarks/places.py run DATA RUNS --models DIR --stage main --control random-k
    python benchmarks/places.py run DATA FASTER --models DIR --stage screen --learning-rate 1e-3
    python benchmarks/places.py table RUNS --control random-k --other FASTER

DATA holds the folder `fair_buildings`. DIR holds a starting model per place that never saw it,
`without_<place>.safetensors`, made by `earthgate_tiny.py train --without <place>`. RUNS takes one
result document per run; those that are there already are not run again. The tables go between
two marks of `places.md`; what is written outside of them stays.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import click

from earthgate_geo.recipe import Policy

FOLDERS = {"zanzibar": "zanzibar_tz", "kampala": "kampala_ug", "catanduanes": "catanduanes_ph"}
PAIRS = tuple("-".join(pair) for pair in permutations(FOLDERS, 2))
SCREEN_PAIRS = ("zanzibar-kampala", "kampala-catanduanes")
SEEDS = (0, 1, 2)
POLICIES = tuple(policy for policy in Policy if not policy.needs_heights)
PAGE = Path(__file__).with_name("places.md")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
PROGRAM = "import sys; from earthgate_cli.main import main; sys.exit(main())"

Document = dict[str, Any]


@dataclass(frozen=True, order=True)
class Run:
    """One run of the comparison."""

    pair: str
    policy: str
    seed: int

    @property
    def setting(self) -> str:
        """Name of the benchmark's setting."""
        return f"places-{self.pair}"

    @property
    def name(self) -> str:
        """Name of the result document without its ending."""
        return f"{self.setting}.{self.policy}.s{self.seed}"


def screened() -> list[Run]:
    """Return the runs of the screen: every policy on two pairs, one seed."""
    return [Run(pair, str(policy), 0) for policy, pair in product(POLICIES, SCREEN_PAIRS)]


def compared(control: str) -> list[str]:
    """Return the policies of the main table."""
    return ["gate", "all", "head-only", "full", control]


def main_runs(control: str) -> list[Run]:
    """Return the runs of the main table, seed by seed."""
    return [Run(p, policy, s) for s, p, policy in product(SEEDS, PAIRS, compared(control))]


@click.group()
def main() -> None:
    """Compare the policies on three real places."""


_CONTROL = click.option(
    "--control", type=click.Choice([p.value for p in POLICIES]), default="random-k"
)


@main.command("run")
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--models", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--jobs", default=2)
@click.option("--stage", type=click.Choice(["screen", "main"]), default="screen")
@click.option("--learning-rate", default=1e-4)
@_CONTROL
def run_all(  # noqa: PLR0913 - one argument per option
    data: Path,
    runs: Path,
    *,
    models: Path,
    jobs: int,
    stage: str,
    learning_rate: float,
    control: str,
) -> None:
    """Start every run that has no result yet, a few side by side, each on one thread."""
    runs.mkdir(parents=True, exist_ok=True)
    wanted = screened() if stage == "screen" else main_runs(control)
    missing = [run for run in wanted if not (runs / f"{run.name}.json").exists()]
    print(f"{len(missing)} of {len(wanted)} runs to do", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        rate = {"--learning-rate": learning_rate}
        failed = list(pool.map(lambda run: _run(run, data, runs, models, rate), missing))
    if any(failed):
        raise SystemExit(1)


def _run(run: Run, data: Path, runs: Path, models: Path, rate: dict[str, float]) -> bool:
    """Run one in a process of its own; return whether it failed."""
    target = FOLDERS[run.pair.split("-")[1]]
    told = {
        "--data": data,
        "--model": models / f"without_{target}.safetensors",
        "--policy": run.policy,
        "--seed": run.seed,
        "--out": runs,
        **rate,
    }
    options = [str(part) for pair in told.items() for part in pair]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "bench", run.setting, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [""]
    print(f"{run.name}: {said[-1] if done.returncode else 'done'}", flush=True)
    return done.returncode != 0


@main.command("table")
@click.argument("runs", type=click.Path(exists=True, path_type=Path))
@click.option("--other", type=click.Path(exists=True, path_type=Path), help="Runs of a screen.")
@_CONTROL
def write_page(runs: Path, *, other: Path | None, control: str) -> None:
    """Write the tables of RUNS, and of a screen by another recipe, into places.md."""
    text = PAGE.read_text("utf-8") if PAGE.exists() else "# Three places, twelve policies\n"
    made = tables(read_runs(runs), control)
    if other is not None:
        made += "\n\n### The screen by another recipe\n\n" + rescreened(read_runs(other))
    PAGE.write_text(placed(text, made), encoding="utf-8")


def read_runs(folder: Path) -> dict[Run, Document]:
    """Return the result documents of a folder by run.

    Raises:
        SystemExit: They do not share one recipe.
    """
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    recipes = {json.dumps(_shared_recipe(document), sort_keys=True) for document in documents}
    if len(recipes) > 1:
        raise SystemExit(f"{folder} holds runs of {len(recipes)} recipes; compare only one")
    return {
        Run(d["setting"]["name"].removeprefix("places-"), d["policy"], d["seed"]): d
        for d in documents
    }


def _shared_recipe(document: Document) -> Document:
    return {k: v for k, v in document["recipe"].items() if k not in ("policy", "seed")}


def placed(text: str, made: str) -> str:
    """Return a page with ``made`` between its marks, which are added where they are missing."""
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{made.strip()}\n{END}{rest.split(END, 1)[1]}"


def tables(found: dict[Run, Document], control: str) -> str:
    """Return protocol, screen, main table and cost as Markdown; a missing run is a dash."""
    parts = [_protocol(found), "### Screen: every policy, seed 0", *_screen(found)]
    title = f"### Main: {len(SEEDS)} seeds, mean and standard deviation over them"
    parts += [title, *_main(found, compared(control)), "### Cost", *_cost(found)]
    return "\n\n".join(parts)


def rescreened(found: dict[Run, Document]) -> str:
    """Return protocol and screen as Markdown."""
    return "\n\n".join([_protocol(found), *_screen(found)])


def _protocol(found: dict[Run, Document]) -> str:
    document = next(iter(found.values()))
    recipe = document["recipe"]
    selection = recipe["selection"]
    return (
        f"{recipe['steps']} steps of {recipe['batch']} labelled source and "
        f"{recipe['target_batch']} unlabelled target crops of {recipe['crop_px']} px, learning "
        f"rate {recipe['learning_rate']:g}, k = {selection['share']:.0%} of the modules, chosen "
        f"every {selection['interval']} steps. Score: IoU of building in per cent on grounds of "
        f"the target that training never sees, after the last step. {len(found)} runs."
    )


def _screen(found: dict[Run, Document]) -> list[str]:
    def line(name: str, each: list[list[float]]) -> list[str]:
        return [name, *map(_mean, each), _mean(_means(each))]

    rows = [line("starting model", [_before(found, pair) for pair in SCREEN_PAIRS])]
    for policy in POLICIES:
        runs = [Run(pair, policy, 0) for pair in SCREEN_PAIRS]
        rows.append(line(policy, [_scores(found, run.__eq__) for run in runs]))
    return [_table(["policy", *SCREEN_PAIRS, "mean"], rows)]


def _main(found: dict[Run, Document], policies: Sequence[str]) -> list[str]:
    def score(policy: str, pair: str) -> list[float]:
        return _scores(found, lambda run: run.policy == policy and run.pair == pair)

    rows = [
        [pair, _mean(_before(found, pair)), *(_spread(score(p, pair)) for p in policies)]
        for pair in PAIRS
    ]
    each = [[score(policy, pair) for pair in PAIRS] for policy in policies]
    starts = [_before(found, pair) for pair in PAIRS]
    rows.append(["**mean over pairs**", *(_mean(_means(scores)) for scores in [starts, *each])])
    pairs = [differences(found, policy) for policy in policies]
    rows.append(["minus gate, run by run", "", *map(_spread, pairs)])
    rows.append(
        ["better than gate", "", *(f"{sum(d > 0 for d in ds)} of {len(ds)}" for ds in pairs)]
    )
    return [_table(["source-target", "starting model", *policies], rows)]


def differences(found: dict[Run, Document], policy: str) -> list[float]:
    """Return how much better a policy is than the gate, over the pairs and seeds of both."""
    return [
        100 * (document["miou_last"] - found[gated]["miou_last"])
        for run, document in sorted(found.items())
        if run.policy == policy and (gated := Run(run.pair, "gate", run.seed)) in found
    ]


def _cost(found: dict[Run, Document]) -> list[str]:
    def mean(policy: str, pick: Callable[[Document], float]) -> float | None:
        values = [pick(d) for run, d in found.items() if run.policy == policy]
        return statistics.mean(values) if values else None

    columns: dict[str, Callable[[Document], float]] = {
        "trained parameters": lambda d: d["trained_parameters"],
        "s choosing": lambda d: d["seconds"]["select"],
        "s training": lambda d: d["seconds"]["train"],
    }
    rows = []
    for policy in POLICIES:
        values = [mean(policy, pick) for pick in columns.values()]
        rows.append([str(policy), *("-" if v is None else _number(v) for v in values)])
    return [_table(["policy", *columns], rows)]


def _scores(found: dict[Run, Document], wanted: Callable[[Run], bool]) -> list[float]:
    return [100 * document["miou_last"] for run, document in sorted(found.items()) if wanted(run)]


def _before(found: dict[Run, Document], pair: str) -> list[float]:
    """Return the starting model's score, which is the same in every run of a pair."""
    return [100 * d["miou_before"] for run, d in sorted(found.items()) if run.pair == pair][:1]


def _means(scores: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each, or nothing while one is missing."""
    return [statistics.mean(each) for each in scores] if all(scores) else []


def _mean(scores: Sequence[float]) -> str:
    return f"{statistics.mean(scores):.1f}" if scores else "-"


def _spread(scores: Sequence[float]) -> str:
    if len(scores) < 2:
        return _mean(scores)
    return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
