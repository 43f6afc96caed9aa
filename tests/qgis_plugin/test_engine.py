import os
import sys
import textwrap
import time
import tracemalloc

import pytest

from earthgate_qgis.engine import (
    EngineCancelled,
    EngineError,
    clean_environment,
    find_engine,
    query_engine,
    run_engine,
    understood,
)
from earthgate_qgis.process import locked

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
ADVICE = "look at the log, and press Test in Settings > Options > earthgate."
SAY = """
    import json, os, signal, subprocess, sys, threading, time

    def say(event, **facts):
        print(json.dumps({"event": event, **facts}), file=sys.stderr, flush=True)

    def sleeper():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        say("log", message=str(child.pid))
"""


class Heard:
    def __init__(self, cancel_at=None):
        self.progress, self.log, self.cancel_at = [], [], cancel_at
        self.cancelled_s = None

    def is_cancelled(self):
        if self.cancelled_s is None and self.cancel_at in self.log:
            self.cancelled_s = time.monotonic()
        return self.cancelled_s is not None


def engine(program):
    return [sys.executable, "-c", textwrap.dedent(SAY) + textwrap.dedent(program)]


def run(program, heard=None, arguments=("map",)):
    heard = heard or Heard()
    return run_engine(
        arguments,
        command=engine(program),
        on_progress=lambda *step: heard.progress.append(step),
        on_log=heard.log.append,
        is_cancelled=heard.is_cancelled,
    )


def failure(program, heard=None):
    with pytest.raises(EngineError) as caught:
        run(program, heard)
    return str(caught.value)


def executable(path):
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_run_gives_progress_log_and_result():
    heard = Heard()

    document = run(
        """
        say("progress", stage="map", done=1, total=2)
        say("log", level="info", message="a tile")
        say("log", level="warning", message="a hole")
        print("mapped")
        say("result", outputs={"map": "m.tif"}, asked=sys.argv[1:])
        """,
        heard,
    )

    assert document == {
        "outputs": {"map": "m.tif"},
        "asked": ["map", "--progress", "json", "--watch-stdin"],
    }
    assert heard.progress == [("map", 1, 2)]
    assert sorted(heard.log) == ["Warning: a hole", "a tile", "mapped"]


def test_what_the_engine_says_is_the_error():
    heard = Heard()
    program = 'say("error", code=2, message="no bands.", problems=["a.tif"]); sys.exit(2)'

    assert failure(program, heard) == "no bands."
    assert heard.log == ["a.tif"]


@pytest.mark.parametrize(
    "garbage",
    [
        *('"plain"', '"[1]"', '"{"', '"\\xff"', '"[" * 200_000'),
        *("""'{"event": "progress", "stage": "map"}'""", """'{"event": "new"}'"""),
    ],
)
def test_lines_that_are_no_events_go_to_the_log(garbage):
    heard = Heard()

    document = run(f"print({garbage}, file=sys.stderr, flush=True); say('result', n=1)", heard)

    assert document == {"n": 1}
    assert heard.progress == []
    assert len(heard.log) == 1


def test_an_end_without_a_result_is_an_error():
    assert failure("pass") == f"The engine ended without a result; {ADVICE}"


def test_a_crash_is_told_with_the_last_words():
    told = failure('sys.exit("torch is broken")')

    assert told == f"The engine stopped with exit code 1; {ADVICE} It last said: torch is broken"


@posix
def test_a_kill_by_the_system_is_told_as_a_lack_of_memory():
    assert failure("os.kill(os.getpid(), signal.SIGKILL)") == (
        "The engine was killed by the system, which happens when memory runs out; close other "
        "programs, or map a smaller part of the scene."
    )


def test_a_crash_after_the_result_does_not_lose_it():
    heard = Heard()

    assert run('say("result", n=1); os._exit(3)', heard) == {"n": 1}
    assert heard.log == ["Warning: the engine did not end in order after its result."]


def test_an_error_after_a_result_is_an_error():
    assert failure('say("result", n=1); say("error", code=1, message="no.")') == "no."


def test_an_engine_that_hangs_after_its_result_is_ended(assert_gone):
    heard = Heard()

    document = run('say("log", message=str(os.getpid())); say("result"); time.sleep(60)', heard)

    assert document == {}
    assert_gone(int(heard.log[0]))


@posix
def test_a_pipe_that_stays_open_after_the_end_does_not_hold_up(assert_gone):
    heard = Heard()

    assert failure("sleeper()", heard) == f"The engine ended without a result; {ADVICE}"
    assert_gone(int(heard.log[0]))


def test_an_engine_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EngineError) as caught:
        query_engine(["models"], command=[str(tmp_path / "earthgate")])

    assert str(caught.value) == (
        f"{tmp_path / 'earthgate'} cannot be started (No such file or directory); choose an "
        "earthgate executable, or a Python that has it, in Settings > Options > earthgate."
    )


def test_a_python_without_the_engine_is_named():
    told = failure('sys.exit("/usr/bin/python3: No module named earthgate_cli")')

    assert told == (
        f"{sys.executable} does not have earthgate; choose another one in Settings > Options > "
        "earthgate."
    )


@pytest.mark.parametrize("line", [b"x" * 999_999 + b"\\n", b"x" * 1_000_000])
def test_two_hundred_megabytes_of_output_fill_neither_memory_nor_log(line):
    heard = Heard()
    program = f"""
        for _ in range(200): sys.stdout.buffer.write({line[:1]!r} * 999_999 + {line[-1:]!r})
        print(flush=True)
        say("result", n=1)
    """
    tracemalloc.start()
    try:
        document = run(program, heard)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert document == {"n": 1}
    assert peak < 120_000_000
    assert sum(map(len, heard.log)) < 200_000


@pytest.mark.parametrize(
    ("program", "most"),
    [
        ('print("x\\n" * 5000, flush=True)', 200),
        ('print(\'{"event": "log", "message": "x"}\\n\' * 5000, flush=True)', 2000),
    ],
)
def test_many_short_lines_leave_one_remark_in_the_log(program, most):
    heard = Heard()

    run(f'{program}; say("result")', heard)

    assert len(heard.log) == most + 1
    assert heard.log[-1] == "(further lines are left out)"


def test_a_long_message_is_cut():
    heard = Heard()

    run('say("log", message="x" * 3_000_000); say("result")', heard)

    assert heard.log == ["x" * 500]


@pytest.mark.parametrize("facts", ["message=None", "message=None, problems=3"])
def test_an_error_that_says_nothing_is_a_crash(facts):
    told = failure(f'say("error", code=2, {facts}); sys.exit(2)')

    assert told == f"The engine stopped with exit code 2; {ADVICE}"


@posix
@pytest.mark.parametrize(
    "program",
    [
        pytest.param('sys.stdin.read(); say("error", message="interrupted.")', id="polite"),
        pytest.param("time.sleep(60)", id="deaf"),
        pytest.param(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", id="stubborn"
        ),
        pytest.param("[print('x' * 1000, flush=True) for _ in iter(int, 1)]", id="chatty"),
    ],
)
def test_cancelling_leaves_no_process_after_two_seconds(program, assert_gone):
    heard = Heard(cancel_at="go")

    with pytest.raises(EngineCancelled):
        run(
            f'say("log", message=str(os.getpid())); sleeper(); say("log", message="go"); {program}',
            heard,
        )

    assert time.monotonic() - heard.cancelled_s < 2
    for pid in heard.log[:2]:
        assert_gone(int(pid))


@posix
def test_cancelling_lets_the_engine_clean_up(tmp_path):
    program = f'say("log", message="go"); sys.stdin.read(); open({str(tmp_path / "swept")!r}, "w")'

    with pytest.raises(EngineCancelled):
        run(program, Heard(cancel_at="go"))

    assert (tmp_path / "swept").exists()


def test_cancelling_removes_what_the_engine_keeps_to_go_on(tmp_path):
    foreign = tmp_path / ".other.tif.earthgate"
    for folder in (tmp_path / ".m.tif.earthgate", tmp_path / ".m_conf.tif.earthgate", foreign):
        (folder / "strips").mkdir(parents=True)

    with pytest.raises(EngineCancelled):
        run(
            'say("log", message="go"); time.sleep(60)',
            Heard(cancel_at="go"),
            ["map", "--dst", str(tmp_path / "m.tif"), "--confidence"],
        )

    assert list(tmp_path.iterdir()) == [foreign]


@pytest.mark.parametrize("name", ["m.tif", "."])
def test_cancelling_is_no_error_whatever_lies_beside_the_output(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".m.tif.earthgate" / "lock").mkdir(parents=True)  # not to be opened as a file

    with pytest.raises(EngineCancelled):
        run('say("log", message="go"); time.sleep(60)', Heard("go"), ["map", "--dst", name])


def test_cancelling_leaves_alone_what_another_run_holds(tmp_path):
    held = tmp_path / ".m.tif.earthgate"
    held.mkdir()

    with locked(held / "lock") as is_ours, pytest.raises(EngineCancelled):
        run(
            'say("log", message="go"); time.sleep(60)',
            Heard("go"),
            ["map", "--dst", str(tmp_path / "m.tif")],
        )

    assert is_ours
    assert (held / "lock").exists()


@posix
def test_an_error_in_a_callback_ends_the_engine(assert_gone):
    pids = []

    def stumble(message):
        pids.append(int(message))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_engine(
            [],
            command=engine('say("log", message=str(os.getpid())); time.sleep(60)'),
            on_progress=lambda *_: None,
            on_log=stumble,
            is_cancelled=lambda: False,
        )

    assert_gone(pids[0])


def test_a_query_gives_the_document_whatever_the_exit_code():
    program = 'print("a warning", file=sys.stderr); print(\'{"healthy": false}\'); sys.exit(1)'

    assert query_engine(["doctor", "--json"], command=engine(program)) == {"healthy": False}


def test_a_query_without_json_is_told_with_the_last_words():
    with pytest.raises(EngineError) as caught:
        query_engine([], command=engine('print("hello"); sys.exit("it broke")'))

    told = f"The engine stopped with exit code 1; {ADVICE} It last said: it broke"
    assert str(caught.value) == told


def test_a_query_that_takes_too_long_is_ended():
    with pytest.raises(EngineError, match=r"^The engine did not answer within 0\.2 s; try again"):
        query_engine([], command=engine("sleeper(); time.sleep(60)"), timeout_s=0.2)


def test_a_query_that_is_cancelled_is_ended():
    began = time.monotonic()

    with pytest.raises(EngineCancelled):
        query_engine([], command=engine("time.sleep(60)"), is_cancelled=lambda: True)

    assert time.monotonic() - began < 2


def test_a_document_of_another_version_is_told_in_a_sentence():
    with pytest.raises(EngineError) as caught, understood():
        {}["classes"]

    assert str(caught.value) == (
        "The engine's answer does not fit this plugin (KeyError: 'classes'); install the engine "
        "of the plugin's version in Settings > Options > earthgate."
    )


def test_the_environment_is_cleaned_of_qgis_and_keeps_the_network():
    foreign = [
        *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PROJ_LIB", "GDAL_DATA", "QGIS_PREFIX_PATH"),
        *("QT_PLUGIN_PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PIP_USER", "PIP_TARGET"),
    ]
    kept = ["PATH", "HOME", "HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"]
    kept += ["PIP_INDEX_URL", "EARTHGATE_MODELS", "OMP_NUM_THREADS"]

    cleaned = clean_environment(dict.fromkeys([*foreign, *kept], "x"))

    assert {key for key, value in cleaned.items() if value == "x"} == set(kept)


def test_the_engine_gets_the_clean_environment(monkeypatch):
    monkeypatch.setenv("GDAL_DATA", "of-qgis")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")

    document = run('say("result", seen=[os.environ.get(k) for k in ("GDAL_DATA", "HTTPS_PROXY")])')

    assert document == {"seen": [None, "http://proxy"]}


@posix
def test_the_variable_beats_the_setting_and_both_beat_the_path(tmp_path):
    chosen = executable(tmp_path / "chosen")
    python = executable(tmp_path / "python3.12")
    on_path = executable(tmp_path / "earthgate")
    environ = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}

    assert find_engine(str(python), {**environ, "EARTHGATE_EXECUTABLE": str(chosen)}) == [
        str(chosen)
    ]
    assert find_engine(f" {python} ", environ) == [str(python), "-m", "earthgate_cli"]
    assert find_engine("", environ) == [str(on_path)]
    assert find_engine(f'"{python}"', {**environ, "EARTHGATE_EXECUTABLE": " "})[0] == str(python)


def test_a_choice_that_is_no_program_is_refused(tmp_path):
    with pytest.raises(EngineError) as caught:
        find_engine(str(tmp_path), os.environ)

    assert str(caught.value) == (
        f"{tmp_path} is not a program on this machine; choose an earthgate executable, or a "
        "Python that has it, in Settings > Options > earthgate or as EARTHGATE_EXECUTABLE."
    )


def test_without_any_engine_the_way_to_one_is_told(tmp_path):
    places = dict.fromkeys(["PATH", "XDG_CACHE_HOME", "LOCALAPPDATA"], str(tmp_path))

    with pytest.raises(EngineError) as caught:
        find_engine("", places)

    assert str(caught.value) == (
        "The mapping engine is not installed; open Settings > Options > earthgate and press "
        "Install, or choose an earthgate executable or a Python that has it."
    )
