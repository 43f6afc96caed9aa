"""One look at the installation and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from earthgate_geo.errors import EarthgateError

State = Literal["ok", "absent", "warn", "broken"]
REINSTALL = "install earthgate-geo again in a fresh virtual environment"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    """What was looked at."""

    state: State
    """``absent`` is an optional part that is not installed; ``warn`` goes, but not well."""

    found: str
    """What was found, one line."""

    fix: str
    """What to do where it is not ``ok``, an imperative clause."""


@dataclass(frozen=True)
class Doubt:
    """A finding that is neither good nor an error."""

    found: str
    fix: str
    state: State = "warn"


def look(name: str, at: Callable[[], str | Doubt], fix: str) -> Check:
    """Return what a look finds; whatever it raises is broken and does not stop the others."""
    try:
        found = at()
    except EarthgateError as error:  # its own fix is one for a run
        found = f"{error.found}; expected {error.expected}" if error.expected else error.found
        return Check(name=name, state="broken", found=found, fix=fix)
    except Exception as error:  # noqa: BLE001  # libraries that are broken raise any kind
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name=name, state="broken", found=told, fix=fix)
    if isinstance(found, Doubt):
        return Check(name=name, state=found.state, found=found.found, fix=found.fix)
    return Check(name=name, state="ok", found=found, fix=fix)
