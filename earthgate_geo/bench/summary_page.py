"""A summary as a page of Markdown and its pictures. No torch."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from earthgate_geo.bench.document import percent, table
from earthgate_geo.bench.published import Published
from earthgate_geo.bench.radar import Series, radar
from earthgate_geo.bench.settings import SETTINGS, Setting

Document = Mapping[str, Any]

CHAPTERS = {
    "generalise": "From the source alone",
    "adapt": "With the unlabelled target",
    "fuse": "With heights",
    "local": "Our own places",
}
"""Titles of the parts of the page, each with a table and a picture."""

_DRAWN = 4
"""Published methods in a picture: more lines cannot be told apart."""

_INTRODUCTION = (
    "Mean IoU in per cent on the test images of each setting, after the last step: mean over the "
    "seeds ± their sample standard deviation (number of seeds). A dash was not run. Published "
    "figures stand best first; the number behind each leads to its source, how it came to us and "
    "which checkpoint was scored. One that is the best on test chose it by the test labels, which "
    "ours in these tables do not."
)


def chapter_of(chapter: str) -> list[Setting]:
    """Return the settings of one of ``CHAPTERS``."""
    return [
        setting
        for setting in SETTINGS.values()
        if chapter == ("local" if "local" in setting.suites else setting.protocol)
    ]


def markdown(document: Document) -> str:
    """Return the summary as one page; pictures are links to the files of ``outputs``."""
    notes = _Notes()
    parts = ["# Summary of the benchmark", _INTRODUCTION]
    for chapter, title in CHAPTERS.items():
        settings = chapter_of(chapter)
        if chapter in document["outputs"]:
            parts += [
                f"## {title}",
                f"![{title}: our means and published figures](summary_{chapter}.svg)",
                _scores(document, settings, notes),
            ]
    parts += ["## Our runs", *_recipes(document), _runs(document)]
    if notes.numbers:
        parts += ["## Where the published figures are from", notes.text()]
    if document["notes"]:
        parts += ["## What differs from the papers", "\n".join(_differences(document))]
    return "\n\n".join(parts) + "\n"


def picture(document: Document, chapter: str) -> str:
    """Return the radar of one of ``CHAPTERS`` as SVG."""
    settings = chapter_of(chapter)
    ours = [
        Series(
            name=f"{row['name']} (ours, last step)",
            percent=tuple(_point(row, setting, "mean") for setting in settings),
            spread=tuple(_point(row, setting, "spread") for setting in settings),
        )
        for row in document["rows"]
        if any(setting.name in row["settings"] for setting in settings)
    ]
    names = [setting.name for setting in settings]
    title = f"{CHAPTERS[chapter]}: mean IoU in per cent by setting"
    return radar(title, names, [*ours, *_published(settings)])


def _point(row: Document, setting: Setting, which: str) -> float | None:
    cell = row["settings"].get(setting.name)
    score = None if cell is None else cell["last"][which]
    return None if score is None else 100 * score


def _published(settings: Sequence[Setting]) -> list[Series]:
    """Return the methods with the most settings; of equals, the better."""
    found: dict[str, dict[str, float]] = {}
    for setting in settings:
        for entry in setting.published:
            paper = ", ".join(entry.source.split(", ")[:2])
            rule = "" if entry.rule == "unknown" else f"; {entry.rule}"
            scores = found.setdefault(f"{entry.method} ({paper}{rule})", {})
            scores[setting.name] = entry.miou_percent
    ranked = sorted(found, key=lambda n: (-len(found[n]), -statistics.mean(found[n].values())))
    return [
        Series(name=name, percent=tuple(found[name].get(setting.name) for setting in settings))
        for name in ranked[:_DRAWN]
    ]


class _Notes:
    """Numbers the origins of published figures as they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, entry: Published) -> int:
        origin = f"{entry.source}: {entry.trust}; checkpoint: {entry.rule}."
        return self.numbers.setdefault(origin, len(self.numbers) + 1)

    def text(self) -> str:
        return "\n".join(f"{number}. {origin}" for origin, number in self.numbers.items())


def _scores(document: Document, settings: Sequence[Setting], notes: _Notes) -> str:
    ran = {setting.name for setting in settings}
    rows = [row for row in document["rows"] if ran & row["settings"].keys()]
    lines = []
    for setting in settings:
        cells = [_cell(row["settings"].get(setting.name)) for row in rows]
        best_first = sorted(setting.published, key=lambda entry: -entry.miou_percent)
        published = ", ".join(
            f"{entry.method} {entry.miou_percent} [{notes.number(entry)}]" for entry in best_first
        )
        lines.append([f"`{setting.name}` {setting.title}", *cells, published or "-"])
    return table(["setting", *(row["name"] for row in rows), "published"], lines)


def _cell(cell: Document | None) -> str:
    return "-" if cell is None else f"{_spread(cell['last'])} ({len(cell['seeds'])})"


def _spread(score: Document) -> str:
    spread = "" if score["spread"] is None else f" ± {percent(score['spread'])}"
    return percent(score["mean"]) + spread


def _recipes(document: Document) -> Iterator[str]:
    for row in document["rows"]:
        told = ", ".join(f"{key} {_values(values)}" for key, values in row["recipe"].items())
        mixed = any(len(values) > 1 for values in row["recipe"].values())
        yield (
            f"**{row['name']}**: policy {row['policy']}, backbone {row['backbone']}, head "
            f"{row['head']}; recipe as each setting has it{f', but {told}' if told else ''}."
            + (" These runs do not share one recipe." if mixed else "")
        )


def _values(values: Sequence[Any]) -> str:
    return " or ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _runs(document: Document) -> str:
    lines = []
    for row in document["rows"]:
        for name, cell in row["settings"].items():
            images = f"{cell['batch']} + {cell['target_batch']}"
            published = cell["test_images_published"]
            of_all = "" if published in (None, cell["test_images"]) else f" of {published}"
            lines.append(
                [
                    f"{row['name']}, `{name}`",
                    ", ".join(map(str, cell["seeds"])),
                    f"{cell['steps']} of {images} x {cell['crop_px']} px",
                    f"{cell['seconds']:.0f}",
                    f"{cell['test_images']}{of_all}",
                    percent(cell["before"]["mean"]),
                    _spread(cell["last"]),
                    _spread(cell["best_on_test"]),
                    ", ".join(cell["models"]),
                ]
            )
    head = ("run", "seeds", "steps", "s training", "test images", "before", "last")
    return table([*head, "best on test", "started from"], lines)


def _differences(document: Document) -> Iterator[str]:
    for note, settings in document["notes"].items():
        yield f"* {note} ({', '.join(settings)})"
