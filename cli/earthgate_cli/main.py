"""Assemble the commands; turn every error into one line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise

import click

from earthgate_cli import output
from earthgate_cli.commands import (
    adapt,
    bench,
    doctor,
    evaluate,
    export,
    info,
    models,
    styles,
    train,
    vectorize,
)
from earthgate_cli.commands import map as map_scene
from earthgate_geo import __version__
from earthgate_geo.errors import CancelledError, EarthgateError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="earthgate", message="%(prog)s %(version)s")
def cli() -> None:
    """Adapt a frozen vision model to an unseen scene and map it."""


for _module in (
    *(adapt, map_scene, train, styles, vectorize, evaluate),
    *(bench, export, info, models, doctor),
):
    cli.add_command(_module.command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Arguments after the program's name; the process's own without.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage or bad input, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(arguments, prog_name="earthgate", standalone_mode=False, obj=arguments)
        sys.stdout.flush()  # so that a closed pipe shows here and not at exit
    except BrokenPipeError:
        return _after_closed_pipe()
    except KeyboardInterrupt:
        return _report(CancelledError(), arguments)
    except Exception as error:  # noqa: BLE001  # the boundary: users see no traceback
        return _report(error, arguments)
    return code if isinstance(code, int) else 0


def _report(error: Exception, arguments: Sequence[str]) -> int:
    """Say what went wrong, in the way that the arguments ask for, and return the exit code."""
    if isinstance(error, click.Abort):
        error = CancelledError()
    code, message = _judged(error)
    if {"-v", "--verbose"} & set(arguments):
        traceback.print_exception(error)
    problems = list(getattr(error, "__notes__", ()))  # e.g. a line per file
    if "--progress=json" in arguments or ("--progress", "json") in pairwise(arguments):
        more = {"problems": problems} if problems else {}
        output.say_event("error", code=code, message=message, **more)
    elif isinstance(error, click.ClickException):
        error.show()
    else:
        click.echo("\n".join([f"Error: {message}", *problems]), err=True)
    return code


def _judged(error: Exception) -> tuple[int, str]:
    if isinstance(error, EarthgateError):
        return error.exit_code, _one_line(str(error))
    if isinstance(error, click.ClickException):
        return error.exit_code, _one_line(error.format_message())
    told = f"unexpected {type(error).__name__}: {_one_line(str(error))}".rstrip(": ")
    return 1, f"{told}; run again with -v to see the traceback"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _after_closed_pipe() -> int:
    # Python would flush stdout again at exit and complain then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
