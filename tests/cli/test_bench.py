import json
import shutil
from pathlib import Path

import pytest
from benchmark_files import write_places
from networks import write_model

from earthgate_cli.main import cli, main
from earthgate_geo.bench.settings import SETTINGS

SETTING = "places-kampala-zanzibar"
SMALL = ["--steps", "2", "--batch", "1", "--crop", "16", "--interval", "1", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Work in a folder with tiles of two places in ``data``, and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EARTHGATE_MODELS", str(tmp_path / "models"))
    for place in ("zanzibar_tz", "kampala_ug"):
        write_places(Path("data"), ["a", "b"], place=place)
    write_model(tmp_path / "small.safetensors")
    return tmp_path


def bench(*arguments: str) -> int:
    return main(["bench", SETTING, "--data", "data", "--model", "small.safetensors", *arguments])


def test_a_run_says_scores_and_cost_and_what_it_wrote(folder, capsys) -> None:
    assert bench(*SMALL, "--out", ".") == 0

    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0].split() == ["class", "IoU", "last", "best", "on", "test"]
    assert [line.split()[0] for line in lines[1:]] == (
        ["building", "mean", "before", "trained", "time", "wrote", "wrote"]
    )
    assert lines[-2:] == [f"wrote {SETTING}.gate.s0.json", f"wrote {SETTING}.gate.s0.md"]


def test_json_prints_the_document_that_is_written(folder, capsys) -> None:
    assert bench(*SMALL, "--policy", "fixed-k", "--seed", "4", "--out", ".", "--json") == 0

    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(Path(f"{SETTING}.fixed-k.s4.json").read_text("utf-8"))
    assert document["policy"] == "fixed-k"


def test_every_option_reaches_the_recipe(folder, capsys) -> None:
    own = ["--learning-rate", "0.01", "--modules", "0.5", "--interval", "2"]

    assert bench(*SMALL, *own, "--json") == 0

    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert (recipe["steps"], recipe["batch"], recipe["crop_px"]) == (2, 1, 16)
    assert recipe["learning_rate"] == 0.01
    assert (recipe["selection"]["interval"], recipe["selection"]["share"]) == (2, 0.5)


def test_progress_is_told_as_of_any_training(folder, capsys) -> None:
    assert bench(*SMALL, "--progress", "json") == 0

    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    progress = [e for e in events if e["event"] == "progress"]
    assert {e["stage"] for e in progress} == {"train"}
    assert (progress[-1]["done"], progress[-1]["total"]) == (2, 2)
    assert events[-1]["event"] == "result"
    assert events[-1]["policy"] == "gate"


def test_the_list_names_every_setting_without_torch(start) -> None:
    code = (
        "import sys; from earthgate_cli.main import main; main(['bench', '--list']);"
        "sys.exit(bool({'torch', 'torchgeo', 'lightning'} & set(sys.modules)))"
    )

    child = start(code)
    out, _ = child.communicate(timeout=60)

    assert child.returncode == 0
    assert [line.split()[0] for line in out.decode().splitlines()] == list(SETTINGS)


def test_the_list_as_json_has_what_the_contract_says(capsys) -> None:
    assert main(["bench", "--list", "--json"]) == 0

    settings = json.loads(capsys.readouterr().out)["settings"]
    assert [entry["name"] for entry in settings] == list(SETTINGS)
    assert all(entry.keys() >= {"suites", "classes", "published"} for entry in settings)


def test_a_check_says_what_is_there_and_what_is_missing(folder, capsys) -> None:
    assert main(["bench", "--check", "data"]) == 0

    lines = capsys.readouterr().out.splitlines()
    found = next(i for i, line in enumerate(lines) if line.startswith(f"{SETTING} "))
    missing = next(i for i, line in enumerate(lines) if line.startswith("da-u2r "))
    assert lines[found].split()[1] == "complete"
    assert lines[missing].split()[1] == "missing"
    assert lines[missing + 1] == f"  source: {Path('data/LoveDA')}"


def test_without_setting_or_data_the_ways_on_are_told(capsys) -> None:
    assert main(["bench", SETTING]) == 2

    said = capsys.readouterr().err
    assert said.endswith("Error: Give a SETTING and --data, or --list, --check or --summary.\n")


def test_results_become_a_page_and_lines(folder, capsys) -> None:
    Path("results").mkdir()
    for seed in ("0", "1"):
        assert bench(*SMALL, "--seed", seed, "--out", "results") == 0
    capsys.readouterr()

    assert main(["bench", "--summary", "results", "--out", "results"]) == 0

    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "gate: policy gate, earthgate_tiny, fpn head"
    assert lines[1].split()[0] == SETTING
    assert lines[1].split()[-4:] == ["(2", "seeds)", "published", "-"]
    assert lines[2:] == [
        f"wrote {Path('results/summary.md')}",
        f"wrote {Path('results/summary_local.svg')}",
    ]
    assert f"| gate, `{SETTING}` | 0, 1 | 2 of 1 + 1 x 16 px |" in (
        Path("results/summary.md").read_text("utf-8")
    )


def test_a_summary_of_nothing_is_refused(folder, capsys) -> None:
    assert main(["bench", "--summary", "models"]) == 2

    assert capsys.readouterr().err == (
        "Error: no result in models; expected what `earthgate bench SETTING --out` wrote, there "
        "or in folders inside.\n"
    )


def test_data_that_is_missing_is_one_line(folder, capsys) -> None:
    shutil.rmtree("data")

    assert bench(*SMALL) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_a_result_that_exists_is_refused(folder, capsys) -> None:
    Path(f"{SETTING}.gate.s0.md").touch()

    assert bench(*SMALL, "--out", ".") == 2

    assert capsys.readouterr().err == (
        f"Error: {SETTING}.gate.s0.md exists. Pass --overwrite to replace it, or give another "
        "name.\n"
    )


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_result(folder, start) -> None:
    code = "import sys; from earthgate_cli.main import main; sys.exit(main(sys.argv[1:]))"
    long = [*SMALL, "--steps", "100000", "--out", ".", "--watch-stdin", "--progress", "json"]
    data = ["--data", "data", "--model", "small.safetensors"]
    child = start(code, "bench", SETTING, *data, *long)

    while b'"stage": "train"' not in child.stderr.readline():
        assert child.poll() is None
    child.stdin.close()
    child.stdin = None
    child.communicate(timeout=60)

    assert child.returncode == 130
    assert list(folder.glob("*.json")) + list(folder.glob(".*.earthgate")) == []


def test_the_options_are_the_ones_that_do_something() -> None:
    wanted = (
        "--data --out --list --check --summary --model --backbone --weights --head --policy --seed "
        "--steps --batch --crop --learning-rate --interval --modules --device --overwrite "
        "--progress --json --quiet --verbose --watch-stdin"
    )

    found = {name for option in cli.commands["bench"].params for name in option.opts}

    assert {name for name in found if name.startswith("--")} == set(wanted.split())
