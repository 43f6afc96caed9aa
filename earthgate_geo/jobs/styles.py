"""What ``earthgate styles build`` does, from a folder of images to a bank of styles."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earthgate_geo import __version__
from earthgate_geo.checkpoint_file import read_checkpoint
from earthgate_geo.data.pairs import COMPANIONS, is_raster
from earthgate_geo.data.style import StatisticsStyle, Style, build_bank
from earthgate_geo.data.style_networks import PublishedStyle
from earthgate_geo.errors import DataError, InputError
from earthgate_geo.model_file import file_digest
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.bands import RGB
from earthgate_geo.raster.class_map import is_map
from earthgate_geo.raster.destination import Destination, publish
from earthgate_geo.raster.grid import Size, Tiling, Window
from earthgate_geo.raster.read import Pixels, Radiometry, Scene, SceneOptions, open_scene
from earthgate_geo.style_file import save_bank
from earthgate_geo.styles_request import StylesRequest

Document = dict[str, Any]

"""How companions of images end."""

_PART_PX = 512
_VALID = 0.9
"""Least share of a part that holds data."""

_SHOWN = 3


def run_styles(request: StylesRequest, monitor: Monitor) -> Document:
    """Gather the styles of a folder's images and write the bank.

    Returns:
        The result document of ``earthgate styles build --json``.

    Raises:
        InputError, DataError, OutputError: As the sentence says; no file is left behind.
    """
    request.check()
    started = time.perf_counter()
    with Destination(request.out, overwrite=request.overwrite, inputs=request.inputs()) as place:
        style = _style(request)
        images = _opened(request, style.least_px)
        monitor.stage("styles", len(images.chosen))
        bank = build_bank(style, images.read(monitor))
        bank = replace(bank, provenance=images.provenance())
        images.warn(monitor)
        built = place.scratch / request.out.name
        save_bank(bank, built)
        digest = file_digest(built)
        publish(built, request.out)
    return images.about() | {
        "styles": bank.count,
        "digest": digest,
        "seconds": {"total": time.perf_counter() - started},
    }


def plan_styles(request: StylesRequest, monitor: Monitor) -> Document:
    """Say what would be looked at; nothing is written.

    Raises:
        InputError, DataError, OutputError: As the run itself before it starts.
    """
    request.check()
    images = _opened(request, _style(request).least_px)
    images.warn(monitor)
    return images.about()


@dataclass(frozen=True, kw_only=True)
class _Images:
    """A folder's images and the parts of them to look at."""

    request: StylesRequest
    chosen: list[tuple[Path, Window]]
    unusable: dict[Path, str] = field(default_factory=dict)

    def read(self, monitor: Monitor) -> Iterator[Tensor]:
        """Yield the parts: float32 (3, row, col), scaled to 0..1 like their whole image."""
        done = 0
        for path in dict.fromkeys(path for path, _ in self.chosen):
            windows = [window for owner, window in self.chosen if owner == path]
            try:
                with _open(path, self.request) as scene:
                    bands = scene.choose_bands(RGB)
                    radiometry = scene.radiometry(bands)
                    for window in windows:
                        part = _part(scene.read(window, bands), radiometry)
                        if part is not None:
                            yield part
                        monitor.update(done := done + 1)
            except DataError as error:
                self.unusable[path] = str(error)

    def warn(self, monitor: Monitor) -> None:
        """Name the files that cannot be used, in one sentence."""
        if self.unusable:
            names = ", ".join([path.name for path in self.unusable][:_SHOWN])
            more = len(self.unusable) - _SHOWN
            monitor.warn(
                f"{len(self.unusable)} of the files cannot be used: {names}"
                f"{f' and {more} more' if more > 0 else ''}. {next(iter(self.unusable.values()))}"
            )

    def provenance(self) -> Document:
        """Return what a bank says of its images: the folder's name alone, it may go elsewhere."""
        return {
            "earthgate": __version__,
            "data": self.request.data.resolve().name,
            "files": self._used(),
            "part_px": _PART_PX,
            "seed": self.request.seed,
        }

    def about(self) -> Document:
        """Return what is known without the styles."""
        return {
            "data": str(self.request.data),
            "files": self._used(),
            "unusable": {str(path): reason for path, reason in self.unusable.items()},
            "parts": len(self.chosen),
            "part_px": _PART_PX,
            "style": "statistics" if self.request.predictor is None else "published",
            "seed": self.request.seed,
            "outputs": {role: str(path) for role, path in self.request.outputs().items()},
        }

    def _used(self) -> int:
        return len({path for path, _ in self.chosen} - self.unusable.keys())


def _style(request: StylesRequest) -> Style:
    if request.predictor is None or request.transformer is None:
        return StatisticsStyle()
    return PublishedStyle.of_files(
        read_checkpoint(request.predictor), read_checkpoint(request.transformer)
    )


def _opened(request: StylesRequest, least_px: int) -> _Images:
    """Open every file and choose parts: of each image one, then of each a second, and so on."""
    rng = np.random.default_rng(request.seed)
    drawn: list[tuple[int, float, Path, Window]] = []
    images = _Images(request=request, chosen=[])
    for path in _files(request.data):
        try:
            windows = _windows(path, request, least_px)
        except (DataError, InputError) as error:
            images.unusable[path] = str(error)
            continue
        turns = rng.permutation(len(windows))
        drawn += [
            (int(turn), float(rng.random()), path, window)
            for turn, window in zip(turns, windows, strict=True)
        ]
    if not drawn:
        raise DataError(
            found=f"{request.data} holds no image that can be used"
            + "".join(f" ({reason.rstrip('.')})" for reason in list(images.unusable.values())[:1]),
            expected="rasters that GDAL reads, with red, green and blue or one grey band",
        )
    drawn.sort(key=lambda entry: entry[:2])
    images.chosen.extend(sorted(((p, w) for *_, p, w in drawn[: request.limit]), key=_place))
    return images


def _place(part: tuple[Path, Window]) -> tuple[Path, int, int]:
    path, window = part
    return path, window.row, window.col


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if is_raster(path) and _is_image(path.relative_to(folder)) and path.is_file()
    )


def _is_image(path: Path) -> bool:
    """Tell an image from labels, companions of images and hidden files by its name."""
    hidden = any(part.startswith(".") for part in path.parts)
    labels = any(part.startswith("labels") for part in path.parts[:-1])
    companion = path.stem.lower().endswith(COMPANIONS)
    return not (hidden or labels or companion)


def _windows(path: Path, request: StylesRequest, least_px: int) -> list[Window]:
    """Return the parts of an image, none of a map of classes.

    Raises:
        DataError: It is no raster, or too small.
        InputError: Nothing says which bands are red, green and blue.
    """
    with _open(path, request) as scene:
        if is_map(scene):
            return []
        scene.choose_bands(RGB)
        size, square = scene.grid.size, Size(_PART_PX, _PART_PX)
        if min(size.rows, size.cols) < least_px:
            raise DataError(
                found=f"{path} is {size.rows} x {size.cols} px", expected=f"{least_px} px or more"
            )
        return [window.clipped(size) for window in Tiling(size, square, square)]


def _open(path: Path, request: StylesRequest) -> Scene:
    return open_scene(path, SceneOptions(placed=False, bands=request.bands))


def _part(pixels: Pixels, radiometry: Radiometry) -> Tensor | None:
    """Scale a part, its gaps filled with its mean colour; None where it has too many."""
    if pixels.valid.mean() < _VALID:
        return None
    values = radiometry.scale(pixels.values)
    values[:, ~pixels.valid] = values[:, pixels.valid].mean(1, keepdims=True)
    return torch.from_numpy(values)
