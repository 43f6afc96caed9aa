import pytest
from benchmark_files import write_loveda, write_places

from earthgate_geo.bench import classes, parts
from earthgate_geo.bench.settings import SETTINGS
from earthgate_geo.data.benchmarks.finder import find_part, open_part
from earthgate_geo.errors import ClassNameError, DataError

PARTS = {p.dataset: p for setting in SETTINGS.values() for p in setting.parts.values()}


@pytest.mark.parametrize("dataset", PARTS)
def test_a_dataset_that_is_not_there_is_missing_as_one_folder(tmp_path, dataset):
    found = find_part(tmp_path, PARTS[dataset])

    (folder,) = found.missing
    assert found.pairs == ()
    assert folder.startswith(str(tmp_path))


def test_what_is_missing_is_told_in_one_sentence(tmp_path):
    (tmp_path / "LoveDA").mkdir()

    with pytest.raises(DataError) as refusal:
        open_part(tmp_path, parts.loveda("val/urban"), classes=classes.LOVEDA)

    folder = tmp_path / "LoveDA" / "Val" / "Urban" / "images_png"
    assert str(refusal.value) == (
        f"{folder} is missing, and 1 more; expected loveda val/urban as it is published. "
        f"See what is there: earthgate bench --check {tmp_path}."
    )


def test_a_folder_without_images_is_told_in_one_sentence(tmp_path):
    home = tmp_path / "CASID" / "SubMs" / "all_test"
    for name in ("image", "label"):
        (home / name).mkdir(parents=True)

    with pytest.raises(DataError) as refusal:
        open_part(tmp_path, parts.casid("sub", "all_test"), classes=classes.CASID)

    assert str(refusal.value) == (
        "an image of casid SubMs/all_test is missing; expected casid SubMs/all_test as it is "
        f"published. See what is there: earthgate bench --check {tmp_path}."
    )


def test_classes_that_a_model_lacks_are_told_before_any_file_is_looked_for(tmp_path):
    with pytest.raises(ClassNameError) as refusal:
        open_part(tmp_path, parts.loveda("val/urban"), classes=("building", "road", "water"))

    assert str(refusal.value) == (
        "loveda labels agricultural, background, barren, forest; expected some of building, "
        "road, water."
    )


def test_classes_may_be_in_any_order_and_more_than_the_labels_name(tmp_path):
    write_places(tmp_path, ["a"])
    write_loveda(tmp_path, "Val", "Urban", ["1"])
    names = ("ice", *reversed(classes.LOVEDA))

    place = open_part(tmp_path, parts.place("kampala", "all"), classes=names)
    city = open_part(tmp_path, parts.loveda("val/urban"), classes=names)

    assert place.codes.values == {0: 254, 1: 6}
    assert city.codes.values == {0: 255, 1: 7, 2: 6, 3: 5, 4: 4, 5: 3, 6: 2, 7: 1}
