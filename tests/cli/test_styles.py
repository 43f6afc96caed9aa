import json
from pathlib import Path

import pytest
from rasters import RasterSpec, write_raster
from workplace import files

from earthgate_cli.main import main
from earthgate_geo import __version__

BUILD = ["styles", "build", "images", "--out", "styles.safetensors"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for seed in range(3):
        write_raster(Path(f"images/{seed}.tif"), RasterSpec(seed=seed))
    return tmp_path


def run(capsys, *arguments):
    code = main([*BUILD, *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_it_says_how_many_styles_it_took_and_what_it_wrote(place, capsys) -> None:
    code, out, err = run(capsys)

    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith("took 3 styles from 3 files in ")
    assert lines[1:] == ["wrote styles.safetensors"]


def test_info_describes_a_bank_in_a_few_lines(place, capsys) -> None:
    digest = json.loads(run(capsys, "--json")[1])["digest"]

    code = main(["info", "styles.safetensors"])

    facts = f"earthgate: {__version__}; data: images; files: 3; part_px: 512; seed: 0"
    assert (code, capsys.readouterr().out.splitlines()) == (
        0,
        [
            "what        styles",
            "file        styles.safetensors",
            f"digest      {digest}",
            "style       statistics",
            "bands       3",
            "images      3",
            f"provenance  {facts}",
        ],
    )


def test_json_prints_the_document_and_nothing_else(place, capsys) -> None:
    code, out, err = run(capsys, "--json", "--limit", "2", "--seed", "4")

    document = json.loads(out)
    assert (code, err) == (0, "")
    assert (document["styles"], document["seed"]) == (2, 4)


def test_progress_is_told_in_the_protocol(place, capsys) -> None:
    code, _, err = run(capsys, "--progress", "json")

    events = [json.loads(line) for line in err.splitlines()]
    progress = [event for event in events if event["event"] == "progress"]
    assert code == 0
    assert progress[0] == {"event": "progress", "stage": "styles", "done": 0, "total": 3}
    assert progress[-1]["done"] == 3
    assert events[-1]["event"] == "result"


def test_a_dry_run_says_the_plan_and_writes_nothing(place, capsys) -> None:
    before = files(place)

    code, out, err = run(capsys, "--dry-run", "--bands", "red=3,green=2,blue=1")

    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "images   3 files in images",
        "parts    3 of at most 512 px",
        "style    statistics",
        "outputs  styles.safetensors",
    ]
    assert files(place) == before


def test_an_existing_bank_is_replaced_only_when_asked(place, capsys) -> None:
    run(capsys)

    refused = run(capsys)
    replaced = run(capsys, "--overwrite")

    assert refused == (
        2,
        "",
        "Error: styles.safetensors exists. Pass --overwrite to replace it, or give another name.\n",
    )
    assert replaced[0] == 0


def test_a_folder_that_is_not_there_is_refused_before_torch_is_loaded(place, start) -> None:
    code = (
        "import sys; from earthgate_cli.main import main;"
        "code = main(['styles', 'build', 'none', '--out', 'styles.safetensors']);"
        "sys.exit(code * 10 + ('torch' in sys.modules))"
    )

    assert start(code).wait(timeout=60) == 20
