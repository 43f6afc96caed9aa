"""Run a setting: train on the source by a policy, score on the target's test images."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from earthgate_geo import __version__
from earthgate_geo.bench.document import markdown
from earthgate_geo.bench.score import Examination
from earthgate_geo.bench.settings import Setting, find_setting
from earthgate_geo.data.benchmarks.finder import open_part
from earthgate_geo.data.benchmarks.part import OTHER_NAME, Part
from earthgate_geo.data.patches import Patch, PatchDataset, cut
from earthgate_geo.data.stream import StepStream
from earthgate_geo.errors import InputError
from earthgate_geo.jobs.prepare import readers, torch_device
from earthgate_geo.jobs.start import Start, starting_model
from earthgate_geo.model_file import DEFAULT_MODEL, find_model, read_header
from earthgate_geo.monitor import Monitor
from earthgate_geo.policies import Tuner
from earthgate_geo.raster.classes import ClassTable, LandClass
from earthgate_geo.recipe import Recipe
from earthgate_geo.staging import staged
from earthgate_geo.training.fit import FitOptions, FitRecord, fit
from earthgate_geo.training.scoring import Sliding
from earthgate_geo.training.task import StepsOf
from earthgate_geo.training_request import BenchRequest

Document = dict[str, Any]


def run_bench(request: BenchRequest, monitor: Monitor) -> Document:
    """Train on a setting's source and score on its target.

    Returns:
        The result document of ``earthgate bench --json``.

    Raises:
        EarthgateError: As its subclasses say; no result is left behind.
    """
    request.check()
    setting = find_setting(request.setting)
    with staged(request.outputs(), overwrite=request.overwrite, inputs=[]) as built:
        outputs = {role: str(path) for role, path in request.outputs().items()}
        document = _run(setting, request, monitor) | {"outputs": outputs}
        if built:
            built["result"].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            built["page"].write_text(markdown(document), encoding="utf-8")
    return document


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a run."""

    source: PatchDataset
    """Labelled, to train on."""

    target: PatchDataset | None
    """To train on without their labels."""

    test: PatchDataset
    """Labelled, to score on."""

    remarks: tuple[str, ...]
    """What is not as in the publication."""

    def steps_of(self, recipe: Recipe) -> StepsOf:
        """Return what ``fit`` takes its batches from."""
        return lambda first, rank, ranks: StepStream(
            self.source, self.target, recipe=recipe, first_step=first, rank=rank, ranks=ranks
        )


def open_images(root: Path, setting: Setting, classes: Sequence[str]) -> Images:
    """Find the images of a setting.

    Args:
        root: Folder that holds one folder per dataset.
        setting: Which images.
        classes: The network's class names by value.

    Raises:
        DataError: Some are missing.
        ClassNameError: The labels name a class that is not in ``classes``.
    """
    remarks: dict[str, None] = {}

    def opened(part: Part) -> PatchDataset:
        data = open_part(root, part, classes=classes)
        remarks.update(dict.fromkeys(data.remarks))
        whole = [Patch(pair) for pair in data.pairs]
        patches = whole if part.patch_px is None else cut(data.pairs, part.patch_px)
        return PatchDataset(
            patches,
            codes=data.codes,
            bands=part.bands,
            scaling=part.scaling,
            heights=part.heights,
        )

    return Images(
        source=opened(setting.source),
        target=None if setting.target is None else opened(setting.target).without_labels(),
        test=opened(setting.test),
        remarks=tuple(remarks),
    )


def network_classes(setting: Setting, request: BenchRequest) -> ClassTable:
    """Return the classes that the network tells apart.

    A model that has all classes of the setting keeps its own, and so its head.

    Raises:
        InputError: There is no such model.
        ModelFileError: It cannot be read.
    """
    if request.backbone is None and request.head is None:
        header = read_header(find_model(request.model, folders=request.model_folders))
        own = [entry["name"] for entry in header.get("config", {}).get("classes", [])]
        if set(setting.classes) <= set(own):
            return _class_table(own)
    labelled = {name for part in setting.parts.values() for name in part.labels.values()}
    return _class_table([*setting.classes, *({OTHER_NAME} & labelled)])


def _class_table(names: Sequence[str]) -> ClassTable:
    # No map is made, so that one colour does for all.
    return ClassTable(tuple(LandClass(i, name, "#808080") for i, name in enumerate(names)))


def _run(setting: Setting, request: BenchRequest, monitor: Monitor) -> Document:
    recipe, device = request.recipe(setting.recipe), torch_device(request.device)
    fused = setting.protocol == "fuse"
    if recipe.policy.needs_heights and not fused:
        raise InputError(
            found=f"--policy {recipe.policy} for {setting.name}, whose images have no heights",
            expected="a setting with heights, such as fuse-vaihingen",
        )
    classes = network_classes(setting, request)
    start = starting_model(
        request,
        classes,
        crop_px=recipe.crop_px,
        seed=recipe.seed,
        heights=fused,
    )
    if "local" in setting.suites and start.name == DEFAULT_MODEL:
        monitor.warn(
            "The packaged model has seen every place: the score says nothing about a new one"
        )
    model, names = start.segmenter, start.segmenter.config.classes.names
    images = open_images(request.data, setting, names)
    examination = Examination(
        test=images.test,
        names=names,
        setting=setting,
        sliding=Sliding(
            crop_px=setting.test_crop_px or recipe.crop_px,
            stride_px=setting.test_stride_px,
            device=device,
        ),
    )
    if start.trained:
        examination(model.to(device), 0)
    tuner = Tuner(
        model,
        recipe.policy,
        selection=recipe.selection,
        seed=recipe.seed,
        batch=recipe.batch + recipe.target_batch,
    )
    options = FitOptions(
        device=device,
        workers=readers(device),
        named=examination.named,
        evaluate=examination,
        evaluate_every=max(1, recipe.steps // (2 if "local" in setting.suites else 10)),
    )
    record = fit(model, tuner, images.steps_of(recipe), recipe, options=options, monitor=monitor)
    return {
        **_about(setting, start, images, recipe),
        **_scores(examination, record.steps),
        **_cost(record, tuner, examination),
    }


def _about(setting: Setting, start: Start, images: Images, recipe: Recipe) -> Document:
    return {
        "setting": {
            "name": setting.name,
            "title": setting.title,
            "suites": list(setting.suites),
            "protocol": setting.protocol,
            "classes": list(setting.classes),
            "unscored": list(setting.unscored),
        },
        "policy": recipe.policy.value,
        "seed": recipe.seed,
        "recipe": recipe.to_json(),
        "model": {
            "name": start.name,
            "digest": start.digest,
            "backbone": start.segmenter.config.backbone.name,
            "head": start.segmenter.config.head.kind,
            "head_is_new": not start.trained,
            "weights": None if start.keys is None else start.keys.lines(),
        },
        "images": {
            "source": len(images.source),
            "target": 0 if images.target is None else len(images.target),
            "test": len(images.test),
        },
        "published": [asdict(entry) for entry in setting.published],
        "notes": [*setting.notes, *images.remarks],
        "versions": {"earthgate": __version__, "torch": torch.__version__},
    }


def _scores(examination: Examination, last: int) -> Document:
    best = examination.best_step
    on_best = examination.iou(best)
    return {
        "classes": [
            {"name": name, "iou_last": iou, "iou_best_on_test": on_best[name]}
            for name, iou in examination.iou(last).items()
        ],
        "miou_before": examination.mean_iou(0) if 0 in examination.found else None,
        "miou_last": examination.mean_iou(last),
        "miou_best_on_test": examination.mean_iou(best),
        "mean_f1_last": examination.mean_f1(last),
        "mean_f1_best_on_test": examination.mean_f1(best),
        "accuracy_last": examination.accuracy(last),
        "accuracy_best_on_test": examination.accuracy(best),
        "step_of_best": best,
    }


def _cost(record: FitRecord, tuner: Tuner, examination: Examination) -> Document:
    head = sum(p.numel() for name, p in tuner.parameters.items() if name.startswith("head."))
    peak = record.peak_memory_bytes
    return {
        "trained_parameters": tuner.trained_parameters,
        "head_parameters": head,
        "history": [list(map(str, slots)) for slots in tuner.history],
        "losses": record.losses,
        "peak_memory_mb": None if peak is None else round(peak / 1_000_000),
        "seconds": {
            "train": record.seconds,
            "select": record.seconds_selecting,
            "step": (record.seconds - record.seconds_selecting) / record.steps,
            "evaluate": examination.seconds,
        },
        "device": str(examination.sliding.device),
    }
