"""The first page about a training: how well it does on places that never trained."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from earthgate_geo.page import (
    Picture,
    scrolling,
    section,
    show_command,
    show_curves,
    show_facts,
    show_pictures,
    show_trained,
    swatch,
    whole_page,
    write_page,
)

_LEARNT = ("source", "target", "gsd", "start", "recipe")


def write_training_report(
    path: Path, document: Mapping[str, Any], pictures: Mapping[str, Picture]
) -> None:
    """Write the page, under a hidden name first.

    Args:
        path: Destination.
        document: The result document of a training with ``name``, ``table`` (the classes with
            their colours), ``curves``, ``provenance`` and ``command``.
        pictures: Held-out places by caption, (row, col, 3); three of each, shown in a row.

    Raises:
        StorageError: The file cannot be written.
    """
    write_page(path, render(document, pictures))


def training_sentence(holdout: Mapping[str, Any] | None) -> str:
    """Return how well a model does where it never trained, for a person."""
    if holdout is None:
        return "No place was held out: how well the model does on new ones is not known."
    mean = holdout["scores"]["mean_iou"]
    told = "-" if mean is None else f"{mean:.1%}"
    return f"On {holdout['scored']} held-out patches, which never trained, the mean IoU is {told}."


def render(document: Mapping[str, Any], pictures: Mapping[str, Picture]) -> str:
    """Return the page as HTML."""
    holdout, table = document["holdout"], document["table"]
    sections = [
        section("Places that never trained", show_pictures(pictures, table, columns=3)),
        section("How well it does there", _scores(holdout, table)),
        section("How it went", show_curves(document["curves"])),
        section("The gate" if document["scores"] else "What trained", show_trained(document)),
        section(
            "What it learnt from",
            show_facts({key: document[key] for key in _LEARNT if document[key]}),
        ),
        section("Provenance", show_facts(document["provenance"])),
        section("Command", show_command(document["command"])),
    ]
    header = f"<p>{escape(training_sentence(holdout))}</p>"
    return whole_page(
        document["name"], brand="earthgate training", header=header, sections=sections
    )


def _scores(holdout: Mapping[str, Any] | None, table: Sequence[Mapping[str, Any]]) -> str:
    """Show every class with its scores on held-out ground, and how much of it was labelled."""
    if holdout is None:
        return ""
    scores = holdout["scores"]
    rows = "".join(
        _row(entry, found) for entry, found in zip(table, scores["classes"], strict=True)
    )
    head = "".join(f'<th class="number">{name}</th>' for name in ("IoU", "F1", "labelled pixels"))
    left_out = (
        f" {holdout['left_out']} patches that lie on both sides neither trained nor count."
        if holdout["left_out"]
        else ""
    )
    scored = holdout["scored"]
    some = "" if scored == holdout["patches"] else f" Scored on {scored} of them."
    note = (
        f"{holdout['patches']} patches, {holdout['share']:.0%} of all, were held out."
        f"{some}{left_out}"
    )
    mean = (
        f'<tr><th>mean</th><td class="number">{_percent(scores["mean_iou"])}</td>'
        f'<td class="number">{_percent(scores["mean_f1"])}</td>'
        f'<td class="number">{scores["pixels"]:,}</td></tr>'
    )
    shown = scrolling(f"<table><tr><th></th>{head}</tr>{rows}{mean}</table>")
    return f'{shown}<p class="note">{note}</p>'


def _row(entry: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    # Where no pixel of a class is labelled, the mean leaves it out: its score says nothing.
    iou, f1 = (_percent(found[score] if found["truth_pixels"] else None) for score in ("iou", "f1"))
    return (
        f'<tr><td class="name">{swatch(entry)}{escape(entry["name"])}</td>'
        f'<td class="number">{iou}</td><td class="number">{f1}</td>'
        f'<td class="number">{found["truth_pixels"]:,}</td></tr>'
    )


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{score:.1%}"
