"""What a file is, and which models are at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earthgate_geo import model_file
from earthgate_geo.errors import ModelFileError
from earthgate_geo.raster.class_map import class_table, is_map
from earthgate_geo.raster.read import Scene, open_scene
from earthgate_geo.style_file import is_bank, load_bank

Document = dict[str, Any]

_MODEL_SUFFIXES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl"}


def describe(source: str, *, model_folder: Path | None = None) -> Document:
    """Say what a model, adapter, bank of styles, map or scene is.

    Args:
        source: A file, or the name of a model.
        model_folder: Folder in which names of models are looked up after the packaged ones.

    Raises:
        InputError: There is no such file.
        DataError: It is neither a model nor a raster, or a bank that cannot be used.
        ModelFileError: It is a model file that cannot be used.
    """
    folders = _folders(model_folder)
    path = Path(source)
    if path.suffix.lower() in _MODEL_SUFFIXES or source in _names(folders):
        found = model_file.find_model(source, folders=folders)
        return _styles(found) if is_bank(found) else _model(found)
    with open_scene(source) as scene:
        return _map(scene) if is_map(scene) else _scene(scene)


def list_models(model_folder: Path | None = None) -> Document:
    """List the packaged models and those in a folder, adapters left out.

    Returns:
        ``models``, each with ``name``, ``file``, ``packaged``, ``classes``, ``bands``, ``heights``,
        ``gsd``, ``licence``, ``digest``, ``card_file`` (the page beside the file, None without
        one) and ``card`` (what the file says of itself); ``unreadable``, one sentence per file
        that is no model.
    """
    models, unreadable = [], []
    for path in model_file.list_models(_folders(model_folder)):
        try:
            header = model_file.read_header(path)
        except ModelFileError as error:
            unreadable.append(str(error))
            continue
        if header["kind"] == "model":
            models.append(_entry(path, header) | {"card": _card(header)})
    return {"models": models, "unreadable": unreadable}


def _folders(model_folder: Path | None) -> list[Path]:
    return [model_folder] if model_folder else []


def _names(folders: list[Path]) -> set[str]:
    return {path.stem for path in model_file.list_models(folders)}


def _entry(path: Path, header: Mapping[str, Any]) -> Document:
    config, card = header["config"], header["card"]
    page = path.with_suffix(".md")
    return {
        "name": str(card.get("name", path.stem)),
        "file": str(path),
        "packaged": path.parent == model_file.PACKAGED,
        "classes": [entry["name"] for entry in config["classes"]],
        "bands": config["bands"],
        "heights": config.get("heights", False),
        "gsd": [config["gsd_min_m"], config["gsd_max_m"]],
        "licence": str(card.get("licence", "not stated")),
        "card_file": str(page) if page.is_file() else None,
        "digest": model_file.file_digest(path),
    }


def _card(header: Mapping[str, Any]) -> Document:
    """Return what the card says of data and limits, without the figures of the training."""
    return {key: value for key, value in header["card"].items() if key != "training"}


def _model(path: Path) -> Document:
    header = model_file.read_header(path)
    if header["kind"] == "adapter":
        facts = {"file": str(path), "digest": model_file.file_digest(path)}
        record = {"policy": "gate", **header["record"]}
        return {"what": "adapter", **facts, "base": header["base"], **record}
    config = header["config"]
    return {
        "what": "model",
        **_entry(path, header),
        "tile_px": config["tile_px"],
        "backbone": config["backbone"]["name"],
        "card": header["card"],
    }


def _styles(path: Path) -> Document:
    bank = load_bank(path)
    return {
        "what": "styles",
        "file": str(path),
        "digest": model_file.file_digest(path),
        "style": bank.kind,
        "bands": bank.bands,
        "images": bank.count,
        "provenance": bank.provenance,
    }


def _raster(scene: Scene) -> Document:
    grid, gsd = scene.grid, scene.grid.gsd()
    return {
        "file": scene.path,
        "rows": grid.size.rows,
        "cols": grid.size.cols,
        "gsd": [gsd.row_m, gsd.col_m],
        "crs": grid.crs.to_string(),
    }


def _map(scene: Scene) -> Document:
    prefix = "EARTHGATE_"
    provenance = {
        key.removeprefix(prefix).lower(): text
        for key, text in scene.tags.items()
        if key.startswith(prefix) and key != f"{prefix}CLASSES"
    }
    classes = list(class_table(scene).names)
    return {"what": "map", **_raster(scene), "classes": classes, **provenance}


def _scene(scene: Scene) -> Document:
    return {
        "what": "scene",
        **_raster(scene),
        "bands": [meaning or "unnamed" for meaning in scene.meanings],
        "type": scene.dtype,
        "valid_share": float(scene.preview(()).valid.mean()),
    }
