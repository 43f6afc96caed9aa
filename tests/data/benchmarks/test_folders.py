import numpy as np
import pytest
from benchmark_files import AERIAL, SATELLITE, write_heights, write_image, write_label

from earthgate_geo.bench import classes, parts
from earthgate_geo.data.benchmarks.finder import find_part, open_part
from earthgate_geo.data.patches import Patch, PatchDataset
from earthgate_geo.metrics import UNKNOWN

# Part, classes, image and labels below the root by name, codes, and the classes of these.
DATASETS = {
    "casid": (
        parts.casid("sub", "all_train"),
        classes.CASID,
        "CASID/SubMs/all_train/image/{}.png",
        "CASID/SubMs/all_train/label/{}-label.png",
        (0, 1, 2, 3, 4, 5),
        (UNKNOWN, 0, 1, 2, 3, 4),
    ),
    "rescuenet": (
        parts.rescuenet(),
        classes.DISASTER,
        "RescueNet/test/test-org-img/{}.jpg",
        "RescueNet/test/test-label-img/{}_lab.png",
        (0, 1, 2, 5, 6, 7, 8, 9, 10),
        (UNKNOWN, 4, 1, 1, 3, 0, 0, 2, 4),
    ),
    "whu-aerial": (
        parts.whu("aerial", "val", 1036),
        classes.BUILDING,
        AERIAL + "/val/image/{}.tif",
        AERIAL + "/val/label/{}.tif",
        (0, 255),
        (0, 1),
    ),
    "whu-satellite": (
        parts.whu("satellite", "test", 3726),
        classes.BUILDING,
        SATELLITE + "/test/image/{}.tif",
        SATELLITE + "/test/label/{}.tif",
        (0, 255),
        (0, 1),
    ),
    "deepglobe": (
        parts.roads("deepglobe", "train", 6226),
        classes.ROAD,
        "DeepGlobe/train/{}_sat.jpg",
        "DeepGlobe/train/{}_mask.png",
        ((0, 0, 0), (127, 127, 127), (128, 128, 128), (255, 255, 255)),
        (0, 0, 1, 1),
    ),
    "massachusetts": (
        parts.roads("massachusetts", "test", 49),
        classes.ROAD,
        "Massachusetts/tiff/test/{}.tiff",
        "Massachusetts/tiff/test_labels/{}.tif",
        (0, 255),
        (0, 1),
    ),
    "hunan": (
        parts.hunan("test", 50),
        classes.HUNAN,
        "HunanMultimodalDataset/test/s2/s2_{}.tif",
        "HunanMultimodalDataset/test/lc/lc_{}.tif",
        (0, 1, 2, 3, 4, 5, 6, 8, 9),
        (UNKNOWN, 0, 1, 2, UNKNOWN, 3, 4, 5, 6),
    ),
}


def height_file(root, name):
    """Where the heights of a patch of MMHunan lie."""
    return root / f"HunanMultimodalDataset/test/topo/topo_{name}.tif"


@pytest.mark.parametrize("name", DATASETS)
def test_images_and_labels_are_paired_as_the_makers_lay_them_out(tmp_path, name):
    part, _, image, label, codes, _ = DATASETS[name]
    for stem in ("b", "a"):
        write_image(tmp_path / image.format(stem))
        write_label(tmp_path / label.format(stem), codes)
        if part.heights:
            write_heights(height_file(tmp_path, stem))
    (tmp_path / image).with_name("Thumbs.db").touch()

    found = find_part(tmp_path, part)

    assert [(pair.image, pair.label) for pair in found.pairs] == [
        (tmp_path / image.format(stem), tmp_path / label.format(stem)) for stem in ("a", "b")
    ]
    assert (found.missing, found.remarks) == ((), ())


@pytest.mark.parametrize("name", DATASETS)
def test_label_codes_become_classes(tmp_path, name):
    part, names, image, label, codes, indices = DATASETS[name]
    write_image(tmp_path / image.format("a"), bands=max(part.bands), side_px=len(codes))
    write_label(tmp_path / label.format("a"), codes, side_px=len(codes))
    if part.heights:
        write_heights(height_file(tmp_path, "a"), side_px=len(codes))

    data = open_part(tmp_path, part, classes=names)
    patches = PatchDataset(
        [Patch(pair) for pair in data.pairs],
        codes=data.codes,
        bands=part.bands,
        scaling=part.scaling,
    )

    mask = patches[0]["mask"].numpy()
    assert np.array_equal(mask, np.repeat([indices], len(codes), axis=0).T)


def test_an_image_without_labels_is_missing_them(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"CASID/SubMs/all_train/image/{name}.png")
    write_label(tmp_path / "CASID/SubMs/all_train/label/b-label.png", (1,))

    found = find_part(tmp_path, parts.casid("sub", "all_train"))

    assert [pair.image.name for pair in found.pairs] == ["b.png"]
    assert found.missing == (str(tmp_path / "CASID/SubMs/all_train/label/a-label.png"),)


def test_a_part_of_two_splits_holds_both(tmp_path):
    for split, name in (("train", "7"), ("val", "5"), ("test", "6")):
        write_image(tmp_path / f"HunanMultimodalDataset/{split}/s2/s2_{name}.tif", bands=4)
        write_label(tmp_path / f"HunanMultimodalDataset/{split}/lc/lc_{name}.tif", (1,))
        write_heights(tmp_path / f"HunanMultimodalDataset/{split}/topo/topo_{name}.tif")

    found = find_part(tmp_path, parts.hunan("train+val", 450))

    assert [pair.image.name for pair in found.pairs] == ["s2_7.tif", "s2_5.tif"]


def test_a_patch_without_heights_is_missing_them(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"HunanMultimodalDataset/test/s2/s2_{name}.tif", bands=4)
        write_label(tmp_path / f"HunanMultimodalDataset/test/lc/lc_{name}.tif", (1,))
    write_heights(height_file(tmp_path, "a"))

    found = find_part(tmp_path, parts.hunan("test", 50))

    assert [pair.height for pair in found.pairs] == [height_file(tmp_path, "a")]
    assert found.missing == (str(height_file(tmp_path, "b")),)


def test_the_first_band_of_a_topography_holds_the_heights(tmp_path):
    part = parts.hunan("test", 50)
    write_image(tmp_path / "HunanMultimodalDataset/test/s2/s2_a.tif", bands=4)
    write_label(tmp_path / "HunanMultimodalDataset/test/lc/lc_a.tif", (1,))
    write_heights(height_file(tmp_path, "a"), bands=2, dtype="int16")

    data = open_part(tmp_path, part, classes=classes.HUNAN)
    patches = [Patch(pair) for pair in data.pairs]
    item = PatchDataset(
        patches, codes=data.codes, bands=part.bands, scaling="scene", heights=part.heights
    )[0]

    heights = item["image"][3].flatten()
    assert (heights[0], heights[-1]) == (0, 1)
    assert (heights.diff() >= 0).all()


def test_folders_that_are_not_there_are_missing(tmp_path):
    (tmp_path / "Massachusetts/tiff/test").mkdir(parents=True)

    found = find_part(tmp_path, parts.roads("massachusetts", "test", 49))

    assert found.missing == (str(tmp_path / "Massachusetts/tiff/test_labels"),)
