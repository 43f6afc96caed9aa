from pathlib import Path

import click
import pytest

from earthgate_cli import options
from earthgate_cli.main import cli
from earthgate_geo.request import ENGINES, PRECISIONS, RUNTIMES, VECTOR_FORMATS


def test_folders_are_the_ones_that_the_environment_names(monkeypatch) -> None:
    monkeypatch.setenv("EARTHGATE_MODELS", "chosen")
    monkeypatch.setenv("EARTHGATE_CACHE", "other")

    assert (options.model_folder(), options.cache_folder()) == (Path("chosen"), Path("other"))


@pytest.mark.parametrize(
    ("platform", "data", "cache"),
    [
        ("win32", "LOCALAPPDATA", "LOCALAPPDATA"),
        ("linux", "XDG_DATA_HOME", "XDG_CACHE_HOME"),
    ],
)
def test_without_one_they_lie_where_the_platform_keeps_such(
    monkeypatch, platform, data, cache
) -> None:
    for name in ("EARTHGATE_MODELS", "EARTHGATE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", platform)

    monkeypatch.setenv(data, "data")
    assert options.model_folder() == Path("data/earthgate/models")
    monkeypatch.setenv(cache, "cache")
    assert options.cache_folder() == Path("cache/earthgate/cache")


def test_on_a_mac_they_lie_in_the_library(monkeypatch) -> None:
    for name in ("EARTHGATE_MODELS", "EARTHGATE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "darwin")

    assert options.model_folder().parts[-4:] == (
        *("Library", "Application Support"),
        *("earthgate", "models"),
    )
    assert options.cache_folder().parts[-4:] == ("Library", "Caches", "earthgate", "cache")


def choices(command: str, name: str) -> tuple[str, ...]:
    (found,) = [each for each in cli.commands[command].params if each.name == name]
    return tuple(found.type.choices)


@pytest.mark.parametrize("command", ["adapt", "map"])
def test_the_choices_are_the_ones_of_a_request(command) -> None:
    assert choices(command, "runtime") == RUNTIMES
    assert choices(command, "precision") == PRECISIONS
    assert choices(command, "engine") == ENGINES
    assert choices(command, "vector_format") == VECTOR_FORMATS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("500M", 500_000_000),
        ("1.5GiB", 1_610_612_736),
        ("64k", 64_000),
        ("12345678", 12_345_678),
    ],
)
def test_sizes_are_bytes(text, size) -> None:
    assert options.size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "-1GB", "GB", "2GX", "1e9", "2GBs"])
def test_what_is_no_size_is_refused(text) -> None:
    with pytest.raises(click.BadParameter) as found:
        options.size_bytes(text)

    assert found.value.message == f"{text!r} is not like 2GB, 500MB or 1.5GiB."


@pytest.mark.parametrize("command", ["adapt", "map"])
def test_the_options_are_the_ones_that_do_something(command) -> None:
    common = (
        "--src --asset --model --bands --nodata --gsd --assume-crs --dsm --dtm --device --dst "
        "--vector --confidence --probs --stac --aoi --co --out-dir --name --vector-format "
        "--min-area --simplify --cut-at-tiles --memory --resume --runtime --precision --engine "
        "--scheduler --workers --overwrite --dry-run --progress --json --quiet --verbose "
        "--watch-stdin"
    )
    own = (
        "--report --out --labels --label-field --label-class --label-map --minutes --steps --seed "
        "--policy"
    )
    wanted = set(common.split()) | set(own.split() if command == "adapt" else ["--retry-failed"])
    found = {name for option in cli.commands[command].params for name in option.opts}
    assert {name for name in found if name.startswith("--")} == wanted
