import ast
import os
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path

import click
import pytest
from chromium import browser

from earthgate_cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.compile(r"^### (.+)\n\n> `(?:Error|Warning): (.+)`$", re.MULTILINE)
SOURCES = [
    *(ROOT / "earthgate_geo").rglob("*.py"),
    *(ROOT / "cli" / "earthgate_cli").rglob("*.py"),
]
ELSEWHERE = re.compile(r"(?:https?:|wss?:)?//")

# What --help raises, and a command that prose mentions without all it needs.
HALVES = (click.exceptions.Exit, click.MissingParameter, click.BadOptionUsage)

# What only a sentence fits of which nothing is known.
NONSENSE = [
    "",
    "A has b.",
    "A has b; expected c.",
    "A has b. Do it.",
    "A has b; expected c. Do it.",
]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def words_of(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def commands(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for is_end, words in groupby(words_of(line), key=lambda word: set(word) <= set(";&|")):
                program, *arguments = words
                if not is_end and Path(program).name == "earthgate":
                    yield arguments


def mentioned(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for line in re.findall(r"(?<!`)`earthgate( [^`]*)`", prose):
        yield words_of(line.replace("\n", " ").replace("...", ""))


def parse(words):
    command, words = cli, list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    command.make_context("earthgate", words)


def regex(node, named):
    """What an expression of strings can give; anything where a value is not known."""
    match node:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return "".join(regex(part, named) for part in parts)
        case ast.FormattedValue(value=ast.Name() | ast.IfExp() as value):
            return regex(value, named)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return regex(left, named) + regex(right, named)
        case ast.IfExp(body=body, orelse=orelse):
            return either([regex(body, named), regex(orelse, named)])
        case ast.BoolOp(op=ast.Or(), values=values):
            return either([regex(value, named) for value in values])
        case ast.Name(id=name) | ast.Attribute(attr="note" as name) if name in named:
            return either([regex(value, {}) for value in named[name]])
    return ".+"


def either(patterns):
    known = [each for each in patterns if each != ".+"]
    return f"(?:{'|'.join(known)})" if known else ".+"


def sentence(call, named):
    """As ``EarthgateError`` writes it of its facts, or as a warning stands in its call."""
    facts = {keyword.arg: keyword.value for keyword in call.keywords}
    if "found" in facts:
        told = {"expected": "", "fix": ""}
        for name, form in (("expected", "; expected {}"), ("fix", r" {}\.")):
            if name in facts:
                may_be_empty = isinstance(facts[name], ast.Name)  # an argument of a function
                said = form.format(regex(facts[name], named))
                told[name] = f"(?:{said})?" if may_be_empty else said
        return rf"{regex(facts['found'], named)}{told['expected']}\.{told['fix']}"
    is_warning = isinstance(call.func, ast.Attribute) and call.func.attr == "warn" and call.args
    return regex(call.args[0], named) if is_warning else ""


@pytest.fixture(scope="module")
def sentences():
    """Patterns of all sentences that the program can print."""
    modules = [[*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for path in SOURCES]
    notes = [value for nodes in modules for name, value in named_values(nodes) if name == "note"]
    found = []
    for nodes in modules:
        named = defaultdict(list, {"note": notes})
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        for name, value in [*named_values(nodes), *facts_passed_on(nodes, calls)]:
            named[name].append(value)
        found += [sentence(call, dict(named)) for call in calls]
    return {each for each in found if not any(re.fullmatch(each, line) for line in NONSENSE)}


def named_values(nodes):
    for node in nodes:
        if isinstance(node, ast.Assign):
            yield from (
                (each.id, node.value) for each in node.targets if isinstance(each, ast.Name)
            )


def facts_passed_on(nodes, calls):
    """Facts that one function of a module hands to another."""
    functions = {node.name: node.args.args for node in nodes if isinstance(node, ast.FunctionDef)}
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id in functions:
            taken = [each.arg for each in functions[call.func.id]]
            given = [(keyword.arg, keyword.value) for keyword in call.keywords]
            for name, value in [*zip(taken, call.args, strict=False), *given]:
                if name in ("found", "expected", "fix"):
                    yield name, value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_has_these_options(page):
    for words in commands(page):
        parse(words)
    for words in mentioned(page):
        with suppress(*HALVES):
            parse(words)


def test_the_pages_show_commands():
    shown = [page.name for page in PAGES if list(commands(page))]

    assert {"README.md", "quickstart.md", "few_labels.md", "clusters.md", "stac.md"} <= set(shown)


@pytest.mark.parametrize(
    "line", ["earthgate frobnicate", "earthgate map --src a.tif --no-such-option"]
)
def test_a_command_that_does_not_exist_is_noticed(line):
    with pytest.raises((KeyError, click.UsageError)):
        parse(words_of(line)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_compiles(page):
    for block in blocks(page, "python"):
        if ">>>" not in block:  # what is a doctest runs elsewhere
            compile(block, page.name, "exec")


@pytest.mark.parametrize(("heading", "line"), QUOTED.findall(TROUBLES))
def test_a_sentence_among_the_troubles_is_one_that_the_program_prints(heading, line, sentences):
    assert line.startswith(heading)
    assert any(re.fullmatch(each, line) for each in sentences)


def test_every_trouble_is_headed_by_its_sentence():
    assert len(QUOTED.findall(TROUBLES)) == len(re.findall(r"^### ", TROUBLES, re.M)) > 40


@pytest.mark.parametrize("line", ["scene.tif is too blue; expected less.", "an error of the disk."])
def test_a_sentence_that_the_program_does_not_print_is_noticed(line, sentences):
    assert not any(re.fullmatch(each, line) for each in sentences)


class Resources(HTMLParser):
    """What a browser loads with a page, and how many formulas it draws."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.formulas = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        loads = [attributes.get(name) for name in ("src", "srcset", "poster", "data")]
        if tag == "link":
            loads.append(attributes.get("href"))
        self.loaded += [link for link in loads if link]
        self.formulas += tag == "math"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for path, text in pages.items():
        assert not [link for link in Resources(text).loaded if ELSEWHERE.match(link)], path
        assert str(ROOT) not in text, path
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"""(?:@import|url\()\s*["']?(?:https?:)?//""", text), style
    assert {"index.html", "places.html", "earthgate-tiny.html"} <= {path.name for path in pages}
    assert not (site / "hooks.py").exists()


@pytest.mark.slow
def test_formulas_are_drawn_without_a_script(site):
    page = (site / "method.html").read_text(encoding="utf-8")

    assert Resources(page).formulas > 15
    assert not re.search(r"\\\[|arithmatex|<merror", page)


@pytest.mark.slow
def test_pages_fit_on_a_phone_and_ask_for_nothing_from_elsewhere(site, tmp_path):
    with browser(tmp_path) as chromium:
        for page in sorted(site.rglob("*.html")):
            chromium.open(page, width=390)

            assert chromium.says("document.scrollingElement.scrollWidth") == 390, page
            assert not [link for link in chromium.fetched() if ELSEWHERE.match(link)], page
