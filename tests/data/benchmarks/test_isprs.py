from dataclasses import replace

import numpy as np
import pytest
from benchmark_files import WHITE, write_image, write_label, write_potsdam, write_vaihingen
from torchgeo.datasets import Potsdam2D, Vaihingen2D

from earthgate_geo.bench import classes, parts
from earthgate_geo.data.benchmarks.finder import find_part, open_part
from earthgate_geo.data.patches import PatchDataset, cut
from earthgate_geo.metrics import UNKNOWN

TRAIN = [name.removeprefix("top_potsdam_") for name in Potsdam2D.splits["train"]]
AREAS = [
    name.removeprefix("top_mosaic_09cm_area").removesuffix(".tif")
    for name in Vaihingen2D.splits["test"]
]
ERODED_POTSDAM = ("", "5_Labels_all_noBoundary", "5_Labels_for_participants_no_Boundary")
ERODED_VAIHINGEN = (
    "",
    "gts_eroded_for_participants",
    "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE",
)
STRAY = (252, 255, 0)


def dataset(root, part, names):
    data = open_part(root, part, classes=names)
    return PatchDataset(cut(data.pairs, part.patch_px), codes=data.codes, bands=part.bands)


def test_the_colours_are_those_of_torchgeo():
    named = {color: name for color, name in classes.ISPRS_COLORS.items() if any(color)}

    for theirs in (Potsdam2D, Vaihingen2D):
        ours = [named[color].split()[0] for color in theirs.colormap]
        assert ours == ["clutter", "impervious", "building", "low", "tree", "car"]
        assert [name.lower().split()[0].split("/")[0] for name in theirs.classes] == ours


def test_mfnet_trains_and_tests_on_the_training_tiles():
    for split, name, theirs in (
        (parts.POTSDAM_FUSED, "top_potsdam_{}", Potsdam2D.splits["train"]),
        (parts.VAIHINGEN_FUSED, "top_mosaic_09cm_area{}.tif", Vaihingen2D.splits["train"]),
    ):
        tiles = [name.format(tile) for tile in (*split["train"], *split["test"])]

        assert sorted(tiles) == sorted(theirs)


@pytest.mark.parametrize("folder", ERODED_POTSDAM)
def test_eroded_labels_of_potsdam_are_preferred_wherever_they_lie(tmp_path, folder):
    write_potsdam(tmp_path, TRAIN)
    write_potsdam(tmp_path, TRAIN, labels=folder, eroded=True)

    found = find_part(tmp_path, parts.potsdam("train", "rgb"))

    home = tmp_path / "Potsdam"
    names = Potsdam2D.splits["train"]
    assert [pair.image for pair in found.pairs] == [
        home / "4_Ortho_RGBIR" / f"{name}_RGBIR.tif" for name in names
    ]
    assert [pair.label for pair in found.pairs] == [
        home / folder / f"{name}_label_noBoundary.tif" for name in names
    ]
    assert (found.missing, found.remarks) == ((), ())


@pytest.mark.parametrize("folder", ERODED_VAIHINGEN)
def test_eroded_labels_of_vaihingen_are_preferred_wherever_they_lie(tmp_path, folder):
    write_vaihingen(tmp_path, AREAS)
    write_vaihingen(tmp_path, AREAS, labels=folder, eroded=True)

    found = find_part(tmp_path, parts.vaihingen("test"))

    home = tmp_path / "Vaihingen"
    names = Vaihingen2D.splits["test"]
    assert [pair.image for pair in found.pairs] == [home / "top" / name for name in names]
    assert [pair.label for pair in found.pairs] == [
        home / folder / name.replace(".tif", "_noBoundary.tif") for name in names
    ]
    assert (found.missing, found.remarks) == ((), ())


@pytest.mark.parametrize("folder", ["", "gts_for_participants"])
def test_complete_labels_serve_with_a_remark(tmp_path, folder):
    write_vaihingen(tmp_path, AREAS, labels=folder)

    found = find_part(tmp_path, parts.vaihingen("test"))

    assert len(found.pairs) == 17
    assert found.remarks == ("no labels *_noBoundary.tif of vaihingen, so borders count",)


def test_eroded_labels_of_some_tiles_do_not_mix_with_complete_ones(tmp_path):
    write_vaihingen(tmp_path, AREAS)
    write_vaihingen(tmp_path, AREAS[1:], eroded=True)

    found = find_part(tmp_path, parts.vaihingen("test"))

    absent = tmp_path / "Vaihingen" / f"top_mosaic_09cm_area{AREAS[0]}_noBoundary.tif"
    assert (len(found.pairs), found.missing) == (16, (str(absent),))


def test_a_setting_with_borders_takes_complete_labels(tmp_path):
    write_potsdam(tmp_path, ["6_10"])
    write_potsdam(tmp_path, ["6_10"], eroded=True)

    found = find_part(tmp_path, parts.fused("potsdam", ("6_10",), patch_px=512))

    (pair,) = found.pairs
    assert pair.label == tmp_path / "Potsdam" / "top_potsdam_6_10_label.tif"


@pytest.mark.parametrize(
    ("write", "dataset", "tile", "height"),
    [
        (
            write_potsdam,
            "potsdam",
            "6_7",
            "Potsdam/1_DSM_normalisation/dsm_potsdam_06_07_normalized_lastools.jpg",
        ),
        (write_vaihingen, "vaihingen", "30", "Vaihingen/dsm/dsm_09cm_matching_area30.tif"),
    ],
)
def test_heights_go_with_the_tiles_of_fusion_alone(tmp_path, write, dataset, tile, height):
    write(tmp_path, [tile])
    part = parts.fused(dataset, (tile,))

    (pair,) = find_part(tmp_path, part).pairs
    (alone,) = find_part(tmp_path, replace(part, heights=False)).pairs
    (tmp_path / height).unlink()

    assert (pair.height, alone.height) == (tmp_path / height, None)
    assert find_part(tmp_path, part).missing == (str(tmp_path / height),)


def test_a_missing_tile_is_named(tmp_path):
    write_potsdam(tmp_path, [tile for tile in TRAIN if tile != "2_10"])

    found = find_part(tmp_path, parts.potsdam("train", "rgb"))

    home = tmp_path / "Potsdam"
    assert len(found.pairs) == 23
    assert found.missing == (
        str(home / "4_Ortho_RGBIR" / "top_potsdam_2_10_RGBIR.tif"),
        str(home / "top_potsdam_2_10_label.tif"),
    )


def test_false_colours_are_near_infrared_red_and_green(tmp_path):
    write_potsdam(tmp_path, TRAIN)
    first = tmp_path / "Potsdam/4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif"
    red, green, _, infrared = write_image(first, bands=4) / np.float32(255)

    patches = dataset(tmp_path, parts.potsdam("train", "irrg"), classes.ISPRS)

    assert np.allclose(patches[0]["image"], np.stack([infrared, red, green]))


def test_colours_become_classes_and_borders_and_strays_unknown(tmp_path):
    write_potsdam(tmp_path, TRAIN)
    write_label(tmp_path / "Potsdam/top_potsdam_2_11_label.tif", [STRAY, WHITE])
    part = parts.potsdam("train", "rgb")

    patches = dataset(tmp_path, part, classes.ISPRS)

    assert patches[0]["mask"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, UNKNOWN, UNKNOWN]
    assert patches[1]["mask"][:3, 0].tolist() == [UNKNOWN, 0, 0]


def test_rescuenet_knows_no_trees_apart_from_plants(tmp_path):
    write_potsdam(tmp_path, TRAIN)
    part = parts.in_disaster_classes(parts.potsdam("train", "rgb"))

    patches = dataset(tmp_path, part, classes.DISASTER)

    assert patches[0]["mask"][:7, 0].tolist() == [0, 1, 2, 2, 3, 4, UNKNOWN]


def test_archives_are_left_alone(tmp_path):
    archive = tmp_path / "Potsdam" / "4_Ortho_RGBIR.zip"
    write_image(tmp_path / "Potsdam" / "unrelated.tif")
    archive.write_bytes(b"PK")

    found = find_part(tmp_path, parts.potsdam("test", "rgb"))

    assert len(found.missing) == 28
    assert sorted(path.name for path in archive.parent.iterdir()) == [
        "4_Ortho_RGBIR.zip",
        "unrelated.tif",
    ]
