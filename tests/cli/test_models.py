import json
from pathlib import Path

import numpy as np
import rasterio
import torch
from released import released_state

from earthgate_cli.main import main


def run(capsys, *arguments):
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


IMPORT = ("models", "import", "a.pth", "--classes", "classes.json", "--gsd", "0.3")


def test_an_imported_checkpoint_maps_a_scene(place, capsys) -> None:
    torch.save({"state_dict": released_state()}, "a.pth")
    Path("classes.json").write_text('{"0": "land", "1": "water", "2": "road"}')

    code, out, err = run(capsys, *IMPORT, "--out", "a.safetensors")
    mapped = run(
        capsys,
        *("map", "--src", "scene.tif", "--dst", "m.tif", "--model", "a.safetensors"),
        *("--runtime", "torch", "--json"),
    )

    assert (code, err) == (0, "")
    used = len(released_state()) - 1
    assert out.splitlines() == [
        f"took {used} tensors of the checkpoint; of the backbone:",
        "  62 tensors loaded",
        "left out state_dict.backbone.mask_token (1)",
        "classes land, water, road; for scenes of 0.15 to 0.6 m a pixel",
        "tiles of 64 px of red, green, blue",
        "wrote a.safetensors",
    ]
    assert mapped[0] == 0, mapped[2]
    assert json.loads(mapped[1])["model"]["name"] == "a"
    with rasterio.open("m.tif") as written:
        assert set(np.unique(written.read(1))) <= {0, 1, 2}


def test_an_import_is_refused_in_one_line(place, capsys) -> None:
    assert run(capsys, *IMPORT, "--out", "closed.safetensors") == (
        2,
        "",
        "Error: closed.safetensors exists. Pass --overwrite to replace it, or give another name.\n",
    )


def test_models_without_import_lists_them(place, capsys) -> None:
    code, out, _ = run(capsys, "models", "--json")

    assert code == 0
    assert json.loads(out)["models"]
