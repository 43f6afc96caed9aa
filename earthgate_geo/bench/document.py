"""The result of a run as a page of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]


def markdown(document: Document) -> str:
    """Return a result as one page; what others published stands in a table of its own."""
    parts = [
        f"# {document['setting']['title']}",
        _about(document),
        table(["class", "IoU last %", "IoU best on test %"], _scores(document)),
        f"Best on test is step {document['step_of_best']}, chosen by looking at the test labels.",
        table(["cost", "value"], _cost(document)),
    ]
    if document["published"]:
        rows = [
            [str(entry[key]) for key in ("method", "miou_percent", "rule", "source", "trust")]
            for entry in document["published"]
        ]
        head = ["method", "mIoU %", "checkpoint", "source", "how we know"]
        parts += ["## Published by others", table(head, rows)]
    if document["notes"]:
        parts.append("\n".join(f"* {note}" for note in document["notes"]))
    return "\n\n".join(parts) + "\n"


def _about(document: Document) -> str:
    recipe, images = document["recipe"], document["images"]
    return (
        f"Policy {document['policy']}, seed {document['seed']}, {recipe['steps']} steps, model "
        f"{document['model']['name']}; {images['source']} source images, {images['target']} "
        f"unlabelled target images, {images['test']} test images."
    )


def _scores(document: Document) -> Iterable[Sequence[str]]:
    for entry in document["classes"]:
        yield entry["name"], percent(entry["iou_last"]), percent(entry["iou_best_on_test"])
    yield "**mean**", percent(document["miou_last"]), percent(document["miou_best_on_test"])
    for score, title in (("mean_f1", "mean F1"), ("accuracy", "accuracy, all classes")):
        last, best = (document[f"{score}_{which}"] for which in ("last", "best_on_test"))
        yield title, percent(last), percent(best)
    if document["miou_before"] is not None:
        yield "mean before training", percent(document["miou_before"]), ""


def _cost(document: Document) -> Iterable[Sequence[str]]:
    seconds, peak_mb = document["seconds"], document["peak_memory_mb"]
    yield "trained parameters beside the head", f"{document['trained_parameters']:,}"
    yield "parameters of the head", f"{document['head_parameters']:,}"
    yield "peak memory", "-" if peak_mb is None else f"{peak_mb:,} MB"
    yield "a step", f"{seconds['step']:.3f} s"
    yield (
        "training, of which choosing modules",
        f"{seconds['train']:.1f} s, {seconds['select']:.1f} s",
    )
    yield "evaluation", f"{seconds['evaluate']:.1f} s"


def percent(score: float | None) -> str:
    """Write a share, 0..1, in per cent; a dash where there is none."""
    return "-" if score is None else f"{100 * score:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
