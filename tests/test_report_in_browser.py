from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, browser
from PIL import Image
from test_report import document, shown

from earthgate_geo.report import write_report

pytestmark = pytest.mark.slow

RED, BLUE = (200, 30, 40), (40, 60, 200)
DESK_PX, PHONE_PX = 1280, 390
AT = "document.querySelector('.pair').style.getPropertyValue('--at')"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Write a report whose names are as bad as file names can be, before red and after blue."""
    nasty = """a '"><img src=x onerror=alert(1)><script>alert(2)</script> é城"""
    told = document(
        scene=nasty,
        command=f"earthgate adapt --src {nasty} " + 40 * "long",
        provenance={"digest": 64 * "f", nasty: [nasty]},
        scores={f"{layer}.{kind}": 0.1 for kind in ("spatial", "semantic") for layer in range(24)},
        curves={"loss": [2.0, 1.5, 1.7]},
    )
    before, after = (np.full((512, 512, 3), color, np.uint8) for color in (RED, BLUE))
    confidence = np.full((512, 512), 0.8, np.float32)
    path = tmp_path_factory.mktemp("report") / "r.html"
    write_report(path, told, shown(before=before, after=after, confidence=confidence))
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def seen(chromium: Browser, share: float) -> tuple[int, ...]:
    """Return the colour there in the slider's picture, from the left edge 0 to the right 1."""
    box = chromium.says(
        "JSON.parse(JSON.stringify(document.querySelector('.pair img').getBoundingClientRect()))"
    )
    with Image.open(BytesIO(chromium.photograph())) as shot:
        where = (box["x"] + share * box["width"], box["y"] + 0.8 * box["height"])
        return shot.convert("RGB").getpixel(tuple(map(int, where)))


def test_the_slider_moves_by_keys_and_by_a_click(chromium, page) -> None:
    chromium.open(page, width=DESK_PX)
    assert (seen(chromium, 0.3), seen(chromium, 0.7)) == (RED, BLUE)

    chromium.press("Tab")
    assert chromium.says("document.activeElement.type") == "range"
    chromium.press("ArrowRight")
    assert chromium.says(AT) == "51%"
    chromium.press("End")
    assert (seen(chromium, 0.3), seen(chromium, 0.7)) == (RED, RED)
    chromium.press("Home")
    assert (seen(chromium, 0.3), seen(chromium, 0.7)) == (BLUE, BLUE)

    box = chromium.says(
        "JSON.parse(JSON.stringify(document.querySelector('.pair').getBoundingClientRect()))"
    )
    chromium.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    assert (seen(chromium, 0.3), seen(chromium, 0.7)) == (RED, BLUE)


@pytest.mark.parametrize("width", [DESK_PX, PHONE_PX, 320])
def test_nothing_is_fetched_nothing_fails_and_nothing_sticks_out(chromium, page, width) -> None:
    chromium.open(page, width=width)

    own, *inside = chromium.fetched()
    assert own == page.as_uri()
    assert inside
    assert all(url.startswith("data:image/png;base64,") for url in inside)
    assert chromium.complaints() == []
    assert chromium.says("document.documentElement.scrollWidth") == width


def test_a_wide_gate_scrolls_within_its_card(chromium, page) -> None:
    chromium.open(page, width=PHONE_PX)

    scrolled_px = chromium.says(
        "(box => (box.scrollLeft = 100, box.scrollLeft))"
        "(document.querySelector('.gate').parentNode)"
    )
    assert scrolled_px == 100


def test_what_a_name_smuggles_in_would_neither_run_nor_fetch(chromium, page) -> None:
    chromium.open(page, width=DESK_PX)

    refused = chromium.says(
        """new Promise(done => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", event => {
                seen.push(event.effectiveDirective);
                if (seen.length == 2) done(seen.sort());
            });
            const image = new Image();
            image.src = "file:///etc/hostname";
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken'";
            document.body.append(script, image);
            setTimeout(() => done(seen), 5000);
        })"""
    )

    assert refused == ["img-src", "script-src-elem"]
    assert "taken" not in chromium.says("document.title")
    assert chromium.says("document.querySelectorAll('h1 *, .facts img').length") == 0


def test_without_scripts_both_maps_stand_side_by_side(chromium, page) -> None:
    chromium.open(page, width=DESK_PX, scripts=False)

    before, after = chromium.says(
        "[...document.querySelectorAll('.pair img')].map(image => image.getBoundingClientRect().x)"
    )
    assert after > before + 200
    assert (
        chromium.says("getComputedStyle(document.querySelector('.pair input')).display") == "none"
    )


def test_dark_and_light_follow_the_reader_and_can_both_be_read(chromium, page) -> None:
    found = {}
    for dark in (False, True):
        chromium.open(page, width=PHONE_PX, dark=dark)
        with Image.open(BytesIO(chromium.photograph())) as shot:
            found[dark] = shot.convert("RGB").getpixel((2, 2))
        for part in ("body", ".note", "th", ".badge"):
            assert contrast(chromium, part) >= 4.5  # WCAG 2.2, level AA
    assert min(found[False]) > 200
    assert max(found[True]) < 60


def contrast(chromium: Browser, part: str) -> float:
    """Return the contrast of a text to the card, as WCAG 2.2 defines it."""

    def luminance(style: str) -> float:
        numbers = style[style.index("(") + 1 : -1].replace(",", " ").split()[:3]
        linear = [
            value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
            for value in (int(number) / 255 for number in numbers)
        ]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    colors = (
        f"getComputedStyle(document.querySelector('{part}')).color",
        ("getComputedStyle(document.querySelector('section')).backgroundColor"),
    )
    low, high = sorted(luminance(chromium.says(color)) for color in colors)
    return (high + 0.05) / (low + 0.05)


def test_the_command_is_copied_as_it_was_typed(chromium, page) -> None:
    chromium.open(page, width=DESK_PX)

    chromium.says("document.querySelector('button').click()")

    typed = chromium.says("document.querySelector('pre').textContent")
    assert typed.startswith("earthgate adapt --src a '\"><img src=x onerror=alert(1)><script>")
    assert chromium.says("getSelection().toString()") == typed
    assert chromium.says("document.querySelector('button').textContent") in ("Copied", "Selected")
