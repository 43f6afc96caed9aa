import json
import re
from pathlib import Path

import pytest

from earthgate_geo.data.pairs import Pair, open_pairs
from earthgate_geo.errors import DataError, EarthgateError, InputError
from earthgate_geo.raster.classes import ClassTable, LandClass

PAIRS = {
    "fair_buildings": (1197, ("background", "building")),
    "dubai_mbrsc": (72, ("building", "land", "road", "vegetation", "water", "unlabeled")),
    "dronedeploy_sample": (16, ("building", "clutter", "vegetation", "water", "ground", "car")),
}


def furnish(root, *names, text=""):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def refusal(root, **options):
    with pytest.raises(EarthgateError) as caught:
        open_pairs(root, **options)
    return caught.value


@pytest.fixture
def manifest(tmp_path):
    furnish(tmp_path, "a/1.tif", "a/2.tif", "b/3.tif", "truth/1.png", "truth/3.png")
    lines = ["image,label,domain,year", "a/1.tif,truth/1.png,a,1", "a/2.tif,,a,2"]
    furnish(tmp_path, "manifest.csv", text="\n".join([*lines, "b/3.tif,truth/3.png,b,2"]))
    return tmp_path


def test_a_folder_pairs_the_files_of_one_name_in_their_order(tmp_path):
    furnish(tmp_path, "images/b.jpg", "images/a.TIF", "images/a.tif.aux.xml", "images/notes.txt")
    furnish(tmp_path, "labels/a.png", "labels/b.tif", "labels/c.png")

    pairs, classes = open_pairs(tmp_path)

    assert pairs == [
        Pair(tmp_path / "images" / "a.TIF", tmp_path / "labels" / "a.png"),
        Pair(tmp_path / "images" / "b.jpg", tmp_path / "labels" / "b.tif"),
    ]
    assert classes is None


def test_a_folder_without_labels_is_a_target(tmp_path):
    furnish(tmp_path, "images/a.jpg")

    assert open_pairs(tmp_path)[0] == [Pair(tmp_path / "images" / "a.jpg")]


def test_a_manifest_keeps_its_order_and_every_pair_its_line(manifest):
    pairs, _ = open_pairs(manifest)

    assert [pair.image for pair in pairs] == [
        manifest / p for p in ("a/1.tif", "a/2.tif", "b/3.tif")
    ]
    assert [pair.label for pair in pairs] == [
        manifest / "truth" / "1.png",
        None,
        manifest / "truth" / "3.png",
    ]
    assert pairs[1].row == {"image": "a/2.tif", "label": "", "domain": "a", "year": "2"}


def test_every_wish_must_hold(manifest):
    pairs, _ = open_pairs(manifest, where={"domain": "a", "year": "2"})

    assert [pair.row["image"] for pair in pairs] == ["a/2.tif"]


def test_a_manifest_from_a_spreadsheet_is_read(tmp_path):
    furnish(tmp_path, "é.tif")
    (tmp_path / "manifest.csv").write_bytes("image;label\r\n".replace(";", ",").encode("utf-8-sig"))
    with (tmp_path / "manifest.csv").open("ab") as manifest:
        manifest.write("é.tif,\r\n".encode())

    assert open_pairs(tmp_path)[0] == [
        Pair(tmp_path / "é.tif", None, {"image": "é.tif", "label": ""})
    ]


@pytest.mark.parametrize(
    "document",
    [
        {"0": "land", "1": "water"},
        {"1": "water", "0": "land", "255": "ignore", "254": "other"},
        {"classes": {"0": "land", "1": "water"}, "palette": {"land": [1, 2, 3]}},
        [{"value": 1, "name": "water"}, {"value": 0, "name": "land"}],
    ],
)
def test_classes_are_named_by_value_and_get_colours_of_their_own(tmp_path, document):
    furnish(tmp_path, "images/a.tif")
    furnish(tmp_path, "classes.json", text=json.dumps(document))

    _, classes = open_pairs(tmp_path)

    assert classes.names == ("land", "water")
    assert len({entry.color for entry in classes}) == 2


def test_colours_that_are_given_are_kept(tmp_path):
    furnish(tmp_path, "images/a.tif")
    entries = [{"value": 0, "name": "land", "color": "#AABBCC"}]
    furnish(tmp_path, "classes.json", text=json.dumps(entries))

    assert open_pairs(tmp_path)[1] == ClassTable((LandClass(0, "land", "#aabbcc"),))


@pytest.mark.parametrize("text", ["", "[1, 2]", '"water"', '{"water": 0}', '{"classes": [1]}'])
def test_a_file_that_lists_no_classes_is_refused(tmp_path, text):
    furnish(tmp_path, "images/a.tif")
    furnish(tmp_path, "classes.json", text=text)

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'classes.json'} is not a list of classes; expected "
        '{"0": "water", "1": "land"} or [{"value": 0, "name": "water"}, ...].'
    )


def test_classes_with_a_gap_are_refused(tmp_path):
    furnish(tmp_path, "images/a.tif")
    furnish(tmp_path, "classes.json", text='{"1": "land", "2": "water"}')

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'classes.json'} has class values [1, 2]; expected 0, 1, 2, ... without gaps."
    )


def test_what_is_no_folder_is_refused(tmp_path):
    error = refusal(tmp_path / "none")

    assert isinstance(error, InputError)
    assert str(error) == (
        f"{tmp_path / 'none'} is not a folder; expected a folder of training images."
    )


def test_a_folder_laid_out_otherwise_is_refused(tmp_path):
    error = refusal(tmp_path)

    assert isinstance(error, DataError)
    assert str(error) == (
        f"{tmp_path} holds neither images nor images/ nor a manifest.csv; expected scene.tif "
        "beside scene_labels.gpkg or scene_labels.tif, images/ beside labels/ with files of the "
        "same names, or a manifest.csv with the columns image and label."
    )


def test_a_folder_without_images_is_refused(tmp_path):
    furnish(tmp_path, "images/notes.txt")

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'images'} holds no image; expected files that end in .bmp, .gif, .img, .jp2, "
        ".jpeg, .jpg, .png, .tif, .tiff, .vrt, .webp."
    )


def test_an_image_without_labels_is_one_that_nobody_labelled(tmp_path):
    furnish(tmp_path, "images/a.tif", "images/b.tif", "labels/b.gpkg")

    pairs, _ = open_pairs(tmp_path)

    assert [pair.label for pair in pairs] == [None, tmp_path / "labels" / "b.gpkg"]


@pytest.mark.parametrize("ending", [".tif", ".gpkg", ".geojson", ".shp", ".fgb"])
def test_scenes_have_their_labels_beside_them(tmp_path, ending):
    furnish(tmp_path, "a.tif", f"a_labels{ending}", "a_truth.tif", "a_dsm.tif", "b.jp2", "a.txt")

    pairs, _ = open_pairs(tmp_path)

    assert pairs == [
        Pair(tmp_path / "a.tif", tmp_path / f"a_labels{ending}"),
        Pair(tmp_path / "b.jp2"),
    ]


@pytest.mark.parametrize("names", [("a.tif", "a_dsm.tif"), ("images/a.tif", "dsm/a.tif")])
def test_heights_lie_beside_their_image_and_come_where_they_are_asked_for(tmp_path, names):
    image, height = names
    furnish(tmp_path, image, height, str(Path(image).with_name("b.tif")))

    asked, _ = open_pairs(tmp_path, heights=True)
    plain, _ = open_pairs(tmp_path)

    assert [pair.height for pair in asked] == [tmp_path / height, None]
    assert asked[0].files == (tmp_path / image, tmp_path / height)
    assert [pair.height for pair in plain] == [None, None]


def test_a_manifest_names_heights_in_a_column_of_their_own(tmp_path):
    furnish(tmp_path, "1.tif", "2.tif", "all.vrt")
    furnish(tmp_path, "manifest.csv", text="image,dsm\n1.tif,all.vrt\n2.tif,\n")

    pairs, _ = open_pairs(tmp_path, heights=True)

    assert [(pair.height, pair.label) for pair in pairs] == [
        (tmp_path / "all.vrt", None),
        (None, None),
    ]


def test_heights_that_are_not_there_are_missed_only_where_they_are_asked_for(tmp_path):
    furnish(tmp_path, "1.tif")
    furnish(tmp_path, "manifest.csv", text="image,dsm\n1.tif,lost.tif\n")

    assert len(open_pairs(tmp_path)[0]) == 1
    assert str(refusal(tmp_path, heights=True)) == (
        f"{tmp_path / 'manifest.csv'} names {tmp_path / 'lost.tif'}, which is not there; expected "
        "paths of files, from the folder of the manifest."
    )


def test_two_files_of_heights_for_one_image_are_refused(tmp_path):
    furnish(tmp_path, "a.tif", "a_dsm.tif", "a_dsm.vrt")

    assert str(refusal(tmp_path, heights=True)) == (
        f"{tmp_path / 'a_dsm.tif'} and {tmp_path / 'a_dsm.vrt'} are heights of the same image; "
        "expected one file of each name."
    )


@pytest.mark.parametrize("name", ["a/1.tif", "truth/3.png"])
def test_a_file_that_the_manifest_names_and_is_not_there_is_named(manifest, name):
    (manifest / name).unlink()

    assert str(refusal(manifest)) == (
        f"{manifest / 'manifest.csv'} names {manifest / name}, which is not there; expected paths "
        "of files, from the folder of the manifest."
    )


def test_all_files_that_the_manifest_names_and_are_not_there_are_listed(manifest):
    for name in ("a/1.tif", "truth/3.png"):
        (manifest / name).unlink()

    error = refusal(manifest)

    assert str(error) == (
        f"{manifest / 'manifest.csv'} names 2 files that are not there; expected paths of files, "
        "from the folder of the manifest."
    )
    assert error.__notes__ == [
        f"{manifest / 'a' / '1.tif'} is not there.",
        f"{manifest / 'truth' / '3.png'} is not there.",
    ]


def test_a_wish_that_no_line_fulfils_names_the_values_there_are(manifest):
    error = refusal(manifest, where={"domain": "b", "year": "1"})

    assert isinstance(error, InputError)
    assert str(error) == (
        f"no line of {manifest / 'manifest.csv'} has domain=b, year=1; expected year among 2."
    )


def test_a_wish_for_a_column_that_is_not_there_names_those_that_are(manifest):
    assert str(refusal(manifest, where={"place": "b"})) == (
        f"{manifest / 'manifest.csv'} has no column place; expected one of image, label, domain, "
        "year."
    )


def test_a_wish_without_a_manifest_is_refused(tmp_path):
    furnish(tmp_path, "images/a.tif")

    assert str(refusal(tmp_path, where={"domain": "b"})) == (
        f"a choice by domain=b in {tmp_path}, which has no manifest.csv; expected a manifest with "
        "that column."
    )


def test_a_manifest_without_a_line_is_refused(tmp_path):
    furnish(tmp_path, "manifest.csv", text="image,label\n")

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'manifest.csv'} lists no image; expected one line per image."
    )


def test_a_manifest_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_bytes("image\né.tif".encode("latin-1"))

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'manifest.csv'} is not a table in UTF-8; expected comma-separated text. "
        "Save it again as CSV UTF-8."
    )


def test_two_label_files_for_an_image_are_refused(tmp_path):
    furnish(tmp_path, "images/a.tif", "labels/a.png", "labels/a.tif")

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'labels' / 'a.png'} and {tmp_path / 'labels' / 'a.tif'} are labels of the "
        "same image; expected one file of each name."
    )


def test_two_images_of_the_same_labels_are_refused(tmp_path):
    furnish(tmp_path, "images/a.tif", "images/a.png", "labels/a.gpkg")

    assert str(refusal(tmp_path)) == (
        f"{tmp_path / 'images' / 'a.png'} and {tmp_path / 'images' / 'a.tif'} have the same "
        f"labels, {tmp_path / 'labels' / 'a.gpkg'}; expected one image of each name. Move the "
        "copy elsewhere."
    )


def test_images_of_one_name_without_labels_are_a_target(tmp_path):
    furnish(tmp_path, "a.tif", "a.png")

    assert [pair.image.name for pair in open_pairs(tmp_path)[0]] == ["a.png", "a.tif"]


@pytest.mark.parametrize("name", PAIRS)
def test_real_pairs_are_listed_with_their_classes(shared_data, name):
    pairs, classes = open_pairs(shared_data / name)

    assert (len(pairs), classes.names) == PAIRS[name]
    assert all(pair.label.is_file() for pair in pairs)


def test_real_pairs_are_chosen_by_place(shared_data):
    pairs, _ = open_pairs(shared_data / "fair_buildings", where={"domain": "catanduanes_ph"})

    assert len(pairs) == 84
    assert all(re.fullmatch(r"\d+-\d+", pair.row["ground"]) for pair in pairs)


def test_a_manifest_of_other_columns_is_refused(shared_data):
    folder = shared_data / "lidar_rgb_ndsm"

    assert str(refusal(folder)) == (
        f"{folder / 'manifest.csv'} has the columns rgb, ndsm, label, domain; expected a column "
        "image, and label where there are labels."
    )
