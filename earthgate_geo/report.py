"""The first page about an adaptation: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earthgate_geo.page import (
    Picture,
    legend,
    scrolling,
    section,
    shaded,
    show_command,
    show_curves,
    show_facts,
    show_pair,
    show_picture,
    show_scale,
    show_trained,
    swatch,
    whole_page,
    write_page,
)

Table = list[dict[str, Any]]

_MOVED = 0.01
"""Least change of a class's share that is worth a word."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One place of a scene in pictures of one shape (row, col, 3)."""

    image: Picture
    """The place as the source model sees it."""

    before: Picture
    """Its map by the source model."""

    after: Picture | None
    """Its map by the adapted model; None where the source model is kept."""

    confidence: NDArray[np.float32]
    """Probability, 0..1, of the class in the last of the maps, (row, col); NaN where invalid."""


def write_report(path: Path, document: Mapping[str, Any], shown: Shown) -> None:
    """Write the page, under a hidden name first.

    Args:
        path: Destination.
        document: The result document of an adaptation that was asked for a report.
        shown: A place of its first scene.

    Raises:
        StorageError: The file cannot be written.
    """
    write_page(path, render(document, shown))


def decision_sentence(decision: str, evidence: Mapping[str, Any]) -> str:
    """Return the decision with its evidence, for a person."""
    before, after = evidence["source"], evidence["adapted"]
    if decision != "adapted":
        reasons = " and ".join(evidence["against"])
        return f"Gate closed, the source model is kept: {reasons}."
    if evidence["against"]:
        reasons = " and ".join(evidence["against"])
        changes = ", and ".join(_aligned(evidence))
        return f"Adapted: {changes}. What was trained is refused: {reasons}."
    if after["label_probabilities"] is not None:
        kept = (
            " kept out of training" if evidence["labels_held_back"] else ", all of which trained,"
        )
        return (
            f"Adapted: labels{kept} have a mean probability of {_fit(after):.1%}; by the source "
            f"model it was {_fit(before):.1%}."
        )
    return (
        "Adapted: turned and in other light, tiles of the scene now keep the class of "
        f"{after['agreement']:.1%} of their pixels; with the source model it was "
        f"{before['agreement']:.1%}."
    )


def comparison(evidence: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Return what the guard saw of both models, for a person.

    Returns:
        Rows with the ``measure`` in words, and its values ``before`` and ``after``, 0..1; of the
        confidence after, what it is once calibrated.
    """
    before, after = evidence["source"], dict(evidence["adapted"])
    if evidence["calibration"]:
        after["confidence"] = evidence["calibration"]["confidence"]
    kept = "kept out of training" if evidence["labels_held_back"] else "that trained, too"
    rows = [(f"probability of labels {kept}", _fit(before), _fit(after))]
    measures = {
        "agreement": "agrees with itself, turned and in other light",
        "confidence": "mean confidence",
        "replay_miou": "mean IoU on generated tiles",
    }
    rows += [(words, before[key], after[key]) for key, words in measures.items()]
    shares = zip(names, before["shares"], after["shares"], strict=True)
    rows += [(f"share of {name}", *pair) for name, *pair in shares]
    return [
        {"measure": words, "before": source, "after": adapted}
        for words, source, adapted in rows
        if source is not None and adapted is not None
    ]


def _fit(seen: Mapping[str, Any]) -> float | None:
    """Return the mean probability of labels, 0..1; None without."""
    found = seen["label_probabilities"]
    return sum(found) / len(found) if found else None


def remarks(decision: str, evidence: Mapping[str, Any]) -> list[str]:
    """Return what one must know to read the comparison, in sentences."""
    calibrated = _calibrated(evidence["calibration"])
    if decision != "adapted" or evidence["against"]:
        calibrated = "Confidence is the source model's own, not calibrated."
    changes = _aligned(evidence) if decision == "adapted" else []
    shown = [f"{change[0].upper()}{change[1:]}." for change in changes]
    if evidence["source"]["label_probabilities"] is None or evidence["labels_held_back"]:
        return [*shown, calibrated]
    few = (
        "The labels are too few to keep any out of training: the guard saw those that "
        "trained, and cannot tell learning from memorising."
    )
    return [*shown, few, calibrated]


def heights_remark(covered: float) -> str:
    """Say how much of a scene has heights, and what decides elsewhere.

    Args:
        covered: Share of the scene, 0..1.
    """
    if covered == 0:
        return "The scene has no heights; the image alone decides."
    if covered == 1:
        return "Heights cover the whole scene."
    share = min(max(covered, 0.01), 0.99)  # all and nothing are said otherwise
    return f"Heights cover {share:.0%} of the scene; elsewhere the image alone decides."


def _aligned(evidence: Mapping[str, Any]) -> list[str]:
    """Say what was changed before any training."""
    choice = evidence["view"]
    shown = [_shown(choice)] if choice and choice["used"] else []
    return shown + [
        f"{each['name']} is said less readily, for its outline then follows the edges of the image "
        f"{each['clearer']:.1f} times as clearly"
        for each in evidence["restraints"]
    ]


def _shown(choice: Mapping[str, Any]) -> str:
    """Say how the scene is shown to the network."""
    order, gamma = choice["view"]["order"], choice["view"]["gamma"]
    bands = order and f"its bands in the order {', '.join(str(band + 1) for band in order)}"
    tones = gamma != 1 and f"{'darker' if gamma > 1 else 'brighter'} tones (gamma {gamma:.3g})"
    return (
        f"the network sees the scene with {' and '.join(filter(None, (bands, tones)))}, which is "
        f"{choice['before'] / choice['after']:.1f} times closer to its training images"
    )


def _calibrated(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "Confidence is not calibrated: a head of this kind cannot be."
    by = f"Confidence: logits are divided by {found['temperature']:.2f}, "
    if found["basis"] == "labels" and found["temperature"] == 1:
        return (
            "Confidence stays: labels kept out of training do not show it to be too high; expected "
            f"calibration error there {found['error']:.1%}."
        )
    if found["basis"] == "labels":
        return (
            f"{by}the likeliest number on labels kept out of training; expected calibration error "
            f"there {found['error']:.1%}."
        )
    checked = ", corrected on generated tiles," if found["basis"] == "replay" else ""
    if found["temperature"] == 1:
        return f"Confidence stays: agreement with itself{checked} does not show it to be too high."
    return f"{by}for an accuracy of {found['accuracy']:.1%} by agreement with itself{checked[:-1]}."


def advice(decision: str, evidence: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what to do next."""
    labelled = evidence["source"]["label_probabilities"] is not None
    if labelled and not evidence["labels_held_back"]:
        return (
            "Next: look at the map, label more places where it is wrong, and adapt again; of "
            "twenty places or more, some are kept to judge by."
        )
    if labelled:
        return "Next: look at the map, label places where it is wrong, and adapt again."
    if decision == "adapted":
        return (
            "Next: compare both maps in the report (--report); where the new one is wrong, "
            "digitise polygons and pass them with --labels."
        )
    moved = _moved(evidence, names)
    of = f", most of all of {moved}," if moved else " of the classes it confuses"
    return f"Next: digitise about 10 polygons{of} and pass them with --labels."


def _moved(evidence: Mapping[str, Any], names: Sequence[str]) -> str:
    """Name the class that lost most of its share and the one that gained most."""
    pairs = zip(evidence["source"]["shares"], evidence["adapted"]["shares"], strict=True)
    change = {name: after - before for name, (before, after) in zip(names, pairs, strict=True)}
    ends = min(change, key=lambda name: change[name]), max(change, key=lambda name: change[name])
    return " and ".join(name for name in dict.fromkeys(ends) if abs(change[name]) >= _MOVED)


def render(document: Mapping[str, Any], shown: Shown) -> str:
    """Return the page as HTML."""
    decision = escape(document["decision"])
    sections = [
        section(
            "The same place before and after"
            if shown.after is not None
            else "A place of the scene",
            _place(document, shown),
        ),
        section("What the scene shows", _classes(document)),
        section("Evidence", _evidence(document)),
        section("The gate" if document["scores"] else "What trained", show_trained(document)),
        section("How it went", show_curves(document["curves"])),
        section("Provenance", show_facts(document["provenance"])),
        section("Command", show_command(document["command"])),
    ]
    header = (
        f'<span class="badge {decision}">{decision.replace("-", " ")}</span>'
        f"<p>{escape(document['sentence'])}</p><p>{escape(document['next'])}</p>"
    )
    return whole_page(
        document["scene"], brand="earthgate adaptation", header=header, sections=sections
    )


def _place(document: Mapping[str, Any], shown: Shown) -> str:
    """Show a place: its maps, its image, and how sure the last map is."""
    low = 1 / len(document["classes"])  # no class in front has less
    if shown.after is None:
        maps = show_picture(shown.before, "the source model, kept")
    else:
        captions = ("before: source model", "after: adapted")
        maps = show_pair(shown.before, shown.after, captions)
    first = document["areas"]["scene"]
    image = show_picture(shown.image, "the scene" if first == document["scene"] else first)
    confidence = show_picture(
        shaded(shown.confidence, low=low),
        "confidence" if shown.after is None else "confidence after",
        below=show_scale(low=low),
    )
    room = ' wide"' if shown.after is None else '"'  # of a pair, only once the slider works
    return (
        f'<div class="place{room}><div>{maps}{legend(document["classes"])}</div>'
        f'<div class="aside">{image}{confidence}</div></div>'
    )


def _classes(document: Mapping[str, Any]) -> str:
    """Show every class with its share and its area: before, after, and in the map."""
    found, classes = document["areas"], document["classes"]
    whens = {
        "before": "before" if document["decision"] == "adapted" else "the source model, kept",
        "after": "after",
    }
    columns = {title: found[when] for when, title in whens.items() if found[when]}
    if "share" in classes[0]:
        columns["the map"] = classes
    head = "".join(f'<th class="number">{title}</th>' for title in columns)
    rows = "".join(
        f'<tr><td class="name">{swatch(entry)}{escape(entry["name"])}</td>'
        f"{''.join(map(_area, areas))}{_bars(entry, found, index)}</tr>"
        for index, (entry, *areas) in enumerate(zip(classes, *columns.values(), strict=True))
    )
    table = f"<table><tr><th></th>{head}<th></th></tr>{rows}</table>"
    return f'{scrolling(table)}<p class="note">{escape(_area_note(document))}</p>'


def _area(entry: Mapping[str, Any]) -> str:
    return (
        f'<td class="number">{entry["share"]:.1%}'
        f'<span class="soft">{entry["hectares"]:,.2f} ha</span></td>'
    )


def _bars(entry: Mapping[str, Any], found: Mapping[str, Any], index: int) -> str:
    """Draw a class's shares, the pale one before, against the largest of all."""
    drawn = [found[when] for when in ("before", "after") if found[when]]
    most = max(area["share"] for areas in drawn for area in areas) or 1.0
    bars = "".join(
        f'<i{kind} style="width:{areas[index]["share"] / most:.1%};'
        f'background:{escape(entry["color"])}"></i>'
        for areas, kind in zip(reversed(drawn), ("", ' class="was"'), strict=False)
    )
    return f'<td class="bars">{bars}</td>'


def _area_note(document: Mapping[str, Any]) -> str:
    """Say what the areas rest on."""
    found = document["areas"]
    of = f" {found['scene']}" if found["scene"] != document["scene"] else " the scene"
    tiles = f"{found['tiles']} tiles" if found["tiles"] > 1 else "1 tile"
    by_tile = "Before and after" if found["after"] else "The source model's"
    how = (
        f"counted on every tile of{of} that holds data"
        if found["covered"] == 1
        else f"estimated from {tiles} of{of}, {max(found['covered'], 0.001):.1%} of it"
    )
    pale = " Pale bars: before." if found["after"] else ""
    inside = " only inside --aoi," if "mapped" in document["provenance"] else ""
    mapped = f" The map:{inside} counted pixel by pixel, after blending tiles that overlap."
    return f"{by_tile}: {how}.{pale}{mapped if 'share' in document['classes'][0] else ''}"


def _evidence(document: Mapping[str, Any]) -> str:
    """Show what the guard saw of both models, measure by measure."""
    body = "".join(
        f'<tr><th>{escape(row["measure"])}</th><td class="number">{row["before"]:.1%}</td>'
        f'<td class="number">{row["after"]:.1%}</td></tr>'
        for row in document["table"]
    )
    after = "after" if document["decision"] == "adapted" else "refused"
    head = f'<tr><th></th><th class="number">before</th><th class="number">{after}</th></tr>'
    told = [*document["remarks"], "Shares here are of the tiles that the guard looks at."]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in told)
    return scrolling(f"<table>{head}{body}</table>") + notes
