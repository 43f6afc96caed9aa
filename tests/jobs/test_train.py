import json
import os
import re
from dataclasses import replace
from pathlib import Path

import lessons
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.enums import ColorInterp
from rasters import RasterSpec, write_raster
from workplace import files

from earthgate_geo.data.pairs import open_pairs
from earthgate_geo.data.patches import joint_radiometry
from earthgate_geo.data.style import StatisticsStyle, build_bank
from earthgate_geo.errors import CancelledError, DataError, EarthgateError, InputError
from earthgate_geo.jobs.adapt import run_adapt
from earthgate_geo.jobs.inventory import describe
from earthgate_geo.jobs.map import run_map
from earthgate_geo.jobs.train import plan_train, run_train
from earthgate_geo.jobs.train_images import find_images, stamp_of
from earthgate_geo.model_file import load_model
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.recipe import Policy
from earthgate_geo.request import AdaptRequest, MapRequest
from earthgate_geo.style_file import save_bank
from earthgate_geo.training_request import TrainRequest

QUICK = TrainRequest(
    data=Path("lessons"),
    out=Path("new.safetensors"),
    model="open.safetensors",
    steps=4,
    batch=2,
    crop_px=32,
    interval=2,
    learning_rate=1e-3,
)


class Watch(SilentMonitor):
    """Remembers what it was told of a stage, and cancels after a step of it."""

    def __init__(self, *, last=None, of="train") -> None:
        self.last, self.of, self.done, self.warnings = last, of, [], []
        self.open = ""

    def stage(self, name, total) -> None:
        self.open = name

    def update(self, done) -> None:
        if self.open == self.of:
            self.done.append(done)
            if done == self.last:
                raise CancelledError

    def warn(self, message) -> None:
        self.warnings.append(message)


@pytest.fixture
def place(place):
    lessons.furnish(place / "lessons")
    return place


def test_a_trained_model_maps_adapts_and_says_how_it_was_trained(place):
    document = run_train(QUICK, SilentMonitor())

    mapped = run_map(
        MapRequest(src="scene.tif", dst=Path("map.tif"), model="new.safetensors"), SilentMonitor()
    )
    adapted = run_adapt(
        AdaptRequest(src="scene.tif", model="new.safetensors", steps=1), SilentMonitor()
    )
    about = describe("new.safetensors")
    assert [entry["name"] for entry in mapped["classes"]] == ["dark", "bright"]
    assert adapted["decision"] in ("adapted", "gate-closed")
    assert adapted["evidence"]["view"]["before"] > 0  # it knows what it was trained on
    assert about["digest"] == document["digest"]
    assert about["gsd"] == document["gsd"] == pytest.approx([0.25, 1.0], rel=1e-3)
    training = about["card"]["training"]
    assert training["recipe"]["steps"] == document["steps"] == 4
    assert training["slots"] == document["slots"]
    assert len(training["scores"]) == document["modules"] == 12
    assert len(document["slots"]) >= 3
    assert about["card"]["data"]["source"]["images"] == 3
    assert about["card"]["start"]["name"] == "open"
    assert not any(".earthgate" in name for name in files(place))


def measure(folder, *, of=("0", "1", "2")):
    """Write heights for the images of a folder of lessons: bright ground is high."""
    for name in of:
        with rasterio.open(folder / "images" / f"{name}.tif") as image:
            heights = image.read(1)[None, ::2, ::2].astype(np.float32)
            place = image.transform @ Affine.scale(2)
        (folder / "dsm").mkdir(exist_ok=True)
        write_raster(folder / "dsm" / f"{name}.tif", RasterSpec(transform=place), values=heights)


@pytest.mark.parametrize("policy", ["mmadapter", "mmlora", "separate", "gate", "all", "semantic"])
def test_a_model_learns_from_heights_beside_the_images(place, policy):
    measure(place / "lessons")
    request = replace(QUICK, dsm=True, policy=policy, report=Path("new.html"))

    document = run_train(request, SilentMonitor())

    loaded = load_model("new.safetensors")
    assert loaded.segmenter.config.heights
    assert loaded.segmenter(torch.rand(1, 4, 40, 40)).shape == (1, 2, 40, 40)
    assert document["trained_parameters"] > 0


def test_held_out_ground_with_heights_is_scored_and_shown_in_its_colours(place):
    lessons.furnish(place / "far", gsd_m=None, images=5)
    for image in sorted((place / "far" / "images").iterdir()):
        (place / "far" / "dsm").mkdir(exist_ok=True)
        (place / "far" / "dsm" / image.name).write_bytes(
            (place / "far" / "labels" / image.name).read_bytes()
        )
    request = replace(QUICK, data=Path("far"), dsm=True, report=Path("new.html"), steps=1)

    document = run_train(request, Watch())

    assert document["holdout"]["scored"] == 1
    assert "the place" in Path("new.html").read_text(encoding="utf-8")


def test_images_without_heights_train_among_others_and_are_counted(place):
    measure(place / "lessons", of=("1",))
    watch = Watch()

    document = run_train(replace(QUICK, dsm=True, steps=1), watch)

    assert watch.warnings == ["2 of 3 images have no heights and train without"]
    assert document["source"]["images"] == 3


def test_other_heights_are_other_images(place):
    plain = run_train(replace(QUICK, steps=1), SilentMonitor())
    measure(place / "lessons")

    unasked = run_train(replace(QUICK, steps=1, overwrite=True), SilentMonitor())
    asked = run_train(replace(QUICK, steps=1, overwrite=True, dsm=True), SilentMonitor())

    assert plain["source"] == unasked["source"]
    assert plain["source"]["digest"] != asked["source"]["digest"]


def test_an_unfinished_run_without_heights_is_not_gone_on_with(place):
    measure(place / "lessons")
    with pytest.raises(CancelledError):
        run_train(QUICK, Watch(last=2))

    with pytest.raises(InputError, match="an unfinished run with dsm False; expected True"):
        run_train(replace(QUICK, dsm=True), SilentMonitor())


def test_heights_that_lie_elsewhere_are_named_before_any_step(place):
    measure(place / "lessons")
    far = RasterSpec(transform=Affine(1, 0, 900000, 0, -1, 5200000))
    path = place / "lessons" / "dsm" / "1.tif"
    write_raster(path, far, values=np.ones((1, 24, 24), np.float32))
    watch = Watch()

    with pytest.raises(DataError, match=re.escape(f"{Path('lessons/dsm/1.tif')} lies outside")):
        run_train(replace(QUICK, dsm=True), watch)

    assert watch.done == []


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"dsm": True},
            (
                "--dsm, but no image of lessons has heights; expected scene_dsm.tif beside "
                "scene.tif, dsm/ with files of the images' names, or a manifest.csv with a column "
                "dsm."
            ),
        ),
        (
            {"policy": "mmlora"},
            (
                "--policy mmlora without --dsm; expected images with heights. Pass --dsm, or "
                "another policy."
            ),
        ),
        (
            {"dsm": True, "multitask": True},
            (
                "--dsm with a reconstruction of the images beside the classes; expected one of "
                "them. Leave out --multitask, or the recipe that has it."
            ),
        ),
        (
            {"head": "mfnet"},
            (
                "the head mfnet in a network without heights; expected a network with heights. "
                "Give heights with --dsm, or choose another head."
            ),
        ),
    ],
)
@pytest.mark.usefixtures("place")
def test_heights_that_nothing_can_be_done_with_are_refused(asked, sentence):
    with pytest.raises(EarthgateError) as refusal:
        run_train(replace(QUICK, **asked), SilentMonitor())

    assert str(refusal.value) == sentence


@pytest.mark.parametrize("policy", [policy for policy in Policy if not policy.needs_heights])
def test_the_file_of_every_policy_predicts_and_repeats(place, policy):
    request = replace(QUICK, policy=policy.value, steps=2, model=None, backbone="earthgate_tiny")

    document = run_train(request, SilentMonitor())

    segmenter = load_model("new.safetensors").segmenter
    kept = {str(slot) for settled in segmenter.settled for slot in settled.slots}
    assert segmenter(torch.rand(1, 3, 40, 40)).shape == (1, 2, 40, 40)
    assert kept == {slot for slot in document["slots"] if not slot.endswith("spatial")}


def test_a_trained_model_can_be_trained_again_on_top_of_its_modules(place):
    first = replace(QUICK, policy="semantic", steps=1)
    run_train(first, SilentMonitor())
    again = replace(first, model="new.safetensors", out=Path("again.safetensors"))

    document = run_train(replace(again, policy="frequency"), SilentMonitor())

    settled = load_model("again.safetensors").segmenter.settled
    kinds = [{slot.kind.value for slot in modules.slots} for modules in settled]
    assert kinds == [{"semantic"}, {"frequency"}]
    assert document["start"]["head_is_new"] is False


def test_a_model_of_the_same_classes_keeps_its_head_and_their_order(place):
    names = tuple(reversed(load_model("open.safetensors").segmenter.config.classes.names))
    lessons.furnish(place / "same", names=names)
    request = replace(QUICK, data=Path("same"), steps=1, learning_rate=1e-9, policy="head-only")

    document = run_train(request, SilentMonitor())

    new, old = (load_model(f"{name}.safetensors").segmenter for name in ("new", "open"))
    assert document["start"]["head_is_new"] is False
    assert new.config.classes == old.config.classes
    for key, value in old.head.state_dict().items():
        torch.testing.assert_close(new.head.state_dict()[key], value, atol=1e-4, rtol=1e-3)


def test_ignored_classes_are_no_classes_of_the_model(place):
    lessons.furnish(place / "three", names=("dark", "nothing", "bright"))

    document = run_train(
        replace(QUICK, data=Path("three"), ignore=("nothing",), steps=1), SilentMonitor()
    )

    assert document["classes"] == ["dark", "bright"]


def test_a_cancelled_training_resumes_to_the_same_file(place):
    lessons.furnish(place / "target", seed=1)
    request = replace(QUICK, target=Path("target"), steps=6, pseudo_weight="certainty")
    whole = run_train(request, SilentMonitor())["digest"]
    Path("new.safetensors").unlink()

    with pytest.raises(CancelledError):
        run_train(request, Watch(last=3))
    kept = files(place)
    watch = Watch()
    resumed = run_train(request, watch)

    assert {name for name in kept if "new" in name} == {
        ".new.safetensors.earthgate",
        ".new.safetensors.earthgate/last.ckpt",
    }
    assert watch.done == [4, 5, 6]
    assert resumed["digest"] == whole
    assert not any(".earthgate" in name for name in files(place))


def test_the_stamp_of_another_training_is_refused_until_it_is_discarded(place):
    with pytest.raises(CancelledError):
        run_train(QUICK, Watch(last=1))
    other = replace(QUICK, seed=3)

    with pytest.raises(InputError) as refusal:
        run_train(other, SilentMonitor())
    watch = Watch()
    run_train(replace(other, resume=False), watch)

    assert str(refusal.value) == (
        "an unfinished run with seed 0; expected 3. Pass --no-resume to discard it, or give "
        "another --out."
    )
    assert watch.done == [1, 2, 3, 4]


def test_other_images_are_another_training(place):
    with pytest.raises(CancelledError):
        run_train(QUICK, Watch(last=1))
    lessons.furnish(place / "more", images=4)

    with pytest.raises(InputError, match=r"an unfinished run with source\.digest "):
        run_train(replace(QUICK, data=Path("more")), SilentMonitor())


def _interrupted(request):
    with pytest.raises(CancelledError):
        run_train(request, Watch(last=1))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"label_map": {"bright": "dark", "dark": "bright"}}, "label_map"),
        ({"label_field": "class"}, "label_field"),
        ({"label_rest": "dark"}, "label_rest"),
        ({"gsd": 0.6}, "gsd"),
        ({"assume_crs": "EPSG:32633"}, "assume_crs"),
    ],
)
def test_other_answers_about_the_labels_are_another_training(fields, changes, key):
    _interrupted(fields)

    with pytest.raises(InputError, match=rf"an unfinished run with {key}"):
        run_train(replace(fields, **changes), SilentMonitor())


@pytest.mark.parametrize("name", ["field0.tif", "field0_labels.geojson"])
def test_images_that_changed_meanwhile_are_another_training(fields, name):
    request = replace(fields, holdout=0.0)
    _interrupted(request)
    file = fields.data / name
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000))

    with pytest.raises(InputError, match=r"an unfinished run with stamps\.source "):
        run_train(request, SilentMonitor())


def test_patches_cut_elsewhere_are_another_training(place):
    lessons.furnish_scene(place / "one", "field")
    request = replace(QUICK, data=Path("one"), holdout=0.0, gsd=0.5)
    recipe = request.recipe()

    def digest(recipe):
        images = find_images(request, recipe, SilentMonitor())
        return stamp_of(images.source(images.classes))

    assert digest(recipe) == digest(recipe)
    assert digest(recipe) != digest(replace(recipe, crop_px=16))


def test_no_resume_forgets_a_run_even_if_it_is_cancelled_at_once(place):
    with pytest.raises(CancelledError):
        run_train(QUICK, Watch(last=1))

    with pytest.raises(CancelledError):
        run_train(replace(QUICK, resume=False), Watch(last=1, of="check"))

    assert not any(".earthgate" in name for name in files(place))


def test_a_plan_says_what_would_be_done_and_writes_nothing(place):
    lessons.furnish(place / "target", images=2)
    before = files(place)

    document = plan_train(replace(QUICK, target=Path("target")), SilentMonitor())

    assert files(place) == before
    assert document["source"]["images"] == 3
    assert document["target"]["images"] == 2
    assert document["recipe"]["target_batch"] == 2
    assert document["modules"] == 12
    assert all(document["parameters"][part] > 0 for part in ("head", "modules"))
    assert document["outputs"] == {"model": "new.safetensors"}


@pytest.mark.parametrize(
    ("changes", "wanted", "warned"),
    [
        ({"data": Path("placed")}, [0.1, 0.4], 0),
        ({"data": Path("nowhere"), "gsd": 3.0}, [1.5, 6.0], 0),
        ({"data": Path("nowhere")}, [0.1, 0.6], 0),
        ({"data": Path("nowhere"), "model": None, "backbone": "earthgate_tiny"}, [0.01, 100.0], 2),
    ],
)
def test_a_model_is_for_scenes_of_the_scale_that_it_saw(place, changes, wanted, warned):
    lessons.furnish(place / "placed", gsd_m=0.2)
    lessons.furnish(place / "nowhere", gsd_m=None)
    watch = Watch()

    document = plan_train(replace(QUICK, **changes), watch)

    assert document["gsd"] == pytest.approx(wanted, rel=1e-3)
    assert len(watch.warnings) == warned


def _refused(**changes):
    with pytest.raises(EarthgateError) as refusal:
        run_train(replace(QUICK, **changes), SilentMonitor())
    return refusal.value.exit_code, str(refusal.value)


def test_images_without_labels_or_names_are_refused_and_nothing_is_left(place):
    bare = lessons.furnish(place / "bare")
    for label in (bare / "labels").iterdir():
        label.unlink()
    (bare / "labels").rmdir()
    nameless = lessons.furnish(place / "nameless")
    (nameless / "classes.json").unlink()
    before = files(place)

    assert _refused(data=Path("bare")) == (
        2,
        (
            "bare holds 3 images and no labels; expected labels/ with files of the images' names, "
            "scene_labels.gpkg or scene_labels.tif beside scene.tif, or a manifest.csv with a "
            "column label."
        ),
    )
    assert _refused(data=Path("nameless")) == (
        2,
        (
            "rasters of labels without names of their codes; expected a classes.json in the "
            "folder, e.g. "
            '{"0": "water", "1": "land"}. Or name them with --label-map 0=water,1=land.'
        ),
    )
    assert files(place) == before


def test_a_class_that_cannot_be_ignored_is_refused(place):
    assert _refused(ignore=("cloud",)) == (2, "--ignore cloud; expected one of dark, bright.")


def test_an_adapter_is_no_start(place):
    run_adapt(AdaptRequest(src="scene.tif", model="open.safetensors", steps=1), SilentMonitor())

    assert _refused(model="scene.adapter.safetensors") == (
        2,
        (
            "scene.adapter.safetensors is an adapter, made for scene; expected a model. "
            "Start from its base open."
        ),
    )


@pytest.fixture
def fields(place):
    for index in range(4):
        lessons.furnish_scene(place / "fields", f"field{index}", left=500_000 + 1000 * index)
    return replace(QUICK, data=Path("fields"), steps=8)


def test_a_folder_of_scenes_with_vectors_becomes_a_model_and_a_report(fields):
    document = run_train(
        replace(fields, steps=30, report=Path("report.html"), command="earthgate train"),
        SilentMonitor(),
    )

    holdout = document["holdout"]
    page = Path("report.html").read_text(encoding="utf-8")
    assert document["classes"] == ["bright", "dark"]
    assert document["outputs"] == {"model": "new.safetensors", "report": "report.html"}
    assert (holdout["wanted"], holdout["share"]) == (0.2, 0.25)
    assert (holdout["patches"], holdout["left_out"]) == (2, 0)
    assert holdout["scored"] == 2
    assert document["source"]["patches"] == 6
    assert {entry["name"] for entry in holdout["scores"]["classes"]} == {"bright", "dark"}
    assert holdout["scores"]["pixels"] == 2 * 64 * 64
    assert describe("new.safetensors")["card"]["training"]["holdout"] == holdout
    assert f"the mean IoU is {holdout['scores']['mean_iou']:.1%}." in page
    assert "<pre>earthgate train</pre>" in page


def test_held_out_ground_changes_nothing_in_training(place, fields):
    request = replace(fields, policy="head-only", holdout=0.2)
    first = run_train(request, SilentMonitor())
    trained = load_model("new.safetensors").segmenter.state_dict()
    held_out = find_images(request, request.recipe(), SilentMonitor()).split.held_out
    for patch in held_out:
        window = patch.window
        with rasterio.open(patch.pair.image, "r+") as scene:
            values = scene.read()
            part = np.s_[:, window.row : window.row_stop, window.col : window.col_stop]
            values[part] = values[part][:, ::-1]  # other pixels of the same statistics
            scene.write(values)

    second = run_train(replace(request, overwrite=True), SilentMonitor())

    again = load_model("new.safetensors").segmenter.state_dict()
    assert len(held_out) == 2
    assert all(torch.equal(trained[key], again[key]) for key in trained)
    assert first["loss"] == second["loss"]


def test_a_run_stopped_while_it_scores_goes_on_there(fields):
    whole = run_train(fields, SilentMonitor())
    request = replace(fields, overwrite=True)

    with pytest.raises(CancelledError):
        run_train(request, Watch(last=1, of="score"))
    watch = Watch()
    resumed = run_train(request, watch)

    assert watch.done == []
    assert (resumed["digest"], resumed["holdout"]) == (whole["digest"], whole["holdout"])


def test_another_share_of_held_out_ground_is_another_training(fields):
    with pytest.raises(CancelledError):
        run_train(fields, Watch(last=1))

    with pytest.raises(InputError, match=r"an unfinished run with holdout"):
        run_train(replace(fields, holdout=0.0), SilentMonitor())


def test_ground_that_all_images_share_is_held_out_only_if_nobody_asks(place):
    assert plan_train(QUICK, SilentMonitor())["holdout"] is None
    assert _refused(holdout=0.2) == (
        2,
        (
            "--holdout 0.2 of images that all share their ground; expected two or more places. "
            "Pass --holdout 0 to train on all of it."
        ),
    )


def test_one_ground_size_may_be_asked_for(fields):
    document = plan_train(replace(fields, gsd=1.0), SilentMonitor())

    assert document["gsd"] == [0.5, 2.0]
    assert document["source"]["patches"] + document["holdout"]["patches"] == 4


def test_sizes_that_arefar_apart_are_told(place, fields):
    far = RasterSpec(rows=64, cols=128, transform=Affine(10, 0, 600_000, 0, -10, 5_200_000))
    write_raster(place / "fields" / "far.tif", far)
    write_raster(place / "fields" / "far_labels.tif", far, values=np.zeros((1, 64, 128), np.uint8))
    (place / "fields" / "classes.json").write_text('{"0": "dark", "1": "bright"}')
    watch = Watch()

    plan_train(fields, watch)

    assert watch.warnings[0] == (
        "Pixels of 0.5 to 10 m on the ground train together, each scene at its own; --gsd shows "
        "all at one"
    )


def test_styles_and_reconstruction_are_part_of_the_recipe_and_not_of_the_model(place, fields):
    images = (torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(8))
    save_bank(build_bank(StatisticsStyle(), images), place / "styles.safetensors")
    request = replace(fields, styles=Path("styles.safetensors"), multitask=True, steps=3)

    document = run_train(request, SilentMonitor())

    plain = run_train(replace(fields, out=Path("plain.safetensors"), steps=3), SilentMonitor())
    new, old = (load_model(f"{name}.safetensors").segmenter for name in ("new", "plain"))
    assert document["recipe"]["styles"]["probability"] == 0.1
    assert document["recipe"]["multitask"]["masked"] == 0.1
    assert plain["recipe"]["styles"] is plain["recipe"]["multitask"] is None
    assert set(new.state_dict()) == set(old.state_dict())
    assert document["loss"] != plain["loss"]


def _manifest(folder, scenes):
    lines = [f"images/{n}.tif,labels/{n}.png,{scene}" for n, scene in enumerate(scenes)]
    (folder / "manifest.csv").write_text("\n".join(["image,label,scene", *lines]))


def test_scenes_of_one_name_in_two_folders_keep_their_own_statistics(place):
    _manifest(place / "lessons", ["a", "a", "b"])
    lessons.furnish(place / "target", names=("dark", "middle", "bright"), seed=5)
    _manifest(place / "target", ["a", "b", "b"])
    request = replace(QUICK, target=Path("target"))

    images = find_images(request, request.recipe(), SilentMonitor())

    apart = [joint_radiometry(open_pairs(Path(name))[0]) for name in ("lessons", "target")]
    assert images.radiometry == apart[0] | apart[1]


def test_every_target_that_cannot_be_read_is_told_before_anything_starts(place):
    lessons.furnish(place / "target", images=2)
    spec = RasterSpec(bands=4, interpretation=(ColorInterp.undefined,) * 4)
    write_raster(place / "target" / "images" / "bands.tif", spec)
    (place / "target" / "images" / "broken.tif").write_bytes(b"no raster")

    with pytest.raises(DataError) as refusal:
        plan_train(replace(QUICK, target=Path("target")), SilentMonitor())

    assert str(refusal.value) == (
        "2 of 4 scenes cannot train; expected images with bands that can be read. The lines below "
        "say what is wrong with each."
    )
    assert [note.split()[0] for note in refusal.value.__notes__] == [
        str(Path("target/images/bands.tif")),
        str(Path("target/images/broken.tif")),
    ]


def test_a_target_trains_only_off_held_out_ground(place, fields):
    lessons.furnish_scene(place / "target", "elsewhere", left=900_000)
    lessons.furnish_scene(place / "target", "here", left=500_000)
    lessons.furnish_scene(place / "target", "there", left=501_000)
    watch, request = Watch(), replace(fields, target=Path("target"), holdout=0.5)

    images = find_images(request, request.recipe(), watch)

    held_out = {(p.pair.image.stem, p.window) for p in images.split.held_out}
    same = {"here": "field0", "there": "field1"}
    kept = {(p.pair.image.stem, p.window) for p in images.target_patches}
    shown = {(target, w) for target, field in same.items() for f, w in held_out if f == field}
    assert len(shown) in (1, 2, 3)
    assert not kept & shown
    assert len(kept) == 6 - len(shown)
    assert watch.warnings == [
        f"{len(shown)} of 6 patches of the target show held-out ground and do not train"
    ]


def test_a_target_that_is_held_out_ground_alone_is_refused(place, fields):
    request = replace(fields, holdout=0.2, gsd=1.0)
    (patch,) = find_images(request, request.recipe(), SilentMonitor()).split.held_out
    (place / "target").mkdir()
    (place / "target" / patch.pair.image.name).write_bytes(patch.pair.image.read_bytes())

    assert _refused(data=Path("fields"), target=Path("target"), holdout=0.2, gsd=1.0) == (
        2,
        (
            "a target whose images all show held-out ground; expected images of other ground, too. "
            "Pass --holdout 0 to hold none out."
        ),
    )


def test_classes_that_a_side_of_the_split_lacks_are_told(place, fields):
    rare = lessons.furnish_scene(place / "fields", "rare", left=900_000) / "rare_labels.geojson"
    rare.write_text(rare.read_text().replace('"dark"', '"pond"'))
    known = {"0": "bright", "1": "dark", "2": "pond", "3": "snow"}
    (place / "fields" / "classes.json").write_text(json.dumps(known))
    warnings = []
    for seed in range(8):
        watch = Watch()
        plan_train(replace(fields, seed=seed), watch)
        assert len(watch.warnings) == 2
        warnings += watch.warnings

    trained = "No pixel to train on is {}: the model cannot learn it"
    held_out = "No held-out pixel is {}: how well the model finds it is unknown"
    assert trained.format("snow") in warnings
    assert trained.format("pond or snow") in warnings
    assert held_out.format("pond or snow") in warnings


def test_a_class_on_pixels_without_data_is_none_to_learn(fields):
    for path in fields.data.glob("*.tif"):
        with rasterio.open(path, "r+") as scene:
            scene.nodata = 255
            values = scene.read()
            values[:, :, 64:] = 255
            scene.write(values)
    watch = Watch()

    plan_train(replace(fields, holdout=0.0, crop_px=64), watch)

    assert "No pixel to train on is bright: the model cannot learn it" in watch.warnings


def test_much_ground_on_both_sides_is_told(place):
    for index in range(4):
        left = 500_000 + 16 * index  # half a patch
        lessons.furnish_scene(place / "rows", f"row{index}", left=left)
    watch = Watch()

    holdout = plan_train(replace(QUICK, data=Path("rows")), watch)["holdout"]

    assert holdout["left_out"] >= 1
    assert watch.warnings[-1] == (
        f"{holdout['left_out']} of 8 patches lie in part on held-out ground: they neither train "
        "nor score; --holdout 0 trains on all"
    )


def test_the_extractor_is_part_of_the_recipe_and_helps_a_training(fields):
    request = replace(fields, multitask=True, extractor=True, steps=2)

    document = run_train(request, SilentMonitor())

    plain = run_train(
        replace(request, extractor=False, out=Path("plain.safetensors")), SilentMonitor()
    )
    assert document["recipe"]["multitask"]["extractor"] is True
    assert plain["recipe"]["multitask"]["extractor"] is False
    new, old = (load_model(f"{name}.safetensors").segmenter for name in ("new", "plain"))
    assert set(new.state_dict()) == set(old.state_dict())


def test_another_bank_of_styles_is_another_training(place, fields):
    for seed, name in ((0, "one"), (20, "two")):
        images = (
            torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed + n))
            for n in range(8)
        )
        save_bank(build_bank(StatisticsStyle(), images), place / f"{name}.safetensors")
    _interrupted(replace(fields, styles=Path("one.safetensors")))

    with pytest.raises(InputError, match=r"an unfinished run with bank "):
        run_train(replace(fields, styles=Path("two.safetensors")), SilentMonitor())
    with pytest.raises(InputError, match=r"an unfinished run with bank "):
        run_train(fields, SilentMonitor())
