import json
import os
import time
from collections.abc import Callable, Iterator

import click
import pytest

from earthgate_cli import options, output
from earthgate_cli.main import cli, main
from earthgate_geo import __version__
from earthgate_geo.errors import InputError

COMMANDS = [
    *("adapt", "bench", "doctor", "evaluate", "export", "info", "map", "models", "styles", "train"),
    "vectorize",
]
CALLS = [
    [name, *below]
    for name, command in cli.commands.items()
    for below in ([[each] for each in getattr(command, "commands", ())] or [[]])
]


@pytest.fixture
def job() -> Iterator[Callable[[Callable[[], None]], list[str]]]:
    """Make a command of a function; give the arguments that call it."""

    def make(action: Callable[[], None]) -> list[str]:
        @click.command("job")
        @options.job_speech
        def command(*, speech: output.Speech) -> None:
            action()

        cli.add_command(command)
        return ["job"]

    yield make
    cli.commands.pop("job", None)


def fail_on_input() -> None:
    raise InputError(found="7 bands", expected="3", fix="Pass --bands")


def fail_unexpectedly() -> None:
    raise RuntimeError("two\nlines")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_commands_are_the_ones_of_the_contract() -> None:
    assert sorted(cli.commands) == COMMANDS


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_command_has_help_and_json(call: list[str], capsys) -> None:
    assert main([*call, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_help_loads_neither_torch_nor_rasterio(start) -> None:
    code = (
        "import sys; from earthgate_cli.main import main; main(['--help']);"
        "sys.exit(bool({'torch', 'torchgeo', 'rasterio', 'geopandas'} & set(sys.modules)))"
    )

    assert start(code).wait(timeout=30) == 0


def test_a_deliberate_error_is_one_line_with_its_code(job, capsys) -> None:
    code = main(job(fail_on_input))

    assert code == 2
    assert capsys.readouterr() == ("", "Error: 7 bands; expected 3. Pass --bands.\n")


def test_an_unexpected_error_is_one_line_without_traceback(job, capsys) -> None:
    code = main(job(fail_unexpectedly))

    assert code == 1
    assert capsys.readouterr().err == (
        "Error: unexpected RuntimeError: two lines; run again with -v to see the traceback\n"
    )


def test_verbose_shows_the_traceback_before_the_line(job, capsys) -> None:
    code = main([*job(fail_unexpectedly), "-v"])

    lines = capsys.readouterr().err.splitlines()
    assert code == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("Error: unexpected RuntimeError")


def test_an_interrupt_exits_with_130(job, capsys) -> None:
    code = main(job(interrupt))

    assert code == 130
    assert capsys.readouterr().err == (
        "Error: interrupted. Run the same command again to start over.\n"
    )


@pytest.mark.parametrize(
    ("action", "code", "message"),
    [
        (fail_on_input, 2, "7 bands; expected 3. Pass --bands."),
        (interrupt, 130, "interrupted. Run the same command again to start over."),
        (
            fail_unexpectedly,
            1,
            "unexpected RuntimeError: two lines; run again with -v to see the traceback",
        ),
    ],
)
def test_with_json_progress_an_error_is_the_last_event(job, capsys, action, code, message) -> None:
    assert main([*job(action), "--progress", "json"]) == code
    assert json.loads(capsys.readouterr().err) == {
        "event": "error",
        "code": code,
        "message": message,
    }


def test_an_unknown_option_is_a_usage_error_in_both_forms(job, capsys) -> None:
    arguments = [*job(fail_on_input), "--resume"]

    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("Error: No such option '--resume'.\n")
    assert main([*arguments, "--progress=json"]) == 2
    assert json.loads(capsys.readouterr().err)["message"] == "No such option '--resume'."


def test_a_python_runs_the_program_as_its_script_does(start) -> None:
    said = start("earthgate_cli", "--version", option="-m")
    failed = start("earthgate_cli", "unknown", option="-m")

    assert said.communicate(timeout=30)[0].split() == [b"earthgate", __version__.encode()]
    assert (said.returncode, failed.wait(timeout=30)) == (0, 2)


def test_a_closed_pipe_on_stdout_is_quiet(start) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    child = start(
        "import sys; from earthgate_cli.main import main; sys.exit(main(['--help']))",
        stdout=writer,
    )
    _, errors = child.communicate(timeout=30)
    os.close(writer)

    assert (child.returncode, errors) == (1, b"")


ENDED_S = 2  # what callers rely on

# As a shell starts it in the background: with SIGINT ignored.
WAITING = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
import click
from earthgate_cli import options
from earthgate_cli.main import cli, main
@click.command("job")
@options.job_speech
def command(*, speech):
    threading.Timer(0.1, print, ["ready"], {"flush": True}).start()  # in the first step
    seconds, step_s = map(float, sys.argv[1:])
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        time.sleep(step_s)
cli.add_command(command)
sys.exit(main(["job", "--watch-stdin"]))
"""


def test_the_engine_ends_when_its_stdin_closes(start) -> None:
    child = start(WAITING, "60", "0.01")
    assert child.stdout.readline().strip() == b"ready"

    _, errors = child.communicate(timeout=30)

    assert child.returncode == 130
    assert errors.startswith(b"Error: interrupted.")


def test_the_engine_ends_in_time_even_in_a_long_step(start) -> None:
    child = start(WAITING, "60", "60")
    assert child.stdout.readline().strip() == b"ready"

    closed_s = time.monotonic()
    _, errors = child.communicate(timeout=30)

    assert time.monotonic() - closed_s < ENDED_S
    assert (child.returncode, errors) == (130, b"")


def test_the_engine_ends_well_while_its_stdin_stays_open(start) -> None:
    child = start(WAITING, "0.2", "0.01")

    assert child.wait(timeout=30) == 0
    assert child.stderr.read() == b""
