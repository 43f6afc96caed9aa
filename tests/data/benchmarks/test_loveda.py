from benchmark_files import write_image, write_loveda

from earthgate_geo.bench import classes, parts
from earthgate_geo.data.benchmarks.finder import find_part, open_part
from earthgate_geo.data.patches import Patch, PatchDataset
from earthgate_geo.metrics import UNKNOWN


def test_a_split_holds_the_images_of_its_scene_alone(tmp_path):
    write_loveda(tmp_path, "Train", "Rural", ["1", "10", "2"])
    write_loveda(tmp_path, "Train", "Urban", ["3"])
    write_loveda(tmp_path, "Val", "Rural", ["4"])

    found = find_part(tmp_path, parts.loveda("train/rural"))

    home = tmp_path / "LoveDA" / "Train" / "Rural"
    assert [(pair.image, pair.label) for pair in found.pairs] == [
        (home / "images_png" / name, home / "masks_png" / name)
        for name in ("1.png", "10.png", "2.png")
    ]
    assert found.missing == ()


def test_codes_become_classes_and_nothing_unknown(tmp_path):
    write_loveda(tmp_path, "Val", "Urban", ["1"])

    data = open_part(tmp_path, parts.loveda("val/urban"), classes=classes.LOVEDA)
    patches = PatchDataset([Patch(pair) for pair in data.pairs], codes=data.codes)

    assert patches[0]["mask"][:, 0].tolist() == [UNKNOWN, 0, 1, 2, 3, 4, 5, 6]


def test_an_image_without_labels_is_missing_them(tmp_path):
    write_loveda(tmp_path, "Val", "Urban", ["1"])
    home = tmp_path / "LoveDA" / "Val" / "Urban"
    write_image(home / "images_png" / "2.png")

    found = find_part(tmp_path, parts.loveda("val/urban"))

    assert len(found.pairs) == 1
    assert found.missing == (str(home / "masks_png" / "2.png"),)


def test_folders_that_are_not_there_are_missing(tmp_path):
    (tmp_path / "LoveDA").mkdir()

    found = find_part(tmp_path, parts.loveda("val/urban"))

    home = tmp_path / "LoveDA" / "Val" / "Urban"
    assert found.missing == (str(home / "images_png"), str(home / "masks_png"))
