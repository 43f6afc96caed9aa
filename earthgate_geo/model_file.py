"""Model and adapter files: safetensors with one JSON header. The only importer of safetensors.

A model file holds a whole network, its card and the generated tiles that adaptation without
source data replays. An adapter file holds only what adaptation changed and names its base by
digest. Pickles are never opened.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from earthgate_geo.data.replay import Replay
from earthgate_geo.errors import InputError, ModelFileError, StorageError
from earthgate_geo.models.segmenter import Segmenter, SegmenterConfig
from earthgate_geo.models.statistics import FeatureStatistics
from earthgate_geo.models.view import View
from earthgate_geo.toolbox.attach import Settled, attach, fold, restore
from earthgate_geo.toolbox.base import Toolbox, ToolboxConfig

FORMAT_VERSION = 1
DEFAULT_MODEL = "earthgate-tiny"
PACKAGED = Path(__file__).parent / "weights"
RELEASED = PACKAGED / "SHA256SUMS"
"""Digests of the packaged models, in the form of ``sha256sum``."""

_NETWORK, _HEAD, _BACKBONE, _TOOLBOX = "network.", "head.", "backbone.", "toolbox."
_STATISTICS = "statistics."


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """What an adaptation trained and decided; the adapter file's header."""

    decision: str
    """``adapted`` or ``gate-closed``."""

    evidence: Mapping[str, Any]
    """What the decision rests on, JSON values."""

    slots: tuple[str, ...]
    """Slots whose modules are in the file, like ``3.spatial``."""

    scores: Mapping[str, float]
    """Normalised score of every slot at the last choice; empty where the policy never chooses."""

    trained_parameters: int
    """Parameters that trained, head excluded."""

    steps: int
    """Optimiser steps taken."""

    seed: int
    """Seed of the run."""

    scene: str
    """Name of the scene, without its folder."""

    policy: str = "gate"
    """What trained beside the head, a value of ``recipe.Policy``."""

    temperature: float = 1.0
    """What the logits of the head in the file are divided by, so that confidence is right."""

    view: View = field(default_factory=View)
    """How the scene is shown to the network."""

    heights: bool = False
    """Whether the network was made to see heights, if its base does not."""


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to map, and where it came from."""

    segmenter: Segmenter
    """In evaluation mode, all parameters frozen; an adapter is folded in."""

    name: str
    """Name on the card, or the adapter's scene."""

    digest: str
    """SHA-256 of the model file that holds the network, 64 hexadecimal digits."""

    card: Mapping[str, Any]
    """Data, licence, figures and attribution, JSON values."""

    replay: Replay | None
    """Generated tiles for adaptation without source data."""

    statistics: FeatureStatistics | None = None
    """What its training images look like to its first layers."""

    adapter: AdapterRecord | None = None
    """Set where an adapter file was loaded."""

    adapter_digest: str | None = None
    """SHA-256 of the adapter file."""


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_model(
    path: str | Path,
    segmenter: Segmenter,
    *,
    card: Mapping[str, Any],
    replay: Replay | None = None,
    statistics: FeatureStatistics | None = None,
    dtype: torch.dtype = torch.float16,
) -> str:
    """Write a model file and return its digest.

    Args:
        path: Destination.
        segmenter: The network; of the modules in its backbone only settled ones may remain.
        card: Data, licence, figures and attribution, JSON values. ``training``, where it is
            there, holds the ``recipe``, ``policy``, ``slots``, ``scores`` and
            ``trained_parameters`` of the training.
        replay: Tiles for adaptation without source data.
        statistics: Of the images that it was trained on.
        dtype: Of the weights in the file.

    Raises:
        StorageError: The file cannot be written.
    """
    tensors = {
        _NETWORK + key: value.detach().to(dtype).contiguous()
        for key, value in segmenter.state_dict().items()
    }
    header: dict[str, Any] = {"config": segmenter.config.to_json(), "card": dict(card)}
    if segmenter.settled:
        header["settled"] = [modules.to_json() for modules in segmenter.settled]
    if replay is not None:
        tensors["replay"], header["replay_lengths"] = replay.pack()
    if statistics is not None:
        tensors |= {_STATISTICS + key: value for key, value in statistics.tensors().items()}
    return _write(path, tensors, "model", header)


def save_adapter(
    path: str | Path,
    base: LoadedModel,
    *,
    record: AdapterRecord,
    toolbox: tuple[Toolbox, ToolboxConfig] | None = None,
    head: nn.Module | None = None,
    backbone: nn.Module | None = None,
) -> str:
    """Write what adaptation changed and return the file's digest.

    Args:
        path: Destination.
        base: The source model; named by digest, not copied.
        record: The decision; written even where the gate stayed closed.
        toolbox: Adapted modules and their sizes, or None where the gate stayed closed.
        head: The adapted head, or None where it stayed.
        backbone: The adapted backbone, or None where it stayed frozen; written whole.

    Raises:
        StorageError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {
        "base": {"name": base.name, "digest": base.digest},
        "record": asdict(record),
    }
    if toolbox is not None:
        modules, sizes = toolbox
        header["toolbox"] = asdict(sizes)
        tensors |= {_TOOLBOX + k: v.cpu() for k, v in modules.state_dict().items()}
    for prefix, module in ((_HEAD, head), (_BACKBONE, backbone)):
        state = {} if module is None else module.state_dict()
        tensors |= {prefix + k: v.detach().cpu().clone() for k, v in state.items()}
    return _write(path, tensors, "adapter", header)


def load_model(source: str | Path | None = None, *, folders: Sequence[Path] = ()) -> LoadedModel:
    """Load a model by file or name, or an adapter file with its base.

    Args:
        source: A file, the name of a packaged model or of one in ``folders``, or None for the
            default model.
        folders: Further folders that hold model files.

    Raises:
        InputError: There is no such file or name.
        ModelFileError: The file is not ours, is damaged, too new, or its base is missing; or it
            is a packaged one and not as it was released.
    """
    path = find_model(source, folders=folders)
    digest = file_digest(path)
    _check_release(path, digest)
    header, tensors = _read(path)
    if header["kind"] == "adapter":
        places = [*folders, path.parent]
        return _load_adapter(path, header, tensors, digest=digest, folders=places)
    segmenter = _build(path, header)
    _load_state(path, segmenter, tensors, _NETWORK)
    return LoadedModel(
        segmenter=_frozen(segmenter),
        name=str(header["card"].get("name", path.stem)),
        digest=digest,
        card=header["card"],
        replay=(
            Replay.unpack(tensors["replay"], header["replay_lengths"])
            if "replay" in tensors
            else None
        ),
        statistics=_statistics(tensors),
    )


def find_model(source: str | Path | None, *, folders: Sequence[Path] = ()) -> Path:
    """Return the file that ``source`` means.

    Raises:
        InputError: There is none.
    """
    name = DEFAULT_MODEL if source is None else str(source)
    if Path(name).is_file():
        return Path(name)
    candidates = [folder / f"{name}.safetensors" for folder in (PACKAGED, *folders)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        found=f"no model {name!r}",
        expected="a .safetensors file or a name that 'earthgate models' lists",
        fix="Check the spelling, or copy the file beside the scene and give its path",
    )


def list_models(folders: Sequence[Path] = ()) -> list[Path]:
    """Return the packaged model files and those in ``folders``."""
    return [
        path for folder in (PACKAGED, *folders) for path in sorted(folder.glob("*.safetensors"))
    ]


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the JSON header of a model or adapter file, with its ``kind``, without weights.

    Raises:
        ModelFileError: The file is not ours, is damaged, or is too new.
    """
    path = Path(path)
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            found=f"{path} cannot be read as a model file",
            expected="a .safetensors file that earthgate wrote",
            fix="Copy the file again, or give another with --model",
        ) from error
    return _checked_header(path, metadata)


def released_digests() -> dict[str, str]:
    """Return the SHA-256 of each packaged model by the name of its file."""
    lines = RELEASED.read_text(encoding="ascii").splitlines() if RELEASED.is_file() else []
    return {name: digest for digest, name in map(str.split, lines)}


def _check_release(path: Path, digest: str) -> None:
    if path.resolve().parent != PACKAGED.resolve():
        return
    if digest != released_digests().get(path.name):
        raise ModelFileError(
            found=f"{path} is not as it was released: its SHA-256 begins with {digest[:12]}",
            expected=f"the one that {RELEASED.name} lists",
            fix="Install earthgate-geo again in a fresh virtual environment",
        )


def _checked_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if metadata.get("format") != "earthgate":
        raise ModelFileError(
            found=f"{path} is a safetensors file without an earthgate header",
            expected="a model or adapter file that earthgate wrote",
            fix="See 'earthgate models' for the models at hand",
        )
    version = metadata.get("version", "none")
    if version != str(FORMAT_VERSION):
        raise ModelFileError(
            found=f"{path} has format version {version}",
            expected=f"version {FORMAT_VERSION}",
            fix="Install an earthgate that knows it, or make the file again",
        )
    try:
        header: dict[str, Any] = json.loads(metadata["header"])
        header["kind"] = metadata["kind"]
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, "its header cannot be read") from error
    return header


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # behind the length of the header, whose first byte may be any
        return
    if (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05") or start[:4] == b"PK\x03\x04":
        raise ModelFileError(
            found=f"{path} is a pickle or zip archive, which can run code when opened",
            expected="a .safetensors file that earthgate wrote",
            fix="Convert it where you trust it; earthgate never opens it",
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = read_header(path)
    with safe_open(path, framework="pt") as file:
        return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict


def _write(path: str | Path, tensors: dict[str, Tensor], kind: str, header: dict[str, Any]) -> str:
    metadata = {
        "format": "earthgate",
        "version": str(FORMAT_VERSION),
        "kind": kind,
        "header": json.dumps(header, sort_keys=True),
    }
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    try:
        partial.write_bytes(_in_order(save(tensors, metadata)))
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            found=f"{path} could not be written ({error})",
            expected="a writable folder with room for it",
            fix="Free space or choose another folder",
        ) from error
    return file_digest(path)


def _in_order(content: bytes) -> bytes:
    """Sort the header, whose metadata safetensors writes in any order: digests must repeat."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(
        json.loads(content[8:start]), sort_keys=True, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def _build(path: Path, header: Mapping[str, Any]) -> Segmenter:
    try:
        segmenter = Segmenter(SegmenterConfig.from_json(header["config"]))
        segmenter.settled = [Settled.from_json(entry) for entry in header.get("settled", ())]
        for modules in segmenter.settled:
            restore(segmenter.backbone, modules)
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise _damaged(path, f"its configuration does not fit ({reason})") from error
    return segmenter


def _load_state(path: Path, module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    wanted = module.state_dict()
    given = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for key in sorted(wanted.keys() | given.keys()):
        if key not in given:
            raise _damaged(path, f"the tensor {prefix}{key} is missing")
        if key not in wanted:
            raise _damaged(path, f"the tensor {prefix}{key} does not belong to its configuration")
        if wanted[key].shape != given[key].shape:
            shapes = f"{tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
            raise _damaged(path, f"the tensor {prefix}{key} has the shape {shapes}")
    module.load_state_dict({k: v.to(wanted[k].dtype) for k, v in given.items()})


def _load_adapter(
    path: Path,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    digest: str,
    folders: Sequence[Path],
) -> LoadedModel:
    base = load_model(_find_base(path, header, folders))
    try:
        record = _record(header["record"])
        config = ToolboxConfig(**header["toolbox"]) if "toolbox" in header else None
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header does not fit ({error})") from error
    segmenter = base.segmenter
    if record.heights and not segmenter.config.heights:
        segmenter = segmenter.with_heights()
    for prefix, module in ((_HEAD, segmenter.head), (_BACKBONE, segmenter.backbone)):
        if any(key.startswith(prefix) for key in tensors):
            _load_state(path, module, tensors, prefix)
    if config is not None:
        _load_toolbox(path, segmenter, config, tensors)
    segmenter.view = record.view
    return LoadedModel(
        segmenter=_frozen(segmenter),
        name=base.name,
        digest=base.digest,
        card=base.card,
        replay=base.replay,
        statistics=base.statistics,
        adapter=record,
        adapter_digest=digest,
    )


def _load_toolbox(
    path: Path, segmenter: Segmenter, config: ToolboxConfig, tensors: Mapping[str, Tensor]
) -> None:
    toolbox = attach(segmenter.backbone, config)
    state = {k.removeprefix(_TOOLBOX): v for k, v in tensors.items() if k.startswith(_TOOLBOX)}
    try:
        toolbox.load_state_dict(state)
    except (ModelFileError, InputError) as error:
        raise _damaged(path, f"its modules do not fit the base ({error.found})") from error
    fold(toolbox)


def _record(document: Mapping[str, Any]) -> AdapterRecord:
    read = {"slots": tuple(document["slots"]), "view": View.from_json(document.get("view", {}))}
    return AdapterRecord(**{**document, **read})


def _statistics(tensors: Mapping[str, Tensor]) -> FeatureStatistics | None:
    found = {
        k.removeprefix(_STATISTICS): v for k, v in tensors.items() if k.startswith(_STATISTICS)
    }
    return FeatureStatistics.from_tensors(found) if found else None


def _find_base(path: Path, header: Mapping[str, Any], folders: Sequence[Path]) -> Path:
    wanted = header.get("base", {})
    for candidate in list_models(folders):
        if candidate != path and file_digest(candidate) == wanted.get("digest"):
            return candidate
    looked = ", ".join(str(folder) for folder in folders)
    raise ModelFileError(
        found=f"{path} needs the model {wanted.get('name')} ({str(wanted.get('digest'))[:12]})",
        expected=f"that file among the packaged models or in {looked}",
        fix="Copy the base model beside the adapter file",
    )


def _damaged(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        found=f"{path} is damaged: {what}",
        expected="a complete file that earthgate wrote",
        fix="Copy the file again, or give another with --model",
    )


def _frozen(segmenter: Segmenter) -> Segmenter:
    for parameter in segmenter.parameters():
        parameter.requires_grad_(False)
    return segmenter.eval()
