import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from earthgate_cli.output import EventMonitor, Speech, TextMonitor
from earthgate_geo.errors import EarthgateWarning
from earthgate_geo.monitor import Monitor

Captured = pytest.CaptureFixture[str]


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"{document['tiles']} tiles"


def talkative(monitor: Monitor) -> dict[str, int]:
    monitor.stage("map", 2)
    monitor.update(1)
    monitor.log("a log line")
    monitor.warn("a warning")
    warnings.warn("a library's warning", UserWarning, stacklevel=1)
    warnings.warn("our warning", EarthgateWarning, stacklevel=1)
    logging.getLogger("rasterio").warning("a library's log line")
    monitor.update(2)
    return {"tiles": 2}


def test_the_monitors_fit_the_protocol() -> None:
    monitors: list[Monitor] = [EventMonitor(), TextMonitor(quiet=False, verbose=False)]

    assert len(monitors) == 2


@pytest.mark.filterwarnings("default")
def test_a_run_prints_its_summary_on_stdout_and_warnings_on_stderr(capsys: Captured) -> None:
    Speech(progress="none").run(talkative, lines)

    assert capsys.readouterr() == ("2 tiles\n", "Warning: a warning\nWarning: our warning\n")


@pytest.mark.filterwarnings("default")
def test_verbose_relays_what_libraries_say(capsys: Captured) -> None:
    Speech(progress="none", verbose=True).run(talkative, lines)

    assert capsys.readouterr().err.splitlines() == [
        "a log line",
        "Warning: a warning",
        "UserWarning: a library's warning",
        "Warning: our warning",
        "rasterio: a library's log line",
    ]


@pytest.mark.filterwarnings("default")
def test_quiet_says_nothing(capsys: Captured) -> None:
    Speech(quiet=True).run(talkative, lines)

    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("default")
def test_quiet_json_is_the_document_alone(capsys: Captured) -> None:
    Speech(quiet=True, as_json=True).run(talkative, lines)

    assert capsys.readouterr() == ('{"tiles": 2}\n', "")


@pytest.mark.filterwarnings("default")
def test_json_progress_is_one_object_a_line(capsys: Captured) -> None:
    Speech(progress="json", as_json=True).run(talkative, lines)

    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"tiles": 2}
    assert events(captured.err) == [
        {"event": "progress", "stage": "map", "done": 0, "total": 2},
        {"event": "log", "level": "info", "message": "a log line"},
        {"event": "log", "level": "warning", "message": "a warning"},
        {"event": "log", "level": "warning", "message": "our warning"},
        {"event": "progress", "stage": "map", "done": 2, "total": 2},
        {"event": "result", "tiles": 2},
    ]


def test_events_are_few_but_the_last_is_never_left_out(capsys: Captured) -> None:
    monitor = EventMonitor()

    monitor.stage("adapt", 10_000)
    for done in range(1, 10_001):
        monitor.update(done)

    said = events(capsys.readouterr().err)
    assert len(said) < 100
    assert said[-1]["done"] == 10_000


@pytest.mark.filterwarnings("default")
def test_a_forced_bar_names_the_stage_and_leaves_stdout_alone(capsys: Captured) -> None:
    Speech(progress="bar").run(talkative, lines)

    captured = capsys.readouterr()
    assert captured.out == "2 tiles\n"
    assert "Warning: a warning" in captured.err
    assert "map" in captured.err
    assert "2/2" in captured.err


def test_the_newest_message_stands_beside_the_bar(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(monitor: Monitor) -> dict[str, int]:
        monitor.log("said too early for any bar")
        monitor.stage("train", 2)
        monitor.log("loss 0.9")
        monitor.log("loss 0.4")
        monitor.update(2)
        return {"tiles": 2}

    monkeypatch.setenv("COLUMNS", "160")
    Speech(progress="bar").run(job, lines)

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.rstrip().endswith("loss 0.4")


@pytest.mark.filterwarnings("default")
def test_a_stage_that_comes_again_has_its_bar_again(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(monitor: Monitor) -> dict[str, int]:
        for name in ("a.tif", "b.tif"):
            monitor.log(f"scene {name}")
            for stage in ("map", "finish"):
                monitor.stage(stage, 7)
                monitor.update(7)
        return {"tiles": 2}

    monkeypatch.setenv("COLUMNS", "160")
    Speech(progress="bar").run(job, lines)

    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("scene")] == ["scene a.tif", "scene b.tif"]
    assert [line.split()[0] for line in said if "7/7" in line] == ["map", "finish"]


def test_a_failing_job_leaves_logging_and_warnings_as_they_were() -> None:
    before = (list(logging.getLogger().handlers), warnings.showwarning, list(warnings.filters))

    with pytest.raises(ZeroDivisionError):
        Speech(progress="none").run(lambda _: {"x": 1 // 0}, lines)

    after = (list(logging.getLogger().handlers), warnings.showwarning, list(warnings.filters))
    assert after == before
