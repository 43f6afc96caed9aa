"""What our pages are made of: one HTML file that needs nothing else."""

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.errors import StorageError

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2321; --soft: #5d6a66; --page: #f6f7f4; --card: #fff;
  --line: #dfe4df; --accent: 14 116 84; --warn: 176 106 8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebe8; --soft: #9aa8a2; --page: #131715;
  --card: #1b211e; --line: #2e3833; --accent: 74 196 150; --warn: 232 168 72 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif }
h1 { margin: .1rem 0 .6rem; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 0 0 .8rem; font-size: 1.05rem }
section { margin-top: 1.2rem; padding: 1.1rem 1.2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; overflow-x: auto }
.brand, figcaption, th, .note { color: var(--soft); font-size: .85rem }
.badge { padding: .15rem .7rem; border-radius: 1rem; font-size: .85rem; font-weight: 600;
  color: rgb(var(--tone)); background: rgb(var(--tone) / 14%) }
.adapted { --tone: var(--accent) } .gate-closed { --tone: var(--warn) }
.row { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)) }
figure { margin: 0 } img, svg { display: block; width: 100%; border-radius: .3rem }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 500 }
th, td { padding: .3rem .8rem .3rem 0; vertical-align: top } td { overflow-wrap: anywhere }
.facts th { width: 35% } .name, .legend span { white-space: nowrap }
p:last-child { margin-bottom: 0 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  border-radius: .2em; vertical-align: -.08em; border: 1px solid var(--line) }
.share { height: .55rem; margin-top: .5rem; border-radius: .3rem }
.gate { width: auto }
.gate td, .gate thead th { min-width: 2.4rem; padding: .3rem; text-align: center;
  font-size: .78rem; font-variant-numeric: tabular-nums; border: 2px solid var(--card) }
.gate thead th:first-child { padding-left: 0; text-align: left }
.gate .open { outline: 2px solid rgb(var(--accent)); outline-offset: -3px; border-radius: .4rem;
  font-weight: 700 }
polyline { fill: none; stroke: rgb(var(--accent)); stroke-width: 2;
  vector-effect: non-scaling-stroke }
svg { background: rgb(var(--accent) / 6%) }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
"""


_MEANINGS = {"grad-norm-k": "squared mean gradient"}
"""What the scores of a policy are, where not Fisher information."""


def write_page(path: Path, text: str) -> None:
    """Write a page, under a hidden name first.

    Raises:
        StorageError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
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
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} - earthgate</title><style>{_STYLE}</style></head><body>"
        f'<header><div class="brand">{escape(brand)}</div><h1>{name}</h1>'
        f"{header}</header>{''.join(sections)}</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Return a part of the page under a title; nothing where there is nothing to show."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def show_pictures(
    pictures: Mapping[str, NDArray[np.uint8]],
    classes: Sequence[Mapping[str, Any]],
    *,
    columns: int | None = None,
) -> str:
    """Show pictures (row, col, 3) by caption, and the colours of the classes.

    Args:
        pictures: By caption.
        classes: With ``name`` and ``color``.
        columns: Pictures beside one another; as many as there is room for without.
    """
    row = f' style="grid-template-columns: repeat({columns}, 1fr)"' if columns else ""
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{b64encode(_png(pixels)).decode()}" '
        f'alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, pixels in pictures.items()
    )
    legend = " &ensp; ".join(
        f"<span>{swatch(entry)}{escape(entry['name'])}</span>" for entry in classes
    )
    if not figures:
        return ""
    return f'<div class="row"{row}>{figures}</div><p class="note legend">{legend}</p>'


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (row, col, 3) as a PNG file; torchvision's encoder is on its way out."""
    rows, cols, _ = pixels.shape
    unfiltered = np.insert(pixels.reshape(rows, -1), 0, 0, axis=1)
    header = struct.pack(">IIBBBBB", cols, rows, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(unfiltered.tobytes(), 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks, chunks.values()))


def _chunk(kind: bytes, content: bytes) -> bytes:
    length, checksum = (struct.pack(">I", n) for n in (len(content), zlib.crc32(kind + content)))
    return length + kind + content + checksum


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
    return (
        f'<table class="gate"><thead><tr><th>layer</th>{head}</tr></thead>{body}</table>'
        f'<p class="note">{note}</p>'
    )


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
        '<svg viewBox="0 0 100 40" preserveAspectRatio="none" height="90" role="img">'
        f'<polyline points="{points}"/></svg>'
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
