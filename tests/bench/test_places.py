import json
from itertools import product

import pytest
from click.testing import CliRunner

from benchmarks import places
from benchmarks.places import BEGIN, END, PAIRS, Run
from earthgate_geo.recipe import Policy, Recipe


def made(run: Run, score: float) -> dict:
    """Return the parts of a result that the tables read."""
    return {
        "setting": {"name": run.setting},
        "policy": run.policy,
        "seed": run.seed,
        "recipe": Recipe(seed=run.seed, policy=Policy(run.policy)).to_json(),
        "miou_last": score,
        "miou_before": 0.4,
        "trained_parameters": 1_234_567,
        "seconds": {"step": 0.25, "select": 1.5, "train": 120.0},
        "peak_memory_mb": 900,
    }


def rows(text: str, title: str) -> dict[str, list[str]]:
    """Return the cells of the table under a heading, by the first cell of a line."""
    section = text.split(f"### {title}")[1].split("###", maxsplit=1)[0]
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line
    ]
    return {line[0]: line[1:] for line in cells}


@pytest.fixture
def found() -> dict[Run, dict]:
    """Scores: 0.50 + 0.01 a seed for the gate, 0.02 more for all, 0.04 less for random-k."""
    offsets = {"gate": 0.0, "all": 0.02, "head-only": 0.0, "full": 0.0, "random-k": -0.04}
    return {
        run: made(run, 0.5 + 0.01 * seed + offset)
        for pair, (policy, offset), seed in product(PAIRS, offsets.items(), places.SEEDS)
        if (run := Run(pair, policy, seed))
    }


def test_the_main_table_has_mean_and_deviation_over_the_seeds(found) -> None:
    main = rows(places.tables(found, "random-k"), "Main")

    expected = ["40.0", "51.0 ± 1.0", "53.0 ± 1.0", "51.0 ± 1.0", "51.0 ± 1.0", "47.0 ± 1.0"]
    assert {pair: main[pair] for pair in PAIRS} == dict.fromkeys(PAIRS, expected)
    assert main["**mean over pairs**"] == ["40.0", "51.0", "53.0", "51.0", "51.0", "47.0"]


def test_differences_are_taken_run_by_run(found) -> None:
    main = rows(places.tables(found, "random-k"), "Main")

    # The spread over the seeds is common to both sides: it must be gone.
    assert main["minus gate, run by run"] == [
        *("", "0.0 ± 0.0", "2.0 ± 0.0", "0.0 ± 0.0", "0.0 ± 0.0", "-4.0 ± 0.0")
    ]
    assert main["better than gate"] == ["", "0 of 18", "18 of 18", "0 of 18", "0 of 18", "0 of 18"]


def test_the_screen_shows_seed_0_alone(found) -> None:
    screen = rows(places.tables(found, "random-k"), "Screen")

    assert screen["all"] == ["52.0", "52.0", "52.0"]
    assert screen["rein"] == ["-", "-", "-"]
    assert screen["starting model"] == ["40.0", "40.0", "40.0"]


def test_a_missing_run_is_a_dash_and_no_mean_hides_it(found) -> None:
    partial = {run: d for run, d in found.items() if run.pair != PAIRS[0] or run.policy != "all"}

    main = rows(places.tables(partial, "random-k"), "Main")

    assert main[PAIRS[0]][2] == "-"
    assert main["**mean over pairs**"][2] == "-"


def test_the_cost_is_told_per_policy(found) -> None:
    cost = rows(places.tables(found, "random-k"), "Cost")

    assert cost["gate"] == ["1,234,567", "1.50", "120"]
    assert cost["rein"] == ["-"] * 3


def test_text_around_the_tables_stays_and_older_tables_go() -> None:
    page = f"# Title\n\nabove\n{BEGIN}\nold\n{END}\nbelow\n"

    assert places.placed(page, "new") == f"# Title\n\nabove\n{BEGIN}\nnew\n{END}\nbelow\n"
    assert places.placed("# Title\n", "new") == f"# Title\n\n{BEGIN}\nnew\n{END}\n"


def test_runs_of_different_recipes_are_not_compared(tmp_path) -> None:
    for name, steps in (("a", 10), ("b", 20)):
        document = made(Run(PAIRS[0], "gate", 0), 0.5)
        document["recipe"] |= {"steps": steps}
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(SystemExit, match="holds runs of 2 recipes; compare only one"):
        places.read_runs(tmp_path)


def test_runs_are_read_by_pair_policy_and_seed(tmp_path, found) -> None:
    for run, document in found.items():
        text = json.dumps(document)
        (tmp_path / f"{run.name}.json").write_text(text, encoding="utf-8")

    assert places.read_runs(tmp_path) == found


def test_the_stages_hold_the_runs_of_the_plan() -> None:
    screen, main = places.screened(), places.main_runs("random-k")

    assert (len(screen), len(main)) == (24, 90)
    assert {run.policy for run in screen} == {p for p in Policy if not p.needs_heights}
    assert len(set(main)) == 90


def test_runs_that_are_there_are_not_started_again(tmp_path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for run in places.screened():
        (runs / f"{run.name}.json").write_text("{}", encoding="utf-8")

    done = CliRunner().invoke(
        places.main, ["run", str(tmp_path), str(runs), "--models", str(tmp_path)]
    )

    assert (done.exit_code, done.output) == (0, "0 of 24 runs to do\n")
