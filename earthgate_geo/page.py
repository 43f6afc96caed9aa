"""What our pages are made of: one HTML file that needs nothing else."""

import hashlib
import math
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from earthgate_geo.errors import StorageError

Picture = NDArray[np.uint8]

_STYLE = """
:root { color-scheme: light; --ink: #1c2321; --soft: #5a6662; --page: #f6f7f4; --card: #fff;
  --line: #dfe4df; --accent: 14 116 84; --warn: 150 86 4 }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --ink: #e6ebe8;
  --soft: #9aa8a2; --page: #131715; --card: #1b211e; --line: #2e3833; --accent: 74 196 150;
  --warn: 232 168 72 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif }
h1 { margin: .1rem 0 .6rem; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 0 0 .8rem; font-size: 1.05rem }
p { overflow-wrap: anywhere; max-width: 48rem }
section { margin-top: 1.2rem; padding: 1.1rem 1.2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem }
.brand, figcaption, th, .note, .soft { color: var(--soft); font-size: .85rem }
.badge { padding: .15rem .7rem; border-radius: 1rem; font-size: .85rem; font-weight: 600;
  color: rgb(var(--tone)); background: rgb(var(--tone) / 14%) }
.adapted { --tone: var(--accent) } .gate-closed { --tone: var(--warn) }
.row { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)) }
figure { margin: 0; min-width: 0 } img { display: block; width: 100%; border-radius: .3rem }
figcaption { margin-top: .3rem; overflow-wrap: anywhere }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem }
.place, .aside, .pair { display: grid; gap: 1rem; align-items: start }
.aside, .pair { grid-template-columns: 1fr 1fr }
@media screen and (min-width: 40rem) { .wide { grid-template-columns: 2fr 1fr }
  .wide .aside { grid-template-columns: 1fr } }
[hidden] { display: none }
@media screen { .live { position: relative; grid-template-columns: 1fr }
  .live > figure, .live > input { grid-area: 1 / 1 }
  .live > figure + figure img { clip-path: inset(0 0 0 var(--at)) }
  .live figcaption { position: absolute; top: .5rem; left: .5rem; margin: 0; padding: .1rem .5rem;
    max-width: calc(50% - 1rem); border-radius: 1rem; font-size: .75rem; color: #fff;
    background: rgb(0 0 0 / 70%) } .live > figure + figure figcaption { left: auto; right: .5rem }
  .live > input { z-index: 1; width: 100%; height: 100%; margin: 0; opacity: 0;
    cursor: ew-resize; touch-action: pan-y }
  .handle { position: absolute; inset: 0 auto 0 var(--at); width: 3px; margin-left: -1.5px;
    background: #fff; box-shadow: 0 0 4px rgb(0 0 0 / 70%); pointer-events: none }
  .handle::after { content: "\\2194"; position: absolute; top: 50%; left: 50%; width: 2.2rem;
    height: 2.2rem; margin: -1.1rem; border-radius: 50%; background: #fff; color: #1c2321;
    font: 1.2rem/2.1rem system-ui, sans-serif; text-align: center;
    box-shadow: 0 1px 5px rgb(0 0 0 / 60%) }
  input:focus-visible + .handle::after { outline: 4px solid rgb(var(--accent)) } }
.scale { display: flex; align-items: center; gap: .5rem } .scroll { overflow-x: auto }
.scale i { flex: 1; height: .6rem; border-radius: .3rem; border: 1px solid var(--line) }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 500 }
th, td { padding: .3rem .8rem .3rem 0; vertical-align: top } td { overflow-wrap: anywhere }
th:last-child, td:last-child { padding-right: 0 }
.facts th { width: 30%; min-width: 7rem } .name { white-space: nowrap }
p:last-child { margin-bottom: 0 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.number .soft { display: block }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  border-radius: .2em; vertical-align: -.08em; border: 1px solid var(--line) }
.bars { width: 40%; min-width: 5rem; padding-top: .7rem }
.bars i { display: block; height: .45rem; min-width: 1px; margin-bottom: .2rem;
  border-radius: .25rem }
.bars i + i { margin-bottom: 0 } .bars .was { opacity: .4 }
.gate { width: auto }
.gate td, .gate thead th { min-width: 2.4rem; padding: .3rem; text-align: center;
  font-size: .78rem; font-variant-numeric: tabular-nums; border: 2px solid var(--card) }
.gate th:first-child { position: sticky; left: 0; padding: .3rem .6rem .3rem 0; text-align: left;
  background: var(--card) }
.gate .open { outline: 2px solid rgb(var(--accent)); outline-offset: -3px; border-radius: .4rem;
  font-weight: 700 }
.plot { display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem }
.plot .soft { font-variant-numeric: tabular-nums; text-align: right }
.plot .soft:last-child { align-self: end }
svg { grid-area: 1 / 2 / 3 / 3; width: 100%; border-radius: .3rem;
  background: rgb(var(--accent) / 6%) }
polyline { fill: none; stroke: rgb(var(--accent)); stroke-width: 2;
  vector-effect: non-scaling-stroke }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
button { float: right; margin: 0 0 .5rem .8rem; padding: .2rem .8rem; border-radius: .4rem;
  border: 1px solid var(--line); background: var(--page); color: inherit; font: inherit;
  font-size: .85rem; cursor: pointer }
button:focus-visible { outline: 3px solid rgb(var(--accent)) }
@media (max-width: 40rem) { body { padding-top: 1rem } section { padding: 1rem .9rem }
  .gate td, .gate thead th { min-width: 1.9rem; padding: .3rem 0 }
  .facts th, .facts td { display: block; width: auto } .facts td { padding-top: 0 }
  .bars { display: none } }
@media print { body { max-width: none; padding: 0; background: none; font-size: 10pt;
  print-color-adjust: exact } section { break-inside: avoid } button, .live > input, .handle {
  display: none } }
"""

_SCRIPT = """
for (const pair of document.querySelectorAll(".pair")) {
  const slider = pair.querySelector("input");
  const move = () => pair.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", move);
  slider.hidden = pair.querySelector(".handle").hidden = false;
  pair.classList.add("live");
  pair.closest(".place").classList.add("wide");
  move();
}
for (const command of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(command);
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
  });
  command.before(button);
}
"""

_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'sha256-"
    f"{b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'"
)
"""A browser then fetches nothing and runs no script but ours. Colours stand in the elements."""

_RAMP = ("#fff3c4", "#f5a54a", "#b8456b", "#3a2a66")
"""Colours of a scale, from its lower end: what is uncertain is bright."""

_GAP = 128
"""Grey of what has no value."""

_MEANINGS = {"grad-norm-k": "squared mean gradient"}
"""What the scores of a policy are, where not Fisher information."""


def write_page(path: Path, text: str) -> None:
    """Write a page, under a hidden name first.

    Raises:
        StorageError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        # A file name may hold bytes that are no text.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            found=f"{path} could not be written ({error.strerror})",
            expected="a writable folder with room for it",
            fix="Free space or choose another folder with --report",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def whole_page(title: str, *, brand: str, header: str, sections: Sequence[str]) -> str:
    """Return a page as HTML.

    Args:
        title: What it is about, as text.
        brand: What made it, as text.
        header: HTML under the title.
        sections: As ``section`` returns them.
    """
    name = escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} - earthgate</title><style>{_STYLE}</style></head><body>"
        f'<header><div class="brand">{escape(brand)}</div><h1>{name}</h1>'
        f"{header}</header>{''.join(sections)}<script>{_SCRIPT}</script></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Return a part of the page under a title; nothing where there is nothing to show."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def show_pictures(
    pictures: Mapping[str, Picture], classes: Sequence[Mapping[str, Any]], *, columns: int
) -> str:
    """Show pictures (row, col, 3) by caption, and the colours of the classes.

    Args:
        pictures: By caption.
        classes: With ``name`` and ``color``.
        columns: Pictures beside one another.
    """
    if not pictures:
        return ""
    figures = "".join(show_picture(pixels, caption) for caption, pixels in pictures.items())
    row = f'<div class="row" style="grid-template-columns: repeat({columns}, 1fr)">'
    return f"{row}{figures}</div>{legend(classes)}"


def show_picture(pixels: Picture, caption: str, *, below: str = "") -> str:
    """Show a picture (row, col, 3) with its caption, and below it some HTML."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    name = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{b64encode(file.getvalue()).decode()}" '
        f'alt="{name}"><figcaption>{name}</figcaption>{below}</figure>'
    )


def show_pair(before: Picture, after: Picture, captions: tuple[str, str]) -> str:
    """Show a place twice, with a slider; side by side on paper and where no script may run."""
    figures = "".join(map(show_picture, (before, after), captions))
    return (
        f'<div class="pair">{figures}<input type="range" value="50" autocomplete="off" '
        'aria-label="How far the first picture reaches over the second, in percent" hidden>'
        '<span class="handle" hidden></span></div>'
    )


def legend(classes: Sequence[Mapping[str, Any]]) -> str:
    """Show the colours of the classes, which have a ``name`` and a ``color``."""
    entries = (f"<span>{swatch(entry)}{escape(entry['name'])}</span>" for entry in classes)
    return f'<p class="note legend">{"".join(entries)}</p>'


def shaded(values: NDArray[np.floating[Any]], *, low: float) -> Picture:
    """Return shares (row, col) in the colours of the scale from ``low`` to 1; grey where NaN."""
    stops = np.array([[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in _RAMP])
    places = np.linspace(low, 1, len(_RAMP))
    mixed = np.stack([np.interp(values, places, channel) for channel in stops.T], -1)
    return np.where(np.isnan(values)[..., None], _GAP, mixed.round()).astype(np.uint8)


def show_scale(*, low: float) -> str:
    """Show the scale of ``shaded``."""
    return (
        f'<div class="scale soft">{low:.0%}<i style="background:linear-gradient(to right, '
        f'{", ".join(_RAMP)})"></i>100%</div>'
    )


def show_command(command: str) -> str:
    """Show a command line, to be copied."""
    return f"<pre>{escape(command)}</pre>" if command else ""


def scrolling(table: str) -> str:
    """Return a table that scrolls on its own where the page is too narrow."""
    return f'<div class="scroll">{table}</div>'


def swatch(entry: Mapping[str, Any]) -> str:
    """Show the colour of a class."""
    return f'<span class="swatch" style="background:{escape(entry["color"])}"></span>'


def show_trained(document: Mapping[str, Any]) -> str:
    """Say what trained beside the head, with the gate where modules were scored."""
    scores, slots = document["scores"], set(document["slots"])
    of_all = f" of {len(scores)}" if scores else ""
    modules = f"{len(slots)}{of_all} modules with " if slots else ""
    told = (
        f"<p>Policy {escape(document['policy'])}: {modules}{document['trained_parameters']:,} "
        "parameters trained beside the head.</p>"
    )
    return told + _gate(scores, slots, of=_MEANINGS.get(document["policy"], "Fisher information"))


def _gate(scores: Mapping[str, float], chosen: Collection[str], *, of: str) -> str:
    """Show kinds x layers: the deeper the colour, the higher the score; a frame where chosen."""
    if not scores:
        return ""
    places = [slot.split(".", 1) for slot in scores]
    layers = sorted({int(layer) for layer, _ in places})
    highest = max(scores.values()) or 1.0
    head = "".join(f"<th>{layer}</th>" for layer in layers)
    body = ""
    for kind in dict.fromkeys(kind for _, kind in places):
        cells = (_cell(scores.get(s := f"{n}.{kind}"), highest, s in chosen) for n in layers)
        body += f"<tr><th>{escape(kind)}</th>{''.join(cells)}</tr>"
    note = (
        f"Numbers and colour: a module's percentage of the {of} of its kind at the last choice. "
        "Frame: trained."
    )
    table = f'<table class="gate"><thead><tr><th>layer</th>{head}</tr></thead>{body}</table>'
    return f'{scrolling(table)}<p class="note">{note}</p>'


def _cell(score: float | None, highest: float, chosen: bool) -> str:  # noqa: FBT001
    if score is None:
        return "<td></td>"
    depth = f"{0.7 * score / highest:.0%}"  # at most so deep that the number stays legible
    kind = ' class="open"' if chosen else ""
    return f'<td{kind} style="background:rgb(var(--accent) / {depth})">{100 * score:.0f}</td>'


def show_curves(curves: Mapping[str, Sequence[float]]) -> str:
    """Show the course of numbers by name."""
    figures = "".join(
        f"<figure>{_line(finite)}<figcaption>{escape(name)}: "
        f"{finite[0]:#.3g} to {finite[-1]:#.3g} over {len(values)} points</figcaption></figure>"
        for name, values in curves.items()
        if len(finite := [value for value in values if math.isfinite(value)]) > 1
    )
    return f'<div class="row">{figures}</div>' if figures else ""


def _line(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    span = high - low or 1.0
    points = " ".join(
        f"{100 * i / (len(values) - 1):.2f},{36 - 32 * (value - low) / span:.2f}"
        for i, value in enumerate(values)
    )
    return (
        f'<div class="plot"><span class="soft">{high:#.3g}</span>'
        '<svg viewBox="0 0 100 40" preserveAspectRatio="none" height="120" aria-hidden="true">'
        f'<polyline points="{points}"/></svg><span class="soft">{low:#.3g}</span></div>'
    )


def show_facts(facts: Mapping[str, Any]) -> str:
    """Show facts by name."""
    rows = "".join(
        f"<tr><th>{escape(key.replace('_', ' '))}</th><td>{escape(_told(value))}</td></tr>"
        for key, value in facts.items()
    )
    return f'<table class="facts">{rows}</table>' if rows else ""


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_told(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_told(entry) for entry in value)
    return str(value)
