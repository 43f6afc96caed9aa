import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasters import write_raster

from earthgate_geo.errors import EarthgateError, InputError, MissingDependencyError, OutputError
from earthgate_geo.recipe import (
    CROSSEARTH_1024,
    Dacs,
    MultiTask,
    Policy,
    Recipe,
    Selection,
    Styles,
)
from earthgate_geo.request import AdaptRequest, BatchRequest, MapRequest, VectorOptions
from earthgate_geo.training_request import TrainRequest

EACH = MapRequest(src="")
BATCH = BatchRequest(srcs=("in/a.tif", "in/b.tif"), out_dir=Path("out"), each=EACH)
SEVERAL = AdaptRequest(src="a.tif", more=("b.tif",), out_dir=Path("out"))


def refusal(request) -> str:
    with pytest.raises(EarthgateError) as found:
        request.check()
    return str(found.value)


def test_companions_are_named_after_the_map() -> None:
    request = MapRequest(src="s.tif", dst=Path("out/m.tif"), confidence=True, probs=True)

    assert request.outputs() == {
        "map": Path("out/m.tif"),
        "confidence": Path("out/m_conf.tif"),
        "probs": Path("out/m_probs.tif"),
    }


@pytest.mark.parametrize(
    ("dst", "out", "adapter"),
    [
        (None, None, "town.adapter.safetensors"),
        (Path("out/m.tif"), None, "out/town.adapter.safetensors"),
        (Path("out/m.tif"), Path("a.safetensors"), "a.safetensors"),
    ],
)
def test_the_adapter_file_lies_beside_the_map_unless_told(dst, out, adapter) -> None:
    request = AdaptRequest(src="data/town.tif", dst=dst, out=out)

    assert request.outputs()["adapter"] == Path(adapter)


def test_a_check_touches_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(Path("s.tif"))

    AdaptRequest(src="s.tif", dst=Path("m.tif"), report=Path("r.html")).check()

    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"]


def test_ground_without_a_surface_is_refused() -> None:
    assert refusal(MapRequest(src="s.tif", dst=Path("m.tif"), dtm="dtm.tif")) == (
        "--dtm without --dsm; expected the surface model that it is subtracted from. "
        "Give heights that are above ground already as --dsm alone."
    )


def test_heights_that_are_not_there_are_refused_before_torch_is_loaded() -> None:
    asked = MapRequest(src="s.tif", dst=Path("m.tif"), dsm="nope.tif")

    assert refusal(asked) == "nope.tif does not exist; expected a raster file."


def test_heights_are_inputs_that_no_output_replaces() -> None:
    asked = MapRequest(src="s.tif", dst=Path("m.tif"), dsm="dsm.tif", dtm="dtm.tif")

    assert asked.inputs() == ["s.tif", "dsm.tif", "dtm.tif"]


def test_an_unknown_policy_is_refused() -> None:
    assert refusal(AdaptRequest(src="s.tif", policy="magic")) == (
        "the policy 'magic'; expected gate, all, spatial, semantic, frequency, rein, "
        "mmadapter, mmlora, separate, head-only, full, random-k, fixed-k, grad-norm-k, "
        "matched-all."
    )


def test_a_training_is_as_the_papers_have_it_unless_told() -> None:
    alone = TrainRequest(data=Path("d"), out=Path("m.safetensors"))
    with_target = TrainRequest(data=Path("d"), out=Path("m.safetensors"), target=Path("t"))
    told = TrainRequest(
        data=Path("d"), out=Path("m.safetensors"), batch=3, interval=7, modules=0.5, steps=9
    )

    assert alone.recipe() == Recipe()
    assert with_target.recipe() == Recipe(
        batch=2, target_batch=2, selection=Selection(interval=50), dacs=Dacs()
    )
    assert told.recipe() == Recipe(batch=3, steps=9, selection=Selection(interval=7, share=0.5))


def test_a_published_recipe_gives_way_to_what_is_given_beside_it() -> None:
    request = TrainRequest(
        data=Path("d"), out=Path("m.safetensors"), recipe_name="crossearth-1024", styles=Path("s")
    )

    theirs = replace(request, policy=None).recipe()
    ours = replace(request, policy="gate", steps=300, crop_px=512).recipe()

    assert theirs == CROSSEARTH_1024
    assert (ours.policy, ours.steps, ours.warmup, ours.planned) == (Policy.GATE, 300, 100, 400)
    assert (ours.crop_px, ours.learning_rate, ours.styles) == (512, 6e-5, Styles())


def test_styles_and_reconstruction_are_options_of_any_recipe() -> None:
    request = TrainRequest(data=Path("d"), out=Path("m.safetensors"))

    assert replace(request, styles=Path("s")).recipe() == Recipe(styles=Styles())
    assert replace(request, multitask=True).recipe() == Recipe(multitask=MultiTask())


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("min_area_m2", -1, "--min-area -1; expected 0 or more."),
        ("simplify_m", float("nan"), "--simplify nan; expected 0 or more."),
    ],
)
def test_polygons_of_negative_sizes_are_refused(option, value, sentence) -> None:
    with pytest.raises(InputError) as found:
        VectorOptions(**{option: value})

    assert str(found.value) == sentence


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("runtime", "the runtime 'abacus'; expected one of auto, torch, openvino."),
        ("precision", "the precision 'abacus'; expected one of auto, fp32, bf16."),
        ("engine", "the engine 'abacus'; expected one of local, dask."),
    ],
)
def test_an_unknown_choice_is_refused(option, sentence) -> None:
    assert refusal(MapRequest(src="s.tif", dst=Path("m.tif"), **{option: "abacus"})) == sentence


def test_a_cluster_is_one_and_needs_its_engine() -> None:
    request = MapRequest(src="s.tif", dst=Path("m.tif"), workers=2)

    assert refusal(request) == (
        "--scheduler or --workers without --engine dask; expected the engine that they are about."
    )
    assert refusal(replace(request, engine="dask", scheduler="tcp://host:8786")) == (
        "--scheduler and --workers together; expected one of them. --scheduler joins a running "
        "cluster, --workers starts one on this machine."
    )


def test_a_cluster_without_its_library_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(MissingDependencyError) as found:
        MapRequest(src="s.tif", dst=Path("m.tif"), engine="dask").check()

    assert str(found.value) == (
        "--engine dask needs the library distributed, which is not installed. Install it with: "
        "pip install 'earthgate-geo[dask]'."
    )


def test_a_batch_names_the_maps_after_their_scenes() -> None:
    request = replace(BATCH, vector_format="fgb", each=replace(EACH, confidence=True))

    assert [one.outputs() for one in request.requests()] == [
        {
            "map": Path(f"out/{name}_map.tif"),
            "vector": Path(f"out/{name}_map.fgb"),
            "confidence": Path(f"out/{name}_map_conf.tif"),
        }
        for name in "ab"
    ]
    assert [one.src for one in request.requests()] == ["in/a.tif", "in/b.tif"]


def test_a_template_has_the_scene_and_its_number() -> None:
    requests = replace(BATCH, name="{n:03}-{scene}.tif").requests()

    assert [one.dst.name for one in requests] == ["001-a.tif", "002-b.tif"]


@pytest.mark.parametrize(
    "name",
    [
        *("", "{", "{}", "{name}.tif", "{scene.tif", "{n!x}", "{scene:d}", "{scene[a]}", "{n.x}"),
        *("sub/{scene}.tif", "../{scene}.tif", "/{scene}.tif"),
    ],
)
def test_a_template_that_is_none_is_refused(name) -> None:
    assert refusal(replace(BATCH, name=name)) == (
        f"the name {name!r}; expected a file's name, with the fields {{scene}} and {{n}} if any, "
        "e.g. {scene}_map.tif."
    )


@given(st.text(max_size=12))
def test_a_template_never_leaves_the_folder(name) -> None:
    try:
        requests = replace(BATCH, name=name).requests()
    except InputError:
        return

    assert all(one.dst.parent == Path("out") for one in requests)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": "map.tif"}, "out/map.tif"),
        ({"srcs": ("x/a.tif", "y/A.tif")}, "out/A_map.tif"),
        ({"srcs": ("a.tif", "a_conf.tif"), "name": "{scene}.tif"}, "out/a_conf.tif"),
    ],
)
def test_two_scenes_never_get_one_name(change, path) -> None:
    request = replace(BATCH, each=replace(EACH, confidence=True), **change)

    assert refusal(request) == (
        f"{request.srcs[0]} and {request.srcs[1]} would both write {Path(path)}; expected a name "
        "of its own for every scene. Number them, e.g. --name {scene}_{n}_map.tif."
    )


def test_no_map_takes_the_place_of_any_scene() -> None:
    request = BatchRequest(
        srcs=("out/2.tif", "out/1.tif"), out_dir=Path("out"), each=EACH, name="{n}.tif"
    )

    with pytest.raises(OutputError) as found:
        request.check()

    assert str(found.value) == (
        f"{Path('out/1.tif')} is an input of this run; expected another file for the output."
    )


def test_a_batch_has_no_single_map_or_vector() -> None:
    assert refusal(replace(BATCH, each=replace(EACH, dst=Path("m.tif")))) == (
        "--dst and --out-dir together; expected one of them. --dst names the map of one scene, "
        "--out-dir a folder for many."
    )
    assert refusal(replace(BATCH, each=replace(EACH, vector=Path("m.gpkg")))) == (
        "--vector together with --out-dir; expected --vector-format, for polygons beside every map."
    )


def test_a_batch_is_checked_without_its_folder_and_scenes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    BATCH.check()

    assert list(tmp_path.iterdir()) == []


def test_an_adaptation_to_several_scenes_maps_them_with_its_adapter() -> None:
    request = replace(SEVERAL, name="{scene}.tif", vector_format="gpkg", memory=5)

    assert request.outputs() == {"adapter": Path("out/a.adapter.safetensors")}
    assert request.batch() == BatchRequest(
        srcs=("a.tif", "b.tif"),
        out_dir=Path("out"),
        each=MapRequest(src="a.tif", model=str(Path("out/a.adapter.safetensors")), memory=5),
        name="{scene}.tif",
        vector_format="gpkg",
    )
    assert AdaptRequest(src="a.tif", dst=Path("m.tif")).batch() is None


def test_an_adaptation_to_several_scenes_needs_a_folder_and_all_of_them(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(Path("a.tif"))

    assert refusal(replace(SEVERAL, out_dir=None, dst=Path("m.tif"))) == (
        "--dst for 2 scenes; expected --out-dir, a folder for their maps."
    )
    assert refusal(SEVERAL) == "b.tif does not exist; expected a raster file."
    write_raster(Path("b.tif"))
    SEVERAL.check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]
