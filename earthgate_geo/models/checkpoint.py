"""Foreign weights into a backbone, whatever they are called and wherever they are wrapped."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from timm.models import eva, vision_transformer, vision_transformer_sam
from torch import Tensor
from torch.nn import functional

from earthgate_geo.errors import ModelFileError
from earthgate_geo.models.backbone import Backbone, TimmTransformer

_KERNEL, _TABLE = "patch_embed.proj.weight", "pos_embed"
_STEM = "stem.0.down.0.weight"
_EXPECTED = "weights of the same family and size"
_FIX = "Check --backbone and --weights against each other"
_TIMM_MODULES = {
    eva.Eva: eva,
    vision_transformer.VisionTransformer: vision_transformer,
    vision_transformer_sam.VisionTransformerSAM: vision_transformer_sam,
}
# Parts of a timm transformer behind its blocks: the feature maps do not pass through them.
_BEHIND = {"norm", "fc_norm", "neck", "attn_pool", "head"}
# Parts that some transformers have before their blocks and others do not.
_BEFORE = {"cls_token", "reg_token", "pos_embed", "norm_pre"}


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """What became of the tensors of a checkpoint."""

    loaded: int
    """Tensors of the backbone that have the checkpoint's values now."""

    resized: tuple[str, ...]
    """Those of them that were resized to fit."""

    missing: tuple[str, ...]
    """Tensors of the backbone that keep their random values; its maps do not depend on them."""

    ignored: tuple[str, ...]
    """Tensors of the checkpoint without a place in the backbone: heads, decoders, Rein's tokens.

    What timm's own conversion leaves out, such as mask tokens, is not listed.
    """

    def lines(self) -> list[str]:
        """Return the report for people, a part of many tensors by its name and their number."""
        lines = [f"{self.loaded} tensors loaded"]
        if self.resized:
            lines.append(f"resized: {', '.join(self.resized)}")
        if self.missing:
            lines.append(f"not in the checkpoint and not needed: {_by_part(self.missing)}")
        if self.ignored:
            lines.append(f"ignored: {_by_part(self.ignored)}")
        return lines


def fit_checkpoint(backbone: Backbone, state: Mapping[str, Tensor]) -> KeyReport:
    """Load a checkpoint of the backbone's family and size.

    Takes timm's names and those of the authors of DINOv2, DINOv3, SAM and MAE, wherever they are
    wrapped: in a segmenter (``backbone.``, ``image_encoder.``), in the state of a training
    (``teacher.``). Where it fails, the backbone is as before.

    Source:
        A patch kernel and a position table of another size are resized as Rein does it for
        DINOv2: bicubic, ``align_corners`` false, no antialiasing; class tokens keep theirs.

    Args:
        backbone: Without a toolbox.
        state: Tensors by name, as ``read_checkpoint`` returns them.

    Raises:
        ModelFileError: Tensors that the feature maps depend on are missing, of another size, or
            without a place in the backbone.
    """
    if isinstance(backbone, TimmTransformer):
        network, behind = backbone.vit, _BEHIND
        found, ignored = _unwrapped(state, anchor=_KERNEL)
        found = _translated(network, found)
        resized = _resized(network, found)
        found |= resized
    else:
        network, behind, resized = backbone, set(), {}
        found, ignored = _unwrapped(state, anchor=_STEM)
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in found]
    foreign = [key for key in found if key not in wanted]
    needed = ({_part(key) for key in wanted} | _BEFORE) - behind
    _refuse_missing([key for key in missing if _part(key) in needed], of=len(wanted))
    _refuse_foreign([key for key in foreign if _part(key) in needed])
    fitting = {key: found[key] for key in wanted if key in found}
    _refuse_sizes(fitting, wanted)
    network.load_state_dict(fitting, strict=False)
    return KeyReport(
        loaded=len(fitting),
        resized=tuple(resized),
        missing=tuple(missing),
        ignored=(*foreign, *ignored),
    )


def _unwrapped(state: Mapping[str, Tensor], *, anchor: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return what lies beside the tensor ``anchor``, by its name there, and the names of the rest.

    Of a student and its averaged teacher, the teacher is taken.
    """
    places = [k.removesuffix(anchor) for k in state if k == anchor or k.endswith(f".{anchor}")]
    if not places:
        raise ModelFileError(
            found=f"a checkpoint of {len(state)} tensors without a {anchor}",
            expected="weights of the backbone, named as by timm or by their authors",
            fix=_FIX,
        )
    place = min(places, key=lambda p: (not {"teacher", "ema"} & set(re.split(r"[._]", p)), len(p)))
    inside = {key.removeprefix(place): v for key, v in state.items() if key.startswith(place)}
    wrapper = place[: place.find(".") + 1]
    outside = [key.removeprefix(wrapper) for key in state if not key.startswith(place)]
    return inside, outside


def _translated(vit: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names that timm's ``vit`` has for them."""
    # DINOv2 numbers chunked blocks through: the sixth block of two chunks of four is blocks.1.5.
    found = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in found.items()}
    if {"register_tokens", "cls_token", _TABLE} <= found.keys():
        # timm's models with registers have no position for the class token.
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"] = found["cls_token"] + found[_TABLE][:, :1]
        found[_TABLE] = found[_TABLE][:, 1:]
    # Kept from timm's filter, which resizes in its own way, guessing the grid of the table, and
    # prints an error for every bias that DINOv3's files hold and timm's models leave out.
    names = vit.state_dict().keys()
    whole = () if "blocks.0.attn.q_bias" in names else ("attn.qkv.bias",)
    apart = [key for key in found if key in (_KERNEL, _TABLE) or key.endswith(whole)]
    kept = {key: found.pop(key) for key in apart}
    for family, module in _TIMM_MODULES.items():
        if isinstance(vit, family):
            around = "image_encoder." if module is vision_transformer_sam else ""
            found = module.checkpoint_filter_fn({around + k: v for k, v in found.items()}, vit)
    return found | {k: v for k, v in kept.items() if k in names or not _is_idle(k, v)}


def _is_idle(key: str, tensor: Tensor) -> bool:
    """Tell a bias of attention that is zero; DINOv3 masks that of the keys."""
    if not key.endswith("bias"):
        return False
    q, _, v = tensor.chunk(3)
    return not (q.any() or v.any())


def _resized(vit: Any, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the patch kernel and the position table, where they have to change their size."""
    resized = {}
    kernel, size = found[_KERNEL], vit.patch_embed.proj.weight.shape[-2:]
    if kernel.ndim == 4 and kernel.shape[-2:] != size:
        resized[_KERNEL] = _bicubic(kernel, size)
    table, own = found.get(_TABLE), vit.pos_embed
    if table is None or own is None or table.ndim != 3 or own.ndim != 3:
        return resized  # SAM resizes its table in every forward pass
    rows, cols = vit.patch_embed.grid_size
    tokens = own.shape[1] - rows * cols  # before those of the grid
    side = isqrt(max(table.shape[1] - tokens, 0))
    if side and side**2 == table.shape[1] - tokens and (side, side) != (rows, cols):
        grid = table[:, tokens:].reshape(len(table), side, side, -1).movedim(-1, 1)
        grid = _bicubic(grid, (rows, cols)).movedim(1, -1).flatten(1, 2)
        resized[_TABLE] = torch.cat((table[:, :tokens], grid), dim=1)
    return resized


def _bicubic(x: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(x.float(), size=tuple(size), mode="bicubic", align_corners=False)


def _refuse_missing(missing: Sequence[str], *, of: int) -> None:
    if missing:
        raise ModelFileError(
            found=f"a checkpoint without {len(missing)} of the backbone's {of} tensors, the first "
            f"{missing[0]}",
            expected=_EXPECTED,
            fix=_FIX,
        )


def _refuse_foreign(foreign: Sequence[str]) -> None:
    if foreign:
        raise ModelFileError(
            found=f"a checkpoint with surplus tensors ({len(foreign)}), the first {foreign[0]}",
            expected=_EXPECTED,
            fix=_FIX,
        )


def _refuse_sizes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            raise ModelFileError(
                found=f"a checkpoint whose {key} has the shape {tuple(tensor.shape)}",
                expected=f"{tuple(wanted[key].shape)}",
                fix=_FIX,
            )


def _part(key: str) -> str:
    return key.partition(".")[0]


def _by_part(keys: Iterable[str]) -> str:
    counts = Counter(_part(key) for key in keys)
    return ", ".join(f"{part} ({n})" if n > 1 else part for part, n in counts.items())
