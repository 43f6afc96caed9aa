import pytest
from benchmark_files import write_image, write_label, write_places, write_potsdam, write_vaihingen
from torchgeo.datasets import Potsdam2D, Vaihingen2D

from earthgate_geo.bench.check import check_settings
from earthgate_geo.bench.settings import SETTINGS
from earthgate_geo.errors import InputError

POTSDAM = {
    split: [name.removeprefix("top_potsdam_") for name in names]
    for split, names in Potsdam2D.splits.items()
}
VAIHINGEN = {
    split: [name.removeprefix("top_mosaic_09cm_area").removesuffix(".tif") for name in names]
    for split, names in Vaihingen2D.splits.items()
}


def checked(root):
    return {entry["name"]: entry for entry in check_settings(root)["settings"]}


def test_an_empty_folder_holds_no_setting_and_every_dataset_is_missed_once(tmp_path):
    found = checked(tmp_path)

    assert list(found) == list(SETTINGS)
    assert not any(entry["found"] or entry["complete"] for entry in found.values())
    assert found["dg-d2m"]["parts"]["test"] == {
        "dataset": "massachusetts",
        "split": "test",
        "found": False,
        "complete": False,
        "images": {"found": 0, "published": 49},
        "patches": {"found": None, "published": None},
        "missing": [str(tmp_path / "Massachusetts")],
        "missing_count": 1,
        "remarks": [],
    }


def test_a_setting_is_found_once_all_its_parts_are(tmp_path):
    write_potsdam(tmp_path, POTSDAM["train"], eroded=True)
    write_vaihingen(tmp_path, VAIHINGEN["test"], eroded=True)

    found = checked(tmp_path)

    assert {name for name, entry in found.items() if entry["found"]} == {"dg-pr2v", "dg-pi2v"}
    assert list(found["da-p2v"]["parts"]) == ["source", "target", "test"]
    assert found["da-p2v"]["parts"]["target"]["missing_count"] == 32
    assert len(found["da-p2v"]["parts"]["target"]["missing"]) == 3


def test_a_setting_is_complete_when_the_published_patches_are_there(tmp_path):
    write_potsdam(tmp_path, POTSDAM["train"], eroded=True)
    write_potsdam(tmp_path, POTSDAM["test"], eroded=True)

    part = checked(tmp_path)["dg-pr2pi"]["parts"]["test"]

    assert part["images"] == {"found": 14, "published": 14}
    assert part["patches"] == {"found": 14, "published": 2016}
    assert (part["found"], part["complete"]) == (True, False)


def test_what_a_paper_does_not_count_is_complete_when_it_is_found(tmp_path):
    write_places(tmp_path, ["a", "b"])

    entry = checked(tmp_path)["places-kampala-zanzibar"]["parts"]["source"]

    assert (entry["found"], entry["complete"]) == (True, True)
    assert entry["images"] == {"found": 2, "published": None}


def test_a_file_that_cannot_be_read_is_remarked(tmp_path):
    write_potsdam(tmp_path, POTSDAM["test"], eroded=True)
    tile = tmp_path / "Potsdam" / "4_Ortho_RGBIR" / f"top_potsdam_{POTSDAM['test'][0]}_RGBIR.tif"
    tile.write_text("no raster")

    part = checked(tmp_path)["dg-pr2pi"]["parts"]["test"]

    (remark,) = part["remarks"]
    assert remark.startswith(f"{tile} ")
    assert (part["found"], part["complete"]) == (False, False)


def test_looking_changes_nothing(tmp_path):
    write_image(tmp_path / "CASID/SubMs/all_train/image/a.png")
    write_label(tmp_path / "CASID/SubMs/all_train/label/a-label.png", (1,))
    (tmp_path / "Potsdam").mkdir()
    (tmp_path / "Potsdam" / "4_Ortho_RGBIR.zip").write_bytes(b"PK")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    check_settings(tmp_path)

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_that_is_not_there_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError) as refusal:
        check_settings(tmp_path / "absent")

    assert str(refusal.value) == (
        f"{tmp_path / 'absent'} is not a folder; expected a folder of datasets."
    )


def test_the_real_places_are_found(shared_data):
    found = checked(shared_data)

    assert all(entry["found"] for name, entry in found.items() if name.startswith("places-"))
