"""The first page about an adaptation: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.page import (
    section,
    show_curves,
    show_facts,
    show_pictures,
    show_trained,
    swatch,
    whole_page,
    write_page,
)

_MEASURES = {
    "label_miou": "mean IoU on the labels",
    "agreement": "pixels that keep their class when turned and in other light",
    "confidence": "mean certainty",
    "replay_miou": "mean IoU on generated tiles",
}


def write_report(
    path: Path, document: Mapping[str, Any], pictures: Mapping[str, NDArray[np.uint8]]
) -> None:
    """Write the page, under a hidden name first.

    Args:
        path: Destination.
        document: The result document of an adaptation with ``scores`` (by slot; empty where the
            policy never chooses), ``curves``, ``provenance`` and ``command``.
        pictures: Images of one place by caption, (row, col, 3).

    Raises:
        StorageError: The file cannot be written.
    """
    write_page(path, render(document, pictures))


def decision_sentence(decision: str, evidence: Mapping[str, Any]) -> str:
    """Return the decision with its evidence, for a person."""
    before, after = evidence["source"], evidence["adapted"]
    if decision != "adapted":
        reasons = " and ".join(evidence["against"])
        return f"Gate closed, the source model is kept: {reasons}."
    if after["label_miou"] is not None:
        kept = (
            " kept out of training" if evidence["labels_held_back"] else ", all of which trained,"
        )
        return (
            f"Adapted: on labels{kept} the mean IoU rose "
            f"from {before['label_miou']:.1%} to {after['label_miou']:.1%}."
        )
    return (
        "Adapted: turned and in other light, tiles of the scene now keep the class of "
        f"{after['agreement']:.1%} of their pixels; with the source model it was "
        f"{before['agreement']:.1%}."
    )


def render(document: Mapping[str, Any], pictures: Mapping[str, NDArray[np.uint8]]) -> str:
    """Return the page as HTML."""
    decision = escape(document["decision"])
    sections = [
        section("The same place before and after", show_pictures(pictures, document["classes"])),
        section("What the map shows", _classes(document["classes"])),
        section("The gate" if document["scores"] else "What trained", show_trained(document)),
        section("How it went", show_curves(document["curves"])),
        section("Evidence", _evidence(document["evidence"], document["classes"])),
        section("Provenance", show_facts(document["provenance"])),
        section("Command", f"<pre>{escape(document['command'])}</pre>"),
    ]
    header = (
        f'<span class="badge {decision}">{decision.replace("-", " ")}</span>'
        f"<p>{escape(document['sentence'])}</p>"
    )
    return whole_page(
        document["scene"], brand="earthgate adaptation", header=header, sections=sections
    )


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    if not any("share" in entry for entry in classes):
        return ""
    rows = "".join(
        f'<tr><td class="name">{swatch(entry)}{escape(entry["name"])}</td>'
        f'<td class="number">{entry["share"]:.1%}</td>'
        f'<td class="number">{entry["hectares"]:,.2f} ha</td>'
        f'<td width="50%"><div class="share" style="width:{entry["share"]:.1%};'
        f'background:{escape(entry["color"])}"></div></td></tr>'
        for entry in classes
    )
    return f"<table>{rows}</table>"


def _evidence(evidence: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> str:
    """Show what the guard saw of both models, measure by measure."""
    before, after = evidence["source"], evidence["adapted"]
    rows = [(words, before[key], after[key]) for key, words in _MEASURES.items()]
    rows += [
        (f"share of {entry['name']}", *shares)
        for entry, *shares in zip(classes, before["shares"], after["shares"], strict=True)
    ]
    body = "".join(
        f'<tr><th>{escape(words)}</th><td class="number">{source:.1%}</td>'
        f'<td class="number">{adapted:.1%}</td></tr>'
        for words, source, adapted in rows
        if source is not None and adapted is not None
    )
    head = '<tr><th></th><th class="number">source</th><th class="number">adapted</th></tr>'
    return f"<table>{head}{body}</table>"
