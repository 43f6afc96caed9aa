from pathlib import Path

import pytest
import torch
from released import Sizes, released_state

from earthgate_geo.errors import InputError, OutputError
from earthgate_geo.jobs.import_model import run_import
from earthgate_geo.model_file import load_model, read_header
from earthgate_geo.models.crossearth import convert
from earthgate_geo.request import ImportRequest


class Said:
    """A monitor that keeps its warnings."""

    def __init__(self):
        self.warnings = []

    def stage(self, name, total):
        pass

    def update(self, done):
        pass

    def log(self, message):
        pass

    def warn(self, message):
        self.warnings.append(message)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_checkpoint(path, **sizes):
    surplus = {"backbone.reins.high_extractor.0.weight": torch.ones(8, 3, 3, 3)}
    torch.save(
        {"meta": {"iter": 30000}, "state_dict": released_state(Sizes(**sizes)) | surplus}, path
    )


def request(**changes):
    usual = {"checkpoint": Path("a.pth"), "classes": "classes.json", "out": Path("a.safetensors")}
    return ImportRequest(**usual | changes)


def test_the_model_file_gives_what_the_checkpoint_gives(place):
    write_checkpoint(Path("a.pth"))
    Path("classes.json").write_text('{"0": "land", "1": "water", "2": "road"}')
    said = Said()

    document = run_import(request(gsd=0.2), said)

    loaded = load_model("a.safetensors")
    images = torch.rand(1, 3, 64, 64)
    made = convert(released_state(), loaded.segmenter.config).segmenter
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.segmenter(images).softmax(1), made(images).softmax(1), atol=0.01, rtol=0
        )
    assert document.pop("seconds")["total"] > 0
    assert document == {
        "classes": ["land", "water", "road"],
        "gsd": [0.1, 0.4],
        "tile_px": 64,
        "channels": ["red", "green", "blue"],
        "used": len(released_state()) - 1,
        "ignored": {
            "state_dict.backbone.mask_token": 1,
            "state_dict.backbone.reins.high_extractor": 1,
        },
        "backbone": ["62 tensors loaded"],
        "outputs": {"model": "a.safetensors"},
        "digest": loaded.digest,
    }
    assert said.warnings == []
    assert {path.name for path in place.iterdir()} == {"a.pth", "classes.json", "a.safetensors"}
    card = read_header("a.safetensors")["card"]
    assert (card["name"], card["licence"]) == ("a", "not stated")
    assert card["imported"]["checkpoint"] == "a.pth"


@pytest.mark.parametrize(
    ("name", "count", "gsd"),
    [("isprs", 6, [0.025, 0.18]), ("loveda", 7, [0.15, 0.6]), ("casid", 5, [0.01, 100.0])],
)
def test_a_dataset_names_its_classes_and_ground_sizes(place, name, count, gsd):
    write_checkpoint(Path("a.pth"), classes=count)
    said = Said()

    document = run_import(request(classes=name, channels=("nir", "red", "green")), said)

    assert len(document["classes"]) == count
    assert document["gsd"] == gsd
    assert load_model("a.safetensors").segmenter.config.bands == ("nir", "red", "green")
    unknown = (
        "Nothing says on which ground size of a pixel the model was trained, so every scene will "
        "be mapped at its own; --gsd says it"
    )
    assert said.warnings == ([unknown] if name == "casid" else [])


def test_a_refused_checkpoint_leaves_nothing_behind(place):
    write_checkpoint(Path("a.pth"), classes=4)

    with pytest.raises(InputError) as refusal:
        run_import(request(classes="isprs"), Said())

    assert str(refusal.value) == (
        "6 classes for a checkpoint of 4; expected the checkpoint's classes, in its order."
    )
    assert [path.name for path in place.iterdir()] == ["a.pth"]


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        (
            {"channels": ("red", "green")},
            InputError,
            "--channels red,green; expected three names, e.g. nir,red,green.",
        ),
        ({"gsd": 0.0}, InputError, "--gsd 0; expected metres, more than 0."),
        (
            {"out": Path("a.pt")},
            OutputError,
            "a.pt for the model; expected a name ending in .safetensors.",
        ),
        (
            {"classes": "mars"},
            InputError,
            (
                "--classes mars, which is no file; expected isprs, loveda, casid or a classes.json "
                "in the checkpoint's order."
            ),
        ),
        (
            {"checkpoint": Path("b.pth"), "classes": "isprs"},
            InputError,
            "no checkpoint b.pth; expected a file that ends in .safetensors, .pth, .pt, .bin.",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(place, changes, kind, sentence):
    with pytest.raises(kind) as refusal:
        run_import(request(**changes), Said())

    assert str(refusal.value) == sentence
    assert list(place.iterdir()) == []
