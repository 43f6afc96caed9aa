"""Many results as one: ours by row and setting, with mean and spread over the seeds. No torch."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthgate_geo.bench.settings import SETTINGS, Setting, find_setting
from earthgate_geo.bench.summary_page import CHAPTERS, chapter_of, markdown, picture
from earthgate_geo.errors import DataError, InputError
from earthgate_geo.recipe import Recipe
from earthgate_geo.staging import staged

Document = dict[str, Any]
Key = tuple[str, str, str, str]

_PER_RUN = {"policy", "seed", "checkpoint_every"}
"""What of a recipe two runs of a row may differ in: a row's name or its spread tells it."""

_OF_TARGET = ("target_batch", "dacs")


def summarise_bench(folder: Path, *, out: Path | None = None, overwrite: bool = False) -> Document:
    """Put the results of many runs together and beside the published figures.

    Runs of one policy, backbone and head are a row. Those directly in ``folder`` must share their
    recipe: every number is the same in all of them, or as the setting of each has it. Those of a
    folder inside it are rows under that folder's name, which stands for whatever recipes they
    have from setting to setting. The runs of one setting in a row are seeds of one recipe.

    Args:
        folder: Holds what ``earthgate bench --out`` wrote.
        out: Folder for ``summary.md`` and its pictures; without, nothing is written.
        overwrite: Whether older ones may be replaced.

    Returns:
        The result document of ``earthgate bench --summary``: ``rows``, each with ``name``,
        ``named`` (after a folder), ``policy``, ``backbone``, ``head``, ``recipe`` (what differs
        from the settings' own, every value of it) and ``settings``; ``notes`` by sentence with
        the settings that they are about; ``outputs``.

    Raises:
        InputError: There is no result, or a row mixes what is not comparable.
        DataError: A file is not a result.
        OutputError: A file to write exists or cannot be written.
    """
    rows = _rows(_runs(folder))
    document: Document = {
        "rows": [_row(name, row) for name, row in rows],
        "notes": _notes(run for _, row in rows for run in row),
    }
    ran = {name for row in document["rows"] for name in row["settings"]}
    chapters = [chapter for chapter in CHAPTERS if ran & {s.name for s in chapter_of(chapter)}]
    outputs = {} if out is None else {"page": out / "summary.md"}
    if out is not None:
        outputs |= {chapter: out / f"summary_{chapter}.svg" for chapter in chapters}
    document["outputs"] = {role: str(path) for role, path in outputs.items()}
    with staged(outputs, overwrite=overwrite, inputs=[]) as built:
        for role, path in built.items():
            made = markdown(document) if role == "page" else picture(document, role)
            path.write_text(made, encoding="utf-8")
    return document


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a summary needs of a result."""

    path: Path
    folder: str
    setting: Setting
    seed: int
    policy: str
    backbone: str
    head: str
    model: str
    weights: str
    recipe: Mapping[str, Any]
    scores: Mapping[str, float | None]
    seconds: float
    images: int
    notes: Sequence[str]

    @property
    def key(self) -> Key:
        return self.folder, self.policy, self.backbone, self.head

    @property
    def asked(self) -> list[str]:
        """Names of the numbers that are not as the setting has them."""
        usual = _flat(self.setting.recipe)
        return [f for f in {**usual, **self.recipe} if self.recipe.get(f) != usual.get(f)]

    def has(self, field: str) -> bool:
        return self.setting.target is not None or field.split(maxsplit=1)[0] not in _OF_TARGET


def _runs(folder: Path) -> list[_Run]:
    paths = sorted(folder.glob("*.json")) + sorted(folder.glob("*/*.json"))
    if not paths:
        raise InputError(
            found=f"no result in {folder}",
            expected="what `earthgate bench SETTING --out` wrote, there or in folders inside",
        )
    return [_read(path, "" if path.parent == folder else path.parent.name) for path in paths]


def _read(path: Path, folder: str) -> _Run:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = document["model"]
        return _Run(
            path=path,
            folder=folder,
            setting=find_setting(document["setting"]["name"]),
            seed=document["seed"],
            policy=document["policy"],
            backbone=model["backbone"],
            head=model["head"],
            model=model["name"],
            weights=_weights(model),
            recipe=_flat(Recipe.from_json(document["recipe"])),
            scores={key: document[f"miou_{key}"] for key in ("last", "best_on_test", "before")},
            seconds=document["seconds"]["train"],
            images=document["images"]["test"],
            notes=document["notes"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            found=f"{path} is no result of a benchmark",
            expected="a document that `earthgate bench --out` wrote",
        ) from error


def _weights(model: Mapping[str, Any]) -> str:
    if model["digest"] is not None:
        return f"sha256 {model['digest'][:8]}"
    return "random weights" if model["weights"] is None else "published weights"


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the numbers of a recipe by name, those of its parts as ``part name``."""
    flat: dict[str, Any] = {}
    for key, value in recipe.to_json().items():
        if isinstance(value, dict):
            flat |= {f"{key} {name}": entry for name, entry in value.items()}
        elif key not in _PER_RUN:
            flat[key] = value
    return flat


def _rows(runs: Sequence[_Run]) -> list[tuple[str, list[_Run]]]:
    keys = sorted({run.key for run in runs})
    differ = [len(set(column)) > 1 for column in zip(*keys, strict=True)]
    rows = []
    for key in keys:
        folder, policy, *_ = key
        telling = (part for part, tells in zip(key, differ, strict=True) if part and tells)
        row = [run for run in runs if run.key == key]
        _check_row(row)
        rows.append((", ".join(dict.fromkeys([folder or policy, *telling])), row))
    return rows


def _check_row(row: Sequence[_Run]) -> None:
    cells = _cells(row).values()
    for cell in cells:
        first, by_seed = cell[0], {run.seed: run for run in reversed(cell)}
        for run in cell:
            if by_seed[run.seed] is not run:
                raise _incomparable(by_seed[run.seed], run, f"seed {run.seed} twice")
            if run.images != first.images:
                raise _incomparable(first, run, f"{first.images} and {run.images} test images")
            starts = [f"{entry.model} ({entry.weights})" for entry in (first, run)]
            if starts[0] != starts[1] and not run.folder:
                raise _incomparable(first, run, f"started from {' and '.join(starts)}")
    for group in cells if row[0].folder else [row]:
        _check_recipe(group)


def _check_recipe(runs: Sequence[_Run]) -> None:
    for field, values in _asked(runs).items():
        if len(values) > 1:
            first = next(run for run in runs if run.recipe.get(field) == values[0])
            second = next(run for run in runs if run.recipe.get(field) == values[1])
            raise _incomparable(first, second, f"{field} {values[0]} and {values[1]}")


def _incomparable(first: _Run, second: _Run, what: str) -> InputError:
    return InputError(
        found=f"{first.path} and {second.path} in one row: {what}",
        expected="runs that differ in setting and seed alone",
        fix="Put the runs of each row in a folder of their own inside, whose name the row takes",
    )


def _asked(runs: Sequence[_Run]) -> dict[str, list[Any]]:
    """Return what is not as the settings have it everywhere, with all values that it takes."""
    asked = dict.fromkeys(field for run in runs for field in run.asked)
    return {
        field: list(dict.fromkeys(run.recipe.get(field) for run in runs if run.has(field)))
        for field in asked
    }


def _cells(row: Iterable[_Run]) -> dict[str, list[_Run]]:
    """Return the runs by setting, in the order of the settings."""
    found = [(name, [run for run in row if run.setting.name == name]) for name in SETTINGS]
    return {name: runs for name, runs in found if runs}


def _row(name: str, runs: Sequence[_Run]) -> Document:
    folder, policy, backbone, head = runs[0].key
    return {
        "name": name,
        "named": bool(folder),
        "policy": policy,
        "backbone": backbone,
        "head": head,
        "recipe": _asked(runs),
        "settings": {setting: _cell(cell) for setting, cell in _cells(runs).items()},
    }


def _cell(runs: Sequence[_Run]) -> Document:
    first = runs[0]
    published = max(first.setting.published, key=lambda entry: entry.miou_percent, default=None)
    return {
        "seeds": sorted(run.seed for run in runs),
        **{key: _over([run.scores[key] for run in runs]) for key in first.scores},
        "best_published": None
        if published is None
        else {"method": published.method, "miou_percent": published.miou_percent},
        **{key: first.recipe[key] for key in ("steps", "batch", "target_batch", "crop_px")},
        "seconds": statistics.mean(run.seconds for run in runs),
        "test_images": first.images,
        "test_images_published": first.setting.test.patches or first.setting.test.images,
        "models": list(dict.fromkeys(f"{run.model} ({run.weights})" for run in runs)),
    }


def _over(scores: Iterable[float | None]) -> Document:
    """Return mean and sample standard deviation of the scores that there are."""
    known = [score for score in scores if score is not None]
    return {
        "mean": statistics.mean(known) if known else None,
        "spread": statistics.stdev(known) if len(known) > 1 else None,
    }


def _notes(runs: Iterable[_Run]) -> dict[str, list[str]]:
    """Return what differs from the papers, with the settings that it is about."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for note in run.notes:
            found.setdefault(note, {})[run.setting.name] = None
    return {note: list(settings) for note, settings in found.items()}
