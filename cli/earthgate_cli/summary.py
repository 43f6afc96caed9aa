"""Result documents as lines for people."""

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]


def plan_lines(document: Document) -> Iterator[str]:
    """Say what a run would do."""
    grid = document["grid"]
    yield f"scene    {document['scene']}: {_grid(grid)}"
    classes = ", ".join(entry["name"] for entry in document["classes"])
    yield f"model    {document['model']['name']}: {classes}"
    if document["tiles"]:
        yield f"tiles    {_tiles(document)}"
    yield f"memory   about {document['memory_mb']} MB"
    yield f"disk     about {document['disk_mb']} MB, {document['disk_free_mb']} MB free"
    yield f"time     about {_duration(document['seconds'])}"
    yield f"outputs  {', '.join(document['outputs'].values())}"


def map_lines(document: Document) -> Iterator[str]:
    """Say what a map shows and where it is."""
    yield f"mapped {_tiles(document)}; {_duration(document['seconds']['total'])} in all"
    for entry in document["classes"]:
        yield f"  {entry['name']:<16}{entry['share']:>7.1%}{entry['hectares']:>12,.2f} ha"
    yield from _written(document)


def adapt_lines(document: Document) -> Iterator[str]:
    """Say whether the scene was adapted to, why, and what the map shows."""
    yield document["sentence"]
    if document.get("tiles"):
        yield from map_lines(document)
    else:
        yield from _written(document)


def vectorize_lines(document: Document) -> Iterator[str]:
    """Say how many polygons there are."""
    yield _counted(document["polygons"], "polygon")
    yield from _written(document)


def evaluate_lines(document: Document) -> Iterator[str]:
    """Say the scores per class and overall."""
    yield f"{'class':<16}{'IoU':>8}{'F1':>8}{'truth px':>12}{'map px':>12}"
    for entry in document["classes"]:
        scores = f"{_percent(entry['iou']):>8}{_percent(entry['f1']):>8}"
        yield f"{entry['name']:<16}{scores}{entry['truth_pixels']:>12}{entry['map_pixels']:>12}"
    yield f"{'mean':<16}{_percent(document['mean_iou']):>8}{_percent(document['mean_f1']):>8}"
    yield f"accuracy {_percent(document['accuracy'])} of {document['pixels']} known pixels"


def info_lines(document: Document) -> Iterator[str]:
    """Say every fact on a line of its own."""
    width = max(len(key) for key in document)
    for key, value in document.items():
        yield f"{key.replace('_', ' '):<{width}}  {_plain(value)}"


def models_lines(document: Document) -> Iterator[str]:
    """List the models, one a line."""
    for entry in document["models"]:
        classes = ", ".join(entry["classes"])
        low, high = entry["gsd"]
        yield f"{entry['name']}  {classes}  {low:g} to {high:g} m  {entry['licence']}"
        yield f"  {entry['file']}  sha256 {entry['digest'][:12]}"
    for sentence in document["unreadable"]:
        yield f"unreadable: {sentence}"
    if not document["models"]:
        yield "no models; see 'earthgate doctor'"


def doctor_lines(document: Document) -> Iterator[str]:
    """Say each check on a line, its fix under it where it failed."""
    for check in document["checks"]:
        yield f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']:<18}{check['found']}"
        if not check["ok"]:
            yield f"      fix: {check['fix']}"


def _grid(grid: Document) -> str:
    size = f"{grid['cols']} x {grid['rows']} px"
    return f"{size}, {grid['gsd'][0]:.3g} x {grid['gsd'][1]:.3g} m, {grid['crs']}"


def _tiles(document: Document) -> str:
    tile = f"{document['tile_px']} px every {document['stride_px']} px"
    return f"{_counted(document['tiles'], 'tile')} of {tile} at {document['gsd']:.3g} m"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _written(document: Document) -> Iterator[str]:
    for path in document["outputs"].values():
        yield f"wrote {path}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{score:.1%}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(entry) for entry in value)
    return str(value)
