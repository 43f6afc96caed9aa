import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import lessons
import pytest
import torch
from rasters import RasterSpec, write_raster
from workplace import files

from earthgate_cli import summary
from earthgate_cli.main import main
from earthgate_geo.data.style import StatisticsStyle, build_bank
from earthgate_geo.style_file import save_bank

# A shell starts background jobs with SIGINT ignored, and children inherit that.
ENGINE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from earthgate_cli.main import main; sys.exit(main(sys.argv[1:]))"
)
TRAIN = [
    *("train", "--data", "lessons", "--out", "new.safetensors", "--model", "open.safetensors"),
    *("--steps", "3", "--batch", "1", "--crop", "32", "--interval", "2"),
]


@pytest.fixture
def place(place):
    lessons.furnish(place / "lessons")
    return place


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_says_what_it_trained_and_wrote(place, capsys) -> None:
    code, out, err = run(capsys, *TRAIN)

    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith("trained 3 steps in ")
    assert lines[1].startswith("policy gate: ")
    assert lines[2:] == [
        "classes dark, bright; for scenes of 0.25 to 1 m a pixel",
        "wrote new.safetensors",
    ]


def test_train_takes_the_heights_of_the_images(place, capsys) -> None:
    (place / "lessons" / "dsm").mkdir()
    for image in sorted((place / "lessons" / "images").iterdir()):
        spec = RasterSpec(bands=1, rows=48, cols=48)
        write_raster(place / "lessons" / "dsm" / image.name, spec)

    asked = ("--dsm", "--policy", "mmlora", "--head", "mfnet", "--json")
    code, out, err = run(capsys, *TRAIN, *asked)

    document = json.loads(out)
    assert (code, err) == (0, "")
    assert (document["policy"], document["start"]["head"]) == ("mmlora", "mfnet")
    assert {slot.partition(".")[2] for slot in document["slots"]} == {"image", "height", "fusion"}


def test_train_prints_its_document_as_json_and_nothing_else(place, capsys) -> None:
    code, out, err = run(capsys, *TRAIN, "--json", "--seed", "2", "--modules", "0.5")

    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["recipe"]["seed"] == 2
    assert document["recipe"]["selection"]["share"] == 0.5
    assert document["outputs"] == {"model": "new.safetensors"}


def test_train_follows_the_progress_protocol_and_tells_the_loss(place, capsys) -> None:
    code, _, err = run(capsys, *TRAIN, "--progress", "json")

    events = [json.loads(line) for line in err.splitlines()]
    progress = [event for event in events if event["event"] == "progress"]
    assert code == 0
    assert list(dict.fromkeys(event["stage"] for event in progress)) == ["check", "train"]
    assert progress[-1]["done"] == progress[-1]["total"] == 3
    assert any(e["event"] == "log" and e["message"].startswith("loss ") for e in events)
    assert events[-1]["event"] == "result"


def test_a_dry_run_says_the_plan_and_writes_nothing(place, capsys) -> None:
    before = files(place)

    code, out, err = run(capsys, *TRAIN, "--target", "lessons", "--dry-run")

    assert (code, err) == (0, "")
    assert files(place) == before
    assert out.splitlines() == [
        "source      3 images, cut into 3",
        "target      3 images, cut into 3",
        "classes     dark, bright",
        "start       open: earthgate_tiny, new fpn head",
        "policy      gate, 12 modules",
        out.splitlines()[5],
        "steps       3 of 1 + 1 crops of 32 px",
        "scenes      for scenes of 0.25 to 1 m a pixel",
        "outputs     new.safetensors",
    ]
    assert out.splitlines()[5].endswith(" in the modules may train")


def test_options_may_stand_in_a_file_and_the_command_line_wins(place, capsys) -> None:
    Path("config.toml").write_text(
        'data = "lessons"\nout = "new.safetensors"\nmodel = "open.safetensors"\nsteps = 7\n'
        'crop = 32\nlearning-rate = 1e-3\nbatch = 2\nignore = ["dark"]\nresume = false\n'
    )

    code, out, err = run(
        capsys, "train", "--data", "config.toml", "--steps", "1", "--dry-run", "--json"
    )

    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["classes"] == ["bright"]
    assert document["recipe"]["learning_rate"] == 1e-3
    assert (document["recipe"]["steps"], document["recipe"]["batch"]) == (1, 2)


def test_a_table_in_a_file_chooses_lines_of_the_manifest(place, capsys) -> None:
    Path("lessons/manifest.csv").write_text(
        "image,label,place\nimages/0.tif,labels/0.png,here\nimages/1.tif,labels/1.png,there\n"
    )
    Path("config.toml").write_text('data = "lessons"\n[where]\nplace = "there"\n')

    code, out, _ = run(capsys, *TRAIN, "--data", "config.toml", "--dry-run")

    assert code == 0
    assert out.splitlines()[0] == "source      1 image, cut into 1"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('data = "lessons"\nstpes = 3\n', "does not know 'stpes'; its keys are the options"),
        ("steps = 3\n", "must name the folder as data; its keys are the options"),
        ("steps 3\n", "cannot be read as TOML: "),
    ],
)
def test_a_file_of_options_that_makes_no_sense_is_refused(place, capsys, text, sentence) -> None:
    Path("config.toml").write_text(text)

    code, _, err = run(capsys, *TRAIN, "--data", "config.toml")

    assert code == 2
    assert f"config.toml {sentence}" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "new.tif"], "new.tif for the model; expected a name ending in .safetensors."),
        (
            ["--out", "open.safetensors"],
            "open.safetensors is an input of this run; expected another file for the output.",
        ),
        (["--backbone", "x"], "--model and --backbone together; expected one of them."),
        (
            ["--weights", "x"],
            "--weights without --backbone; expected the backbone that they are of.",
        ),
        (
            ["--pseudo-weight", "share"],
            (
                "--target-where or --pseudo-weight without --target; expected the images that they "
                "are about."
            ),
        ),
        (["--extractor"], "--extractor without --multitask; expected both or neither."),
        (["--holdout", "1"], "--holdout 1; expected a share in 0..1."),
        (
            ["--label-class", "roof", "--label-rest", "roof"],
            (
                "--label-class roof with --label-field or as --label-rest; expected one class for "
                "shapes without a field, and another one for the rest."
            ),
        ),
        (["--bands", "red=1"], "--bands for red; expected red, green and blue."),
        (["--modules", "2"], "2 of the modules open; expected a share in 0..1."),
        (["--data", "none"], "none is not a folder; expected a folder of training images."),
        (
            ["--device", "abacus"],
            (
                "--device abacus, which cannot be used here; expected auto, cpu, cuda or mps. See "
                "'earthgate doctor' for the devices of this machine."
            ),
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_nothing(
    place, capsys, arguments, sentence
) -> None:
    before = files(place)

    code, out, err = run(capsys, *TRAIN, *arguments)

    assert (code, out, err) == (2, "", f"Error: {sentence}\n")
    assert files(place) == before


@pytest.fixture
def fields(place):
    """Four scenes of dark and bright ground, each with a vector beside it."""
    for index in range(4):
        lessons.furnish_scene(place / "fields", f"field{index}", left=500_000 + 1000 * index)
    return [*TRAIN, "--data", "fields"]


def test_train_says_how_well_it_does_on_ground_that_never_trained(fields, capsys) -> None:
    asked = [*fields, "--report", "report.html", "--holdout", "0.25", "--seed", "1"]

    code, out, err = run(capsys, *asked)

    lines = out.splitlines()
    command = shlex.join(["earthgate", *asked])
    assert (code, err) == (0, "")
    assert lines[3] == "IoU on 2 patches held out:"
    assert [line.split()[0] for line in lines[4:7]] == ["bright", "dark", "mean"]
    assert lines[7:] == ["wrote new.safetensors", "wrote report.html"]
    assert f"<pre>{command}</pre>" in Path("report.html").read_text(encoding="utf-8")


def test_only_what_was_scored_is_told_as_scored() -> None:
    holdout = {"wanted": 0.2, "share": 0.3, "patches": 300, "left_out": 40, "scored": 256}
    classes = [
        {"name": "field", "iou": 0.5, "truth_pixels": 9},
        {"name": "roof", "iou": 0.0, "truth_pixels": 0},
    ]
    document = {
        "steps": 2,
        "seconds": {"train": 1.0},
        "loss": {"first": 2.0, "last": 1.0},
        "modules": 0,
        "policy": "full",
        "trained_parameters": 3,
        "parameters": {"head": 4},
        "classes": ["field", "roof"],
        "gsd": [1, 2],
        "outputs": {},
        "holdout": holdout | {"scores": {"classes": classes, "mean_iou": 0.5}},
    }

    assert list(summary.train_lines(document))[3:] == [
        "IoU on 256 of 300 patches held out:",
        "  field             50.0%",
        "  roof                  -",
        "  mean              50.0%",
        "40 patches on both sides neither train nor score",
    ]


def test_a_plan_says_what_lies_on_both_sides(place, capsys) -> None:
    for index in range(4):
        lessons.furnish_scene(place / "rows", f"row{index}", left=500_000 + 16 * index)

    _, out, err = run(capsys, *TRAIN, "--data", "rows", "--dry-run")

    (left_out,) = re.findall(r"(\d) of 8 patches lie in part on held-out ground", err)
    said = f"            {left_out} patch"
    assert any(line.startswith(said) for line in out.splitlines())


def test_a_plan_says_what_is_held_out(fields, capsys) -> None:
    _, out, _ = run(capsys, *fields, "--dry-run")

    assert out.splitlines()[:3] == [
        "source      4 images, cut into 6",
        "held out    2 patches, 25.0% of all",
        "classes     bright, dark",
    ]


@pytest.mark.parametrize("progress", ["none", "json"])
def test_all_that_is_wrong_with_a_folder_is_told_a_line_each(fields, capsys, progress) -> None:
    Path("fields/field1_labels.geojson").unlink()
    Path("fields/field2.tif").write_bytes(b"no raster")
    before = files(Path())

    code, out, err = run(capsys, *fields, "--progress", progress)

    sentence = (
        "2 of 4 scenes cannot train; expected scenes and labels that fit each other. The lines "
        "below say what is wrong with each."
    )
    problems = [
        f"{Path('fields/field1.tif')} has no labels; expected labelled images to train on.",
        (
            f"{Path('fields/field2.tif')} cannot be opened as a raster; expected a file that GDAL "
            "reads, such as GeoTIFF, VRT or JPEG 2000. See what gdalinfo says about it: gdalinfo "
            f"{Path('fields/field2.tif')}."
        ),
    ]
    assert (code, out) == (2, "")
    if progress == "none":
        assert err.splitlines() == [f"Error: {sentence}", *problems]
    else:
        event = json.loads(err.splitlines()[-1])
        assert event == {"event": "error", "code": 2, "message": sentence, "problems": problems}
    assert files(Path()) == before


def test_a_published_recipe_brings_its_policy_unless_another_is_given(place, capsys) -> None:
    images = (torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(8))
    save_bank(build_bank(StatisticsStyle(), images), Path("styles.safetensors"))
    command = [*TRAIN, "--recipe", "crossearth-512", "--styles", "styles.safetensors"]

    _, rein, _ = run(capsys, *command, "--dry-run", "--json")
    _, gate, _ = run(capsys, *command, "--policy", "gate", "--dry-run", "--json")
    code, _, err = run(capsys, *TRAIN, "--recipe", "crossearth-512")

    document = json.loads(rein)
    assert document["policy"] == "rein"
    assert (document["recipe"]["steps"], document["recipe"]["planned"]) == (3, 4)
    assert document["recipe"]["styles"]
    assert document["recipe"]["multitask"]
    assert json.loads(gate)["policy"] == "gate"
    assert (code, err) == (
        2,
        (
            "Error: --recipe crossearth-512 without --styles; expected the styles that it mixes "
            "images with. Make them from a folder of images: earthgate styles build.\n"
        ),
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(place, start, capsys) -> None:
    command = [*TRAIN, "--steps", "40", "--progress", "json"]
    child = start(ENGINE, *command)
    event = {}
    while event.get("stage") != "train" or event["done"] < 2:
        event = json.loads(child.stderr.readline())

    os.kill(child.pid, signal.SIGINT)
    errors = child.communicate(timeout=60)[1].splitlines()
    kept = {name for name in files(place) if "new" in name}
    code, _, err = run(capsys, *command)

    assert child.returncode == 130
    assert json.loads(errors[-1])["message"] == (
        "interrupted. Run the same command again to go on where it stopped."
    )
    assert kept == {".new.safetensors.earthgate", ".new.safetensors.earthgate/last.ckpt"}
    # Progress is told ten times a second at most, the loss after every step.
    told = [json.loads(line).get("message", "") for line in err.splitlines()]
    steps = [int(line.rsplit(" ", 1)[1]) for line in told if line.startswith("loss ")]
    assert code == 0
    assert steps[0] > 2
    assert steps == list(range(steps[0], 41))
    assert Path("new.safetensors").is_file()


@pytest.mark.slow
def test_two_devices_write_one_file_and_one_summary(place, start) -> None:
    program = place / "earthgate.py"  # Lightning starts it again for the second device
    program.write_text(
        "import sys\nfrom earthgate_cli.main import main\n\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    run_program = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"
    child = start(
        f"import sys; sys.argv.pop(0); {run_program}",
        str(program),
        *(*TRAIN, "--devices", "2", "--device", "cpu"),
    )

    out, err = child.communicate(timeout=180)

    assert (child.returncode, err) == (0, b"")
    assert out.decode().splitlines()[-1] == "wrote new.safetensors"
    assert out.count(b"trained 3 steps") == 1
    assert not any(".earthgate" in name for name in files(place))
