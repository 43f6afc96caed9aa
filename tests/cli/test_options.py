from pathlib import Path

import pytest

from earthgate_cli import options
from earthgate_cli.main import cli


def test_the_model_folder_is_the_one_that_the_environment_names(monkeypatch) -> None:
    monkeypatch.setenv("EARTHGATE_MODELS", "chosen")

    assert options.model_folder() == Path("chosen")


@pytest.mark.parametrize(
    ("platform", "variable", "parts"),
    [
        ("win32", "LOCALAPPDATA", ("data", "earthgate", "models")),
        ("linux", "XDG_DATA_HOME", ("data", "earthgate", "models")),
    ],
)
def test_without_one_it_lies_where_the_platform_keeps_data(
    monkeypatch, platform, variable, parts
) -> None:
    monkeypatch.delenv("EARTHGATE_MODELS", raising=False)
    monkeypatch.setenv(variable, "data")
    monkeypatch.setattr("sys.platform", platform)

    assert options.model_folder() == Path(*parts)


def test_on_a_mac_it_lies_in_the_library(monkeypatch) -> None:
    monkeypatch.delenv("EARTHGATE_MODELS", raising=False)
    monkeypatch.setattr("sys.platform", "darwin")

    assert options.model_folder().parts[-4:] == (
        *("Library", "Application Support"),
        *("earthgate", "models"),
    )


@pytest.mark.parametrize("command", ["adapt", "map"])
def test_the_options_are_the_ones_that_do_something(command) -> None:
    common = (
        "--src --model --bands --nodata --gsd --assume-crs --device --dst --vector --confidence "
        "--probs --co --overwrite --dry-run --progress --json --quiet --verbose --watch-stdin"
    )
    own = (
        "--report --out --labels --label-field --label-class --label-map --minutes --steps --seed "
        "--policy"
    )
    wanted = set(common.split()) | (set(own.split()) if command == "adapt" else set())
    found = {name for option in cli.commands[command].params for name in option.opts}
    assert {name for name in found if name.startswith("--")} == wanted
