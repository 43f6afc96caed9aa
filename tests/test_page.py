import hashlib
import re
from base64 import b64decode, b64encode
from io import BytesIO

import numpy as np
from PIL import Image

from earthgate_geo.page import shaded, show_command, show_picture, whole_page, write_page


def empty_page() -> str:
    return whole_page("town", brand="a test", header="", sections=[])


def test_pictures_come_back_pixel_for_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)

    (coded,) = re.findall(r"base64,([^\"]+)", show_picture(pixels, "the scene"))

    assert np.array_equal(np.asarray(Image.open(BytesIO(b64decode(coded)))), pixels)


def test_the_page_allows_one_script_which_it_holds_and_nothing_from_elsewhere() -> None:
    text = empty_page()

    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = re.findall('Content-Security-Policy" content="([^"]+)"', text)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert text.index(policy) < text.index("<style>")


def test_confidence_has_the_colours_of_its_scale_and_grey_where_there_is_none() -> None:
    picture = shaded(np.array([[0.2, 1.0, np.nan]], np.float32), low=0.2)

    assert picture[0].tolist() == [[0xFF, 0xF3, 0xC4], [0x3A, 0x2A, 0x66], [128, 128, 128]]


def test_a_command_stands_there_as_it_was_typed() -> None:
    typed = "earthgate adapt --src 'a \"b\"  <c> é城.tif'"

    assert show_command(typed) == (
        "<pre>earthgate adapt --src &#x27;a &quot;b&quot;  &lt;c&gt; é城.tif&#x27;</pre>"
    )
    assert show_command("") == ""


def test_a_name_that_is_no_text_does_not_spoil_the_page(tmp_path) -> None:
    name = b"caf\xe9".decode(errors="surrogateescape")

    write_page(tmp_path / "p.html", whole_page(name, brand="", header="", sections=[]))

    assert "<h1>caf\\udce9</h1>" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]
