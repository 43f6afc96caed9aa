import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from earthgate_geo.errors import OutputError
from earthgate_geo.raster.destination import Destination, publish, sidecars


def refused(path, *, overwrite=False, inputs=()):
    with pytest.raises(OutputError) as refusal:
        Destination(path, overwrite=overwrite, inputs=inputs).check()
    return str(refusal.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_checking_touches_nothing(tmp_path):
    Destination(tmp_path / "map.tif", overwrite=False, inputs=["scene.tif"]).check()

    assert names(tmp_path) == []


def test_a_missing_folder_is_refused(tmp_path):
    path = tmp_path / "nowhere" / "map.tif"

    assert refused(path) == f"the folder of {path} does not exist. Create it."


def test_a_folder_is_no_destination(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is a folder; expected the name of a file."


@pytest.mark.parametrize("name", ["map.tif", "map.qml", "map.tif.aux.xml", "map.tif.ovr"])
def test_an_output_or_sidecar_that_exists_is_refused_without_overwrite(tmp_path, name):
    (tmp_path / name).write_text("old")
    path = tmp_path / "map.tif"

    assert refused(path) == (
        f"{tmp_path / name} exists. Pass --overwrite to replace it, or give another name."
    )
    Destination(path, overwrite=True).check()


def test_a_raster_style_does_not_stand_in_the_way_of_other_outputs(tmp_path):
    (tmp_path / "map.qml").write_text("style of map.tif")

    Destination(tmp_path / "map.gpkg", overwrite=False).check()
    Destination(tmp_path / "map.html", overwrite=False).check()


def test_an_input_is_refused_even_to_overwrite_and_under_another_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scene.tif").write_text("pixels")
    Path("link.tif").symlink_to("scene.tif")
    sentence = "{} is an input of this run; expected another file for the output."

    for path, source in [
        ("scene.tif", tmp_path / "scene.tif"),
        (tmp_path / "scene.tif", "./scene.tif"),
        ("link.tif", "scene.tif"),
        ("scene.tif", "link.tif"),
    ]:
        told = refused(path, overwrite=True, inputs=["missing.tif", source])
        assert told == sentence.format(path)


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="nothing is read-only to this user"
)
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)

    assert refused(tmp_path / "map.tif") == (
        f"the folder {tmp_path} is not writable. Write somewhere else."
    )


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_refused_on_entering():
    with pytest.raises(OutputError) as refusal, Destination("/proc/map.tif", overwrite=False):
        pass

    assert str(refusal.value) == "the folder /proc is not writable. Write somewhere else."


def test_the_scratch_folder_lives_as_long_as_the_run(tmp_path):
    with Destination(tmp_path / "map.tif", overwrite=False) as destination:
        (destination.scratch / "rows.tif").write_text("half")
        (destination.scratch / "strips").mkdir()
        assert names(tmp_path) == [".map.tif.earthgate"]

    assert names(tmp_path) == []


def test_the_scratch_folder_goes_when_the_run_fails(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        Destination(tmp_path / "map.tif", overwrite=False) as destination,
    ):
        (destination.scratch / "rows.tif").write_text(f"{1 / 0}")

    assert names(tmp_path) == []


def test_what_is_kept_waits_for_a_run_that_succeeds(tmp_path):
    path = tmp_path / "model.safetensors"
    with (
        pytest.raises(ZeroDivisionError),
        Destination(path, overwrite=False, keep="state") as destination,
    ):
        1 / (destination.scratch / "state").write_text("")
    (tmp_path / ".model.safetensors.earthgate" / "state").write_text("half")
    assert names(tmp_path / ".model.safetensors.earthgate") == ["state"]

    with Destination(path, overwrite=False, keep="state") as destination:
        assert (destination.scratch / "state").read_text() == "half"

    assert names(tmp_path) == []


def test_a_failed_run_with_nothing_to_keep_leaves_nothing(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        Destination(tmp_path / "model.safetensors", overwrite=False, keep="state"),
    ):
        _ = 1 / 0

    assert names(tmp_path) == []


def test_a_second_run_is_refused_and_leaves_the_first_alone(tmp_path):
    path = tmp_path / "map.tif"
    with Destination(path, overwrite=False) as first:
        (first.scratch / "rows.tif").write_text("half")

        with pytest.raises(OutputError) as refusal, Destination(path, overwrite=True):
            pass

        assert (first.scratch / "rows.tif").read_text() == "half"
    assert str(refusal.value) == (
        f"another run is writing {path} (it holds {tmp_path / '.map.tif.earthgate'}); expected "
        "one run at a time. Wait until it ends, or give another name."
    )
    with Destination(path, overwrite=False):
        pass


def test_what_a_killed_run_left_is_cleaned_up(tmp_path):
    path = tmp_path / "map.tif"
    killed = """
        import os, sys
        from earthgate_geo.raster.destination import Destination
        with Destination(sys.argv[1], overwrite=False) as destination:
            (destination.scratch / "rows.tif").write_text("half")
            os._exit(9)
    """
    command = [sys.executable, "-c", textwrap.dedent(killed), str(path)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert names(tmp_path / ".map.tif.earthgate") == ["lock", "rows.tif"]

    with Destination(path, overwrite=False) as destination:
        assert names(destination.scratch) == ["lock"]

    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".tif", ".TIF", ".tiff", ".gpkg"])
def test_publishing_leaves_only_the_new_file_and_its_sidecars(tmp_path, suffix):
    path, built = tmp_path / f"map{suffix}", tmp_path / f"built{suffix}"
    for old in (path, *sidecars(path)):
        old.write_text("old")
    built.write_text("new")
    fresh = sidecars(built)[0]
    fresh.write_text("new")

    publish(built, path)

    assert names(tmp_path) == sorted([path.name, sidecars(path)[0].name])
    assert {entry.read_text() for entry in tmp_path.iterdir()} == {"new"}


def test_publishing_over_a_folder_is_refused_and_keeps_what_was_there(tmp_path):
    (tmp_path / "map.tif").mkdir()
    (tmp_path / "map.qml").write_text("old")
    (tmp_path / "built.tif").write_text("new")

    with pytest.raises(OSError, match="could not be written"):
        publish(tmp_path / "built.tif", tmp_path / "map.tif")

    assert (tmp_path / "map.qml").read_text() == "old"
