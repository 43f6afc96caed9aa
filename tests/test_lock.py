import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINES = (ROOT / ".ci" / "constraints.txt").read_text("utf-8").splitlines()
LOCKED = [line for line in LINES if not line.startswith("#")]


def test_the_lock_of_ci_names_published_versions_and_no_files_or_hosts():
    assert [line for line in LOCKED if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert len({canonicalize_name(line.split("==")[0]) for line in LOCKED}) == len(LOCKED)


def test_the_lock_of_ci_fits_what_the_project_asks_for():
    locked = {canonicalize_name(name): found for name, found in (x.split("==") for x in LOCKED)}
    extras = PROJECT["optional-dependencies"].values()
    asked = map(
        Requirement, [*PROJECT["dependencies"], *(line for each in extras for line in each)]
    )

    # After a change on purpose: .ci/lock
    assert [
        str(each)
        for each in asked
        if each.name != PROJECT["name"]
        and not each.specifier.contains(locked.get(canonicalize_name(each.name), "0.dev0"))
    ] == []
