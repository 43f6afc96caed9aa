from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from networks import write_model
from rasters import RasterSpec, write_raster

from earthgate_geo.data.heights import open_heights
from earthgate_geo.data.labels import LabelOptions, open_labels
from earthgate_geo.data.scenes import SceneDataset, plan_tiles
from earthgate_geo.data.synthetic import CLASSES
from earthgate_geo.errors import CancelledError
from earthgate_geo.metrics import UNKNOWN
from earthgate_geo.model_file import load_model
from earthgate_geo.models.statistics import FeatureStatistics
from earthgate_geo.models.view import View
from earthgate_geo.monitor import SilentMonitor
from earthgate_geo.raster.grid import Window
from earthgate_geo.raster.read import open_scene
from earthgate_geo.recipe import Policy, Selection
from earthgate_geo.training.adapt import AdaptOptions, adapt_scene
from earthgate_geo.training.aligned import AlignedModel
from earthgate_geo.training.calibration import look
from earthgate_geo.training.guard import KnownLabels
from earthgate_geo.training.outlines import Restraint
from earthgate_geo.training.tiles import SceneTiles, SceneView

SELECTION = Selection(interval=2, images=2)
OPTIONS = AdaptOptions(steps=4, tile_px=64, batch=2, selection=SELECTION, guard_tiles=4)


@pytest.fixture
def loaded(tmp_path):
    return load_model(write_model(tmp_path / "m.safetensors"))


def _scene(tmp_path, *, rows=200, cols=240, name="town", **spec):
    path = tmp_path / f"{name}.tif"
    write_raster(path, RasterSpec(rows=rows, cols=cols, **spec))
    return open_scene(path)


def _labelled(tmp_path, scene):
    values = np.full((1, 200, 240), UNKNOWN, np.uint8)
    values[0, :, :120], values[0, :, 120:] = 0, 3
    values[0, 60:70] = UNKNOWN
    path = tmp_path / "labels.tif"
    write_raster(path, values=values)
    return open_labels(path, scene.grid, CLASSES, LabelOptions())


def _view(scene, labels=None):
    return SceneView(
        dataset=SceneDataset(scene, bands=(1, 2, 3), labels=labels),
        plan=plan_tiles(scene.grid, tile_px=64, stride_px=48, gsd_min_m=0.1, gsd_max_m=0.6),
        radiometry=scene.radiometry((1, 2, 3)),
    )


def _adapt(loaded, *scenes, labels=None, monitor=None, options=OPTIONS):
    views = [_view(scene, labels if scene is scenes[0] else None) for scene in scenes]
    return adapt_scene(loaded, views, options=options, monitor=monitor or SilentMonitor())


def _weights(adaptation):
    modules = adaptation.toolbox[0].state_dict() if adaptation.toolbox else {}
    return modules | (dict(adaptation.head.state_dict()) if adaptation.head else {})


def test_the_source_model_is_not_touched_and_a_quarter_of_the_slots_trains(tmp_path, loaded):
    before = {k: v.clone() for k, v in loaded.segmenter.state_dict().items()}

    with _scene(tmp_path) as scene:
        adaptation = _adapt(loaded, scene)

    after = loaded.segmenter.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert 3 <= len(adaptation.slots) <= 6  # 3 of 12, chosen twice
    assert adaptation.steps == len(adaptation.losses) == 4
    assert adaptation.trained_parameters > 0
    assert adaptation.decision in {"adapted", "gate-closed"}


def test_full_adapts_the_backbone_at_a_tenth_of_the_heads_rate(tmp_path, loaded):
    options = replace(OPTIONS, policy=Policy.FULL, steps=1, labelled_rate=1e-2, guarded=False)

    with _scene(tmp_path) as scene:
        adaptation = _adapt(loaded, scene, labels=_labelled(tmp_path, scene), options=options)

    @torch.no_grad()
    def moved(after, before):
        pairs = zip(after.parameters(), before.parameters(), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)

    source = loaded.segmenter
    adaptation.head.temper(1 / adaptation.temperature)  # as it was trained
    share = moved(adaptation.backbone, source.backbone) / moved(adaptation.head, source.head)
    assert share == pytest.approx(0.1, rel=0.01)
    assert adaptation.toolbox is None
    assert adaptation.trained_parameters == sum(p.numel() for p in source.backbone.parameters())


def test_weights_go_a_part_of_the_way_to_where_training_took_them(tmp_path, loaded):
    heads = [loaded.segmenter.head]
    for share in (0.6, 1.0):
        adaptation = _learnt(tmp_path, loaded, _labelled, interpolation=share)
        adaptation.head.temper(1 / adaptation.temperature)  # as it was trained
        heads.append(adaptation.head)

    for started, between, ended in zip(*(head.parameters() for head in heads), strict=True):
        assert not torch.equal(started, ended)
        assert torch.allclose(between, started.lerp(ended, 0.6), atol=1e-6)


def test_a_policy_without_modules_hands_back_the_head_alone(tmp_path, loaded):
    options = replace(OPTIONS, policy=Policy.HEAD_ONLY, labelled_rate=1e-2, guarded=False)

    with _scene(tmp_path) as scene:
        adaptation = _adapt(loaded, scene, labels=_labelled(tmp_path, scene), options=options)

    assert adaptation.head is not None
    assert adaptation.toolbox is adaptation.backbone is None
    assert (adaptation.slots, adaptation.trained_parameters) == ((), 0)


@pytest.mark.parametrize("labelled", [False, True])
def test_choosing_every_module_trains_exactly_as_all_do(tmp_path, loaded, labelled):
    losses = {}
    for policy in (Policy.GATE, Policy.ALL):
        selection = Selection(interval=2, images=2, share=1.0)
        options = replace(OPTIONS, policy=policy, selection=selection)
        with _scene(tmp_path) as scene:
            labels = _labelled(tmp_path, scene) if labelled else None
            losses[policy] = _adapt(loaded, scene, labels=labels, options=options).losses

    assert losses[Policy.GATE] == losses[Policy.ALL]


def test_the_same_seed_repeats_a_run_exactly(tmp_path, loaded):
    with _scene(tmp_path) as scene:
        first, second, other = (
            _adapt(loaded, scene, options=replace(OPTIONS, seed=seed)) for seed in (3, 3, 4)
        )

    assert first.losses == second.losses != other.losses
    assert first.evidence == second.evidence
    ours, theirs = _weights(first), _weights(second)
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_labels_train_and_a_part_is_held_back_for_the_guard(tmp_path, loaded):
    with _scene(tmp_path) as scene:
        adaptation = _adapt(loaded, scene, labels=_labelled(tmp_path, scene))

    assert adaptation.evidence["source"]["label_probabilities"] is not None
    assert adaptation.evidence["adapted"]["label_probabilities"] is not None


def test_held_back_labels_never_reach_training_and_the_rest_never_the_guard(tmp_path, loaded):
    with _scene(tmp_path) as scene:
        labels = _labelled(tmp_path, scene)
        generator = torch.Generator().manual_seed(0)
        tiles = SceneTiles([_view(scene, labels)], size_px=64, generator=generator)
        windows = tiles.held_back_windows()

        training, guard = tiles.read(windows), tiles.read(windows, held_back=True)

    assert windows
    assert torch.all(training.labels == UNKNOWN)
    for window, seen in zip(windows, guard.labels, strict=True):
        assert np.array_equal(seen.numpy(), labels.read(window.window))


@pytest.mark.parametrize("policy", [Policy.GATE, Policy.FULL])
def test_a_closed_gate_hands_back_nothing_that_trained(tmp_path, loaded, policy):
    options = replace(OPTIONS, policy=policy, labelled_rate=0.0)

    with _scene(tmp_path) as scene:
        labels = _labelled(tmp_path, scene)
        adaptation = _adapt(loaded, scene, labels=labels, options=options)

    assert adaptation.decision == "gate-closed"  # nothing moved, so nothing fits better
    assert adaptation.toolbox is None
    assert adaptation.head is None
    assert adaptation.backbone is None
    assert adaptation.evidence["against"] == ["the labels fit no better"]
    assert adaptation.evidence["calibration"] is None
    assert adaptation.temperature == 1


def _learnt(tmp_path, loaded, labels, **changes):
    options = replace(
        OPTIONS, policy=Policy.HEAD_ONLY, labelled_rate=1e-2, guarded=False, **changes
    )
    with _scene(tmp_path) as scene:
        return _adapt(loaded, scene, labels=labels(tmp_path, scene), options=options)


def test_the_head_that_is_handed_back_is_as_confident_as_the_evidence_says(tmp_path, loaded):
    loaded.segmenter.head.temper(1 / 40)  # far too sure of itself
    adaptation = _learnt(tmp_path, loaded, _labelled)

    calibration = adaptation.evidence["calibration"]
    assert calibration["basis"] == "labels"
    assert adaptation.temperature == calibration["temperature"] != 1
    with _scene(tmp_path) as scene:
        view = _view(scene, _labelled(tmp_path, scene))
        tiles = SceneTiles([view], size_px=64, generator=torch.Generator().manual_seed(0))
        held = tiles.read(tiles.held_back_windows()[:4], held_back=True)
    loaded.segmenter.head = adaptation.head
    seen = look(
        loaded.segmenter,
        list(zip(held.images, held.valid, strict=True)),
        labels=KnownLabels(list(held.labels), range(5)),
    )
    assert float(seen.confidence().mean()) == pytest.approx(calibration["confidence"], abs=0.01)


def _one_place(tmp_path, scene):
    values = np.full((1, 200, 240), UNKNOWN, np.uint8)
    values[0, 4:20, 4:40], values[0, 20:36, 4:40] = 0, 3
    write_raster(tmp_path / "labels.tif", values=values)
    return open_labels(tmp_path / "labels.tif", scene.grid, CLASSES, LabelOptions())


def test_labels_that_trained_do_not_set_the_temperature(tmp_path, loaded):
    adaptation = _learnt(tmp_path, loaded, _one_place, steps=8)

    assert adaptation.decision == "adapted"
    assert not adaptation.evidence["labels_held_back"]
    assert adaptation.evidence["calibration"]["basis"] == "replay"


def _seen_before(tmp_path, loaded):
    """Return a scene whose bands differ, and the model with statistics of such scenes."""
    skewed = np.random.default_rng(0).random((3, 200, 240)) ** np.array([4, 1, 0.25])[:, None, None]
    path = tmp_path / "skewed.tif"
    write_raster(path, values=(255 * skewed).astype(np.uint8))
    images = torch.from_numpy(skewed[None]).float()
    return path, replace(loaded, statistics=FeatureStatistics.gather(loaded.segmenter, [images]))


def test_a_scene_like_the_training_images_is_shown_as_it_comes(tmp_path, loaded):
    path, loaded = _seen_before(tmp_path, loaded)

    with open_scene(path) as scene:
        adaptation = _adapt(loaded, scene)

    assert adaptation.view == View()
    assert adaptation.evidence["view"]["view"] == View().to_json()


def test_what_is_trained_may_be_refused_and_the_view_kept(tmp_path, loaded):
    path, loaded = _seen_before(tmp_path, loaded)
    with rasterio.open(path) as raster:
        write_raster(path, values=raster.read()[::-1])

    with open_scene(path) as scene:
        adaptation = _adapt(loaded, scene)

    assert adaptation.view == View(order=(2, 1, 0))
    assert adaptation.decision == "adapted"
    assert adaptation.evidence["against"]
    assert (adaptation.toolbox, adaptation.head, adaptation.backbone) == (None, None, None)
    assert adaptation.temperature == 1.0
    before, after = (adaptation.evidence[model] for model in ("source", "adapted"))
    assert before["shares"] != after["shares"]
    assert before["replay_miou"] == after["replay_miou"]  # they are shown as they were
    assert loaded.segmenter.view == View()


def test_light_and_outlines_are_those_of_the_bands_and_not_of_the_heights(
    tmp_path, loaded, monkeypatch
):
    path, loaded = _seen_before(tmp_path, loaded)
    loaded = replace(loaded, segmenter=loaded.segmenter.with_heights())
    with rasterio.open(path) as raster:
        write_raster(path, values=raster.read()[::-1])
    write_raster(tmp_path / "dsm.tif", RasterSpec(bands=1, rows=200, cols=240, dtype="float32"))
    looked_at = []
    monkeypatch.setattr(
        "earthgate_geo.training.aligned.restrain",
        lambda _, images, __: looked_at.append(images) or [],
    )

    with open_scene(path) as scene:
        heights = open_heights(str(tmp_path / "dsm.tif"), scene.grid)
        view = replace(
            _view(scene),
            dataset=SceneDataset(scene, bands=(1, 2, 3), heights=heights),
            height_radiometry=heights.radiometry(),
        )
        adaptation = adapt_scene(loaded, [view], options=OPTIONS, monitor=SilentMonitor())

    assert adaptation.evidence["view"]["view"]["order"] == [2, 1, 0]
    assert looked_at[0].shape == (12, 3, 64, 64)


def test_labels_know_better_than_statistics(tmp_path, loaded):
    path, loaded = _seen_before(tmp_path, loaded)
    with rasterio.open(path) as raster:
        write_raster(path, values=raster.read()[::-1])
    with open_scene(path) as scene:
        plain = _maps(loaded, scene)
        write_raster(tmp_path / "truth.tif", values=plain)  # what the source model says is right
        labels = open_labels(tmp_path / "truth.tif", scene.grid, CLASSES, LabelOptions())
        options = replace(OPTIONS, labelled_rate=0.0)
        adaptation = _adapt(loaded, scene, labels=labels, options=options)

    assert adaptation.evidence["view"]["view"]["order"] == [2, 1, 0]
    assert not adaptation.evidence["view"]["used"]
    assert adaptation.view == View()
    assert adaptation.decision == "gate-closed"


def _restrained(monkeypatch):
    held = Restraint(index=2, offset=-1.5, clearer=1.4)
    monkeypatch.setattr("earthgate_geo.training.aligned.restrain", lambda *_: [held])
    return {"index": 2, "offset": -1.5, "clearer": 1.4, "name": CLASSES.names[2]}


def test_what_is_trained_may_be_refused_and_a_restraint_kept(tmp_path, loaded, monkeypatch):
    told = _restrained(monkeypatch)

    with _scene(tmp_path) as scene:
        adaptation = _adapt(loaded, scene)

    assert (adaptation.decision, adaptation.view) == ("adapted", View())
    assert adaptation.evidence["against"]
    assert adaptation.evidence["restraints"] == [told]
    assert (adaptation.toolbox, adaptation.backbone, adaptation.temperature) == (None, None, 1.0)
    source, held = loaded.segmenter.head.state_dict(), adaptation.head.state_dict()
    moved = {key: held[key] - source[key] for key in source if not held[key].equal(source[key])}
    assert {key: value.tolist() for key, value in moved.items()} == {
        "classify.3.bias": pytest.approx([0, 0, -1.5, 0, 0])
    }


def test_labels_know_better_than_a_restraint(tmp_path, loaded, monkeypatch):
    _restrained(monkeypatch)
    with torch.no_grad():
        loaded.segmenter.head.classify[-1].bias[2] = 0.5  # said by a little more than the others

    with _scene(tmp_path) as scene:
        plain = _maps(loaded, scene)
        write_raster(tmp_path / "truth.tif", values=plain)  # what the source model says is right
        labels = open_labels(tmp_path / "truth.tif", scene.grid, CLASSES, LabelOptions())
        options = replace(OPTIONS, guarded=False)
        adaptation = _adapt(loaded, scene, labels=labels, options=options)

    assert (plain == 2).mean() > 0.2
    assert adaptation.evidence["restraints"] == []
    biases = adaptation.head.classify[-1].bias.detach() * adaptation.temperature
    assert float(biases[2]) == pytest.approx(0.5, abs=0.2)  # from where it was, it trained


@pytest.mark.parametrize(("many", "worse", "stays"), [(0, 0.05, 1), (0, 0.15, 0), (1, 0.05, 0)])
def test_a_handful_of_labels_refuses_only_what_it_clearly_speaks_against(
    tmp_path, loaded, monkeypatch, many, worse, stays
):
    _restrained(monkeypatch)
    fits = iter([0.8 - worse, 0.8])  # aligned, then the source model
    monkeypatch.setattr(AlignedModel, "_label_fit", lambda *_: next(fits))

    with _scene(tmp_path) as scene:
        labels = (_labelled if many else _one_place)(tmp_path, scene)
        adaptation = _adapt(loaded, scene, labels=labels)

    assert adaptation.evidence["labels_held_back"] == bool(many)
    assert len(adaptation.evidence["restraints"]) == stays


def _maps(loaded, scene):
    pixels = scene.read(Window(0, 0, scene.grid.size), (1, 2, 3))
    image = scene.radiometry((1, 2, 3)).scale(pixels.values)
    with torch.inference_mode():
        logits = loaded.segmenter(torch.from_numpy(image)[None].float())
    return logits[0].argmax(0).numpy().astype(np.uint8)[None]


def test_without_the_guard_all_that_was_trained_is_kept(tmp_path, loaded):
    with _scene(tmp_path) as scene:
        refused, kept = (
            _adapt(loaded, scene, options=replace(OPTIONS, guarded=guarded))
            for guarded in (True, False)
        )

    assert (refused.decision, kept.decision) == ("gate-closed", "adapted")
    assert refused.evidence["against"] == kept.evidence["against"] != []
    assert (refused.head, kept.head is None) == (None, False)


def test_a_scene_smaller_than_a_tile_can_be_adapted_to(tmp_path, loaded):
    with _scene(tmp_path, rows=1, cols=1) as scene:
        assert _adapt(loaded, scene).steps == 4


@pytest.mark.parametrize("labelled", [False, True])
def test_several_scenes_of_different_scale_are_adapted_to_at_once(tmp_path, loaded, labelled):
    fine = Affine(0.25, 0, 500000, 0, -0.25, 5300000)
    with (
        _scene(tmp_path) as town,
        _scene(tmp_path, name="village", transform=fine, seed=1) as village,
    ):
        labels = _labelled(tmp_path, town) if labelled else None
        alone = _adapt(loaded, town, labels=labels)
        together, again = (_adapt(loaded, town, village, labels=labels) for _ in range(2))

    assert together.losses == again.losses != alone.losses
    assert together.evidence == again.evidence
    assert together.evidence["source"]["shares"] != alone.evidence["source"]["shares"]
    assert (together.evidence["source"]["label_probabilities"] is not None) == labelled


def test_cancelling_stops_within_a_step(tmp_path, loaded):
    class Impatient(SilentMonitor):
        def update(self, done: int) -> None:
            raise CancelledError

    with _scene(tmp_path) as scene, pytest.raises(CancelledError):
        _adapt(loaded, scene, monitor=Impatient())
