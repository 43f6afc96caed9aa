"""STAC Items of models and adapters, with the extension mlm 1.5. Needs pystac, an extra."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First, as it says what to do where pystac is missing.
from earthgate_geo.stac import WORLD, classification, extensions, link, relative, write

# isort: split
import pystac

Document = Mapping[str, Any]

_ALWAYS = {"start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
"""A model is for scenes of any day; as MLM's best practices have it."""

_BYTES_OF_SHA256 = "1220"
"""What a multihash of SHA-256 begins with: its code and its length."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model or adapter file to describe."""

    path: Path
    """The file."""

    digest: str
    """Its SHA-256."""

    header: Document
    """As ``model_file.read_header`` gives it."""

    base: "ModelEntry | None" = None
    """Of an adapter, the model that it changes."""

    @property
    def network(self) -> "ModelEntry":
        """The file that describes the network."""
        return self.base or self


def write_model_item(path: Path, entry: ModelEntry, *, place: Path) -> None:
    """Write the Item of a model, or of an adapter, derived from that of its base beside it.

    Args:
        path: File to write.
        entry: What it is of.
        place: Where the file will lie.

    Raises:
        StorageError: The file cannot be written.
    """
    adapts = entry.base is not None
    item = pystac.Item(
        id=entry.path.stem,
        # A model is for the whole world; where the scene of an adapter lies, its file does not say.
        geometry=None if adapts else _world(),
        bbox=None if adapts else list(WORLD),
        datetime=None,
        properties={**_ALWAYS, **_about(entry), **_mlm(entry)},
        stac_extensions=extensions(("mlm/v1.5.0", "file/v2.1.0")),
    )
    item.add_asset("model", _weights(entry, place))
    if entry.base is not None:
        link(item, "derived_from", f"./{entry.base.path.stem}.json")
    write(path, item.to_dict(include_self_link=False, transform_hrefs=False))


def _about(entry: ModelEntry) -> dict[str, Any]:
    card, config = entry.network.header["card"], entry.network.header["config"]
    licence = str(card.get("licence", "not stated"))
    return {
        "title": entry.path.stem,
        "description": " ".join([*_sentences(entry, card), f"Licence: {licence}."]),
        # STAC takes an SPDX identifier, and "other" for all else.
        "license": licence if re.fullmatch(r"[\w.+-]+", licence) else "other",
        "gsd": config["gsd_min_m"],
        "bands": _named(_bands(entry)),
    }


def _sentences(entry: ModelEntry, card: Document) -> list[str]:
    if entry.base is not None:
        record, base = entry.header["record"], entry.header["base"]
        return [f"Adapter of {base['name']} for {record['scene']}: {record['decision']}."]
    return [f"{card[key]}." for key in ("data", "limits", "attribution") if card.get(key)]


def _bands(entry: ModelEntry) -> list[str]:
    config = entry.network.header["config"]
    heights = config.get("heights") or entry.header.get("record", {}).get("heights")
    return [*config["bands"], *(["height"] if heights else [])]


def _named(bands: list[str]) -> list[dict[str, str]]:
    return [{"name": name} for name in bands]


def _mlm(entry: ModelEntry) -> dict[str, Any]:
    config, bands = entry.network.header["config"], _bands(entry)
    side, classes = config["tile_px"], classification(config["classes"])
    told: dict[str, Any] = {
        "mlm:name": _model_name(entry.path.stem),
        "mlm:architecture": config["backbone"]["name"],
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:input": [
            {
                "name": "scene",
                "bands": bands,
                "input": {
                    "shape": [-1, len(bands), side, side],
                    "dim_order": ["batch", "bands", "height", "width"],
                    "data_type": "float32",
                },
                "description": "The 1st and 99th percentile of each band in the scene become 0 "
                f"and 1; {config['gsd_min_m']:g} to {config['gsd_max_m']:g} m a pixel.",
                "pre_processing_function": {
                    "format": "python",
                    "expression": "earthgate_geo.raster.read:Radiometry.scale",
                },
            }
        ],
        "mlm:output": [
            {
                "name": "logits",
                "tasks": ["semantic-segmentation"],
                "result": {
                    "shape": [-1, len(classes), side, side],
                    "dim_order": ["batch", "class", "height", "width"],
                    "data_type": "float32",
                },
                "classification:classes": classes,
            }
        ],
    }
    if entry.base is not None:
        record, base = entry.header["record"], entry.header["base"]
        kept = ("policy", "steps", "seed", "trained_parameters", "decision")
        told["mlm:pretrained"] = True
        told["mlm:pretrained_source"] = f"{base['name']} sha256:{base['digest']}"
        told["mlm:hyperparameters"] = {key: record[key] for key in kept if key in record}
    return told


def _model_name(stem: str) -> str:
    """Return a name that MLM allows: it begins with a letter and ends with one or a digit."""
    name = re.sub(r"[^0-9A-Za-z_.-]", "-", stem).strip("_.-")
    return name if re.fullmatch(r"[A-Za-z].+", name) and len(name) > 2 else f"model-{name or 'x'}"


def _weights(entry: ModelEntry, place: Path) -> pystac.Asset:
    return pystac.Asset(
        href=relative(entry.path, place),
        title=f"The {entry.header['kind']} as earthgate reads it",
        media_type="application/octet-stream",
        roles=["mlm:model"],
        extra_fields={
            "bands": _named(_bands(entry)),  # STAC wants them here, MLM in the properties
            "mlm:artifact_type": "safetensors.torch.save_file",
            "file:size": entry.path.stat().st_size,
            "file:checksum": f"{_BYTES_OF_SHA256}{entry.digest}",
        },
    )


def _world() -> dict[str, Any]:
    west, south, east, north = WORLD
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}
