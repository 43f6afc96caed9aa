"""What MkDocs does not do by itself: pages from beside docs/, links to them, and formulas."""
# ruff: noqa: INP001  # MkDocs loads it by its path

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BORROWED = {"benchmarks": "benchmarks", "earthgate_geo/weights": "models"}
"""Folders whose pages stand where they are used, and where the site shows them."""

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the borrowed pages, read from where they stand."""
    for folder, place in BORROWED.items():
        for path in sorted((ROOT / folder).glob("*.md")):
            shown = File.generated(config, f"{place}/{path.name}", abs_src_path=str(path))
            files.append(shown)
    return files


def on_page_markdown(markdown: str, **_event: object) -> str:
    """Lead links into the repository's folders to the pages that the site shows of them."""
    for folder, place in BORROWED.items():
        markdown = markdown.replace(f"](../{folder}/", f"]({place}/")
    return markdown


def on_page_content(content: str, **_event: object) -> str:
    """Turn formulas into MathML, which browsers draw without a script."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return convert(html.unescape(found[2]).strip(), display=display)
