"""Tables of the benchmarks, and their place between two marks of a page."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path


def quartiles(values: Sequence[float], form: str) -> str:
    """Write the median and the quartiles around it."""
    if len(values) < 2:
        return f"{values[0]:{form}}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def write(page: Path, block: str, text: str) -> None:
    """Put ``text`` between the marks of ``block`` on the page, and print it."""
    content = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {block} -->\n", f"<!-- end of {block} -->"
    before, found, rest = content.partition(begin)
    if not found:
        raise SystemExit(f"{page} has no mark <!-- {block} -->; the table was:\n{text}")
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")
    print(text)
