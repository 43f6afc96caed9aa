import os
import subprocess
import sys
from pathlib import Path

import pytest
from workplace import files

from earthgate_geo.errors import CancelledError, OutputError, StorageError
from earthgate_geo.staging import staged


def outputs(folder: Path) -> dict[str, Path]:
    (folder / "sub").mkdir()
    return {"map": folder / "map.tif", "page": folder / "sub" / "r.html"}


def fail(wanted: dict[str, Path], error: type[BaseException]) -> None:
    with staged(wanted, overwrite=True, inputs=[]) as built:
        built["map"].write_text("half", encoding="utf-8")
        raise error


def test_outputs_appear_together_with_their_sidecars(tmp_path) -> None:
    wanted = outputs(tmp_path)

    with staged(wanted, overwrite=False, inputs=[]) as built:
        for path in [*built.values(), built["map"].with_suffix(".qml")]:
            path.write_text(path.name, encoding="utf-8")
        assert not any(path.exists() for path in wanted.values())

    assert files(tmp_path) == {"map.tif", "map.qml", "sub", str(Path("sub/r.html"))}
    assert wanted["map"].read_text(encoding="utf-8") == "map.tif"


def test_outputs_of_one_folder_are_built_side_by_side_under_their_own_names(tmp_path) -> None:
    pair = {"map": tmp_path / "map.tif", "vector": tmp_path / "map.gpkg"}

    with staged(pair, overwrite=False, inputs=[]) as built:
        for path in built.values():
            path.touch()

    assert built["map"].parent == built["vector"].parent
    assert [path.name for path in built.values()] == ["map.tif", "map.gpkg"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelledError, ZeroDivisionError])
def test_after_any_failure_nothing_is_there(tmp_path, error) -> None:
    wanted = outputs(tmp_path)

    with pytest.raises(error):
        fail(wanted, error)

    assert files(tmp_path) == {"sub"}


def test_after_a_failure_the_older_files_are_untouched(tmp_path) -> None:
    wanted = outputs(tmp_path)
    wanted["map"].write_text("old", encoding="utf-8")

    with pytest.raises(ZeroDivisionError):
        fail(wanted, ZeroDivisionError)

    assert wanted["map"].read_text(encoding="utf-8") == "old"


def test_errors_name_the_paths_that_the_user_gave(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    with (
        pytest.raises(StorageError) as refusal,
        staged({"map": Path("map.tif")}, overwrite=False, inputs=[]) as built,
    ):
        raise StorageError(
            found=f"{built['map']} could not be written",
            expected=f"1 MB free in {built['map'].parent}",
        )

    assert str(refusal.value) == "map.tif could not be written; expected 1 MB free in .."


def test_outputs_are_locked_while_they_are_built(tmp_path) -> None:
    wanted = outputs(tmp_path)

    with staged(wanted, overwrite=False, inputs=[]) as built:
        with pytest.raises(OutputError, match="another run is writing"):
            fail(wanted, CancelledError)
        for path in built.values():
            path.touch()

    assert files(tmp_path) == {"map.tif", "sub", str(Path("sub/r.html"))}


KILLED = """
import os
import os
import subprocess
import sys
from pathlib import Path
from earthgate_geo import staging

publish = staging.publish

def killed_after_the_first(built, path):
    publish(built, path)
    os._exit(9)

staging.publish = killed_after_the_first
outputs = {"map": Path("map.tif"), "page": Path("r.html")}
with staging.staged(outputs, overwrite=False, inputs=[]) as built:
    for path in built.values():
        path.write_text("of the killed run", encoding="utf-8")
"""


def test_a_run_killed_as_its_outputs_get_their_names_may_be_repeated_once(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pair = {"map": Path("map.tif"), "page": Path("r.html")}
    root = str(Path(__file__).parents[1])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": root}, check=False
    )
    assert (killed.returncode, Path("r.html").exists(), Path("map.tif").exists()) == (
        9,
        True,
        False,
    )

    with staged(pair, overwrite=False, inputs=[]) as built:
        for path in built.values():
            path.write_text("again", encoding="utf-8")

    assert files(tmp_path) == {"map.tif", "r.html"}
    assert Path("r.html").read_text(encoding="utf-8") == "again"
    with pytest.raises(OutputError), staged(pair, overwrite=False, inputs=[]):
        pass
