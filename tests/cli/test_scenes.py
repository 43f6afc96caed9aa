from pathlib import Path

import pytest

from earthgate_cli.scenes import check_place, in_folder, scene_paths
from earthgate_geo.errors import InputError
from earthgate_geo.jobs.manifest import Manifest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.tif", "a.tif", "sub/c.tif", "odd[1].tif", ".a.tif.earthgate/x.tif"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    return tmp_path


def paths(*sources: str, out_dir: Path | None = None) -> list[str]:
    return [Path(path).as_posix() for path in scene_paths(sources, out_dir=out_dir)]


def test_files_stay_as_they_are_there_or_not() -> None:
    assert paths("b.tif", "no.tif", "odd[1].tif") == ["b.tif", "no.tif", "odd[1].tif"]


def test_a_pattern_means_its_files_in_order_without_hidden_ones(folder) -> None:
    assert paths("?.tif") == ["a.tif", "b.tif"]
    assert paths("**/[a-c].tif") == ["a.tif", "b.tif", "sub/c.tif"]
    assert paths(str(folder / "?.tif")) == [f"{folder.as_posix()}/{name}.tif" for name in "ab"]


@pytest.mark.parametrize("address", ["/vsicurl/http://host/*.tif", "https://host/a.tif?x=[1]"])
def test_an_address_is_no_pattern(address) -> None:
    assert scene_paths([address], out_dir=None) == (address,)


def test_a_list_has_a_scene_or_a_pattern_a_line(folder) -> None:
    text = "\ufeff# of May\r\nb.tif\r\n\r\n  sub/*.tif  \r\n  # a.tif\r\n"
    Path("list.txt").write_text(text, encoding="utf-8", newline="")

    assert paths("@list.txt") == ["b.tif", "sub/c.tif"]


def test_a_scene_that_is_meant_twice_is_mapped_once() -> None:
    assert paths("b.tif", "?.tif", "b.tif") == ["b.tif", "a.tif"]


def test_a_pattern_means_the_same_once_the_maps_lie_beside_the_scenes() -> None:
    before = paths("*.tif", out_dir=Path())
    outputs = {"map": "a_map.tif", "confidence": "a_map_conf.tif"}
    Manifest(Path("manifest.jsonl")).append({"map": "a_map.tif", "outputs": outputs})
    for name in outputs.values():
        Path(name).touch()

    assert paths("*.tif", out_dir=Path()) == before
    with pytest.raises(InputError) as found:
        paths("*_map.tif", out_dir=Path())
    assert str(found.value) == "only maps of . as scenes; expected images to map."


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(InputError) as found:
        paths("*.jp2")

    assert str(found.value) == "no file fits the pattern *.jp2; expected at least one scene."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read; expected a text file in UTF-8 with one scene a line."),
        (b"\xff\xfea\0", "cannot be read; expected a text file in UTF-8 with one scene a line."),
        (b"# nothing\n\n", "is empty; expected one scene a line."),
    ],
)
def test_a_list_that_says_nothing_is_refused(content, sentence) -> None:
    if content is not None:
        Path("l.txt").write_bytes(content)

    with pytest.raises(InputError) as found:
        paths("@l.txt")

    assert str(found.value) == f"the list l.txt {sentence}"


@pytest.mark.parametrize(
    ("scenes", "dst", "sentence"),
    [
        (2, Path("m.tif"), "2 scenes without --out-dir; expected a folder for their maps."),
        (
            1,
            None,
            "neither --dst nor --out-dir; expected a file for the map or a folder for maps.",
        ),
    ],
)
def test_maps_without_a_place_are_refused(scenes, dst, sentence) -> None:
    with pytest.raises(InputError) as found:
        check_place(scenes, dst=dst, out_dir=None)

    assert str(found.value) == sentence


def test_options_of_a_folder_need_one() -> None:
    given = {"name": "{n}.tif", "vector_format": None, "retry_failed": True}

    assert in_folder(Path("out"), given) == {"name": "{n}.tif", "retry_failed": True}
    with pytest.raises(InputError) as found:
        in_folder(None, given)
    assert str(found.value) == (
        "--name and --retry-failed without --out-dir; expected the folder that they are about."
    )
