"""The library for people who write Python: files in, files and familiar objects out."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

import geopandas

from earthgate_geo import model_file
from earthgate_geo.errors import EarthgateWarning, MissingDependencyError
from earthgate_geo.jobs.adapt import run_adapt
from earthgate_geo.jobs.map import run_map
from earthgate_geo.mapping.vectorize import vectorize
from earthgate_geo.models.segmenter import Segmenter
from earthgate_geo.monitor import Monitor, SilentMonitor
from earthgate_geo.request import AdaptRequest, MapRequest, VectorOptions

if TYPE_CHECKING:
    from xarray import DataArray

File = str | os.PathLike[str]

_PATHS = {"dst", "vector", "model_folder", "cache", "out", "report"}
"""Fields of requests that hold paths; other files are texts there, which may be addresses."""


class MapOptions(TypedDict, total=False):
    """Options of ``earthgate map`` under their own names; its ``--help`` explains them.

    ``memory`` is in bytes. ``model_folder`` is the folder where names of models are looked up
    and ``cache`` the one of converted networks, which the command line takes from the
    environment; without ``cache`` a network is converted anew for every map.
    """

    model: File | None
    model_folder: File | None
    cache: File | None
    asset: str | Sequence[str]
    bands: Mapping[str, int] | None
    nodata: float | None
    gsd: float | None
    assume_crs: str | None
    dsm: File | None
    dtm: File | None
    device: str
    vector: File | None
    min_area: float
    simplify: float
    cut_at_tiles: bool
    confidence: bool
    probs: bool
    stac: bool
    aoi: File | None
    co: Mapping[str, str]
    memory: int | None
    resume: bool
    runtime: str
    precision: str
    engine: str
    scheduler: str | None
    workers: int | None
    overwrite: bool


class AdaptOptions(MapOptions, total=False):
    """Options of ``earthgate adapt``: those of ``MapOptions`` and its own."""

    dst: File | None
    out: File | None
    report: File | None
    labels: File | None
    label_field: str | None
    label_class: str | None
    label_map: Mapping[str, str] | None
    minutes: float | None
    steps: int | None
    seed: int
    policy: str


@dataclass(frozen=True, kw_only=True)
class SceneMap:
    """A map on disk."""

    path: Path
    """The map: a cloud-optimised GeoTIFF of class values, 255 where there is none."""

    outputs: Mapping[str, Path]
    """The files that were written, by role, like ``map``, ``vector`` and ``confidence``."""

    document: Mapping[str, Any]
    """What ``--json`` prints: the grid, the classes with their shares and hectares, times."""

    def polygons(self) -> geopandas.GeoDataFrame:
        """Return the polygons in the CRS of the map, with class, confidence and area.

        They are those of ``vector`` where it was asked for, and traced now otherwise. Memory: all
        of them.

        Raises:
            DataError: A file is damaged.
        """
        if "vector" in self.outputs:
            return _polygons(self.outputs["vector"])
        with TemporaryDirectory() as folder:
            traced = Path(folder) / f"{self.path.stem}.gpkg"
            vectorize(self.path, traced, monitor=_Warner())
            return _polygons(traced)

    def to_xarray(self) -> "DataArray":
        """Return the map as (band, y, x) with its coordinates and CRS; pixels are read later.

        Raises:
            MissingDependencyError: rioxarray is not installed.
        """
        try:
            import rioxarray  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise MissingDependencyError(
                found="xarray needs rioxarray, which is not installed",
                fix="Install it with: pip install 'earthgate-geo[xarray]'",
            ) from error
        return cast("DataArray", rioxarray.open_rasterio(self.path))


@dataclass(frozen=True, kw_only=True)
class AdaptedScene:
    """What an adaptation gave."""

    adapter: Path
    """The adapter file: give it to ``map_scene`` or ``load_model``."""

    decision: str
    """``adapted``, or ``gate-closed`` where the source model is kept."""

    model: Segmenter
    """The network that maps the scene: images (batch, channel, height, width) to logits."""

    map: SceneMap | None
    """The map, where ``dst`` was given."""

    document: Mapping[str, Any]
    """What ``--json`` prints: the decision, its evidence, the slots, times."""


def map_scene(
    scene: File, dst: File, *, monitor: Monitor | None = None, **options: Unpack[MapOptions]
) -> SceneMap:
    """Map a scene with a model, as ``earthgate map`` does.

    >>> import earthgate_geo
    >>> town = earthgate_geo.map_scene("town.tif", "town_map.tif", confidence=True)
    >>> sorted(town.outputs)
    ['confidence', 'map']
    >>> [entry["name"] for entry in town.document["classes"]]
    ['building', 'road', 'bare ground', 'vegetation', 'water']
    >>> polygons = town.polygons()
    >>> polygons.groupby("class_name").area_m2.sum().idxmax() in set(polygons.class_name)
    True
    >>> town.to_xarray().rio.crs == polygons.crs
    True

    Memory: as ``memory`` says; not more for a larger scene.

    Args:
        scene: Any raster that GDAL reads.
        dst: Map to write.
        monitor: Told the progress; may cancel. Without one, what the user should check comes as
            ``EarthgateWarning``.
        **options: As ``MapOptions`` says.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    _check(options, MapOptions)
    request = MapRequest(src=os.fspath(scene), **_fields({**options, "dst": dst}))
    request.check()
    return _map_of(request, run_map(request, monitor or _Warner()))


def adapt(
    scene: File, *, monitor: Monitor | None = None, **options: Unpack[AdaptOptions]
) -> AdaptedScene:
    """Adapt a model to a scene, as ``earthgate adapt`` does, and map it where ``dst`` is given.

    >>> import earthgate_geo, torch
    >>> adapted = earthgate_geo.adapt("town.tif", steps=2, dst="adapted_map.tif")
    >>> adapted.adapter.name
    'town.adapter.safetensors'
    >>> adapted.decision in ("adapted", "gate-closed")
    True
    >>> adapted.model(torch.rand(1, 3, 64, 64)).shape
    torch.Size([1, 5, 64, 64])
    >>> adapted.map.path.name
    'adapted_map.tif'

    Memory: a few gigabytes, whatever the size of the scene.

    Args:
        scene: Any raster that GDAL reads.
        monitor: Told the progress; may cancel. Without one, what the user should check comes as
            ``EarthgateWarning``.
        **options: As ``AdaptOptions`` says; ``labels`` where some are known, ``steps`` to repeat
            a run exactly. The adapter file goes to ``out``, by default beside ``dst``, else into
            the current folder.

    Raises:
        EarthgateError: As its subclasses say; no output is left behind.
    """
    _check(options, AdaptOptions)
    request = AdaptRequest(src=os.fspath(scene), **_fields(options))
    request.check()
    base = model_file.find_model(request.model, folders=request.model_folders)
    document = run_adapt(request, monitor or _Warner())
    adapter = request.outputs()["adapter"]
    loaded = model_file.load_model(adapter, folders=[*request.model_folders, base.parent])
    return AdaptedScene(
        adapter=adapter,
        decision=document["decision"],
        model=loaded.segmenter,
        map=_map_of(request, document) if request.dst else None,
        document=document,
    )


class _Warner(SilentMonitor):
    """Passes on what the user should check, and nothing else."""

    def warn(self, message: str) -> None:
        """Warn as Python does."""
        warnings.warn(message, EarthgateWarning, stacklevel=2)


def _check(options: Mapping[str, Any], known: type) -> None:
    """Refuse an option that there is not, as Python does where no dictionary takes them."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(
                f"there is no option {name!r}: see help(earthgate_geo.api.{known.__name__})"
            )


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under the names that requests have for them, with their kinds of paths."""
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None and name in _PATHS:
            fields[name] = Path(value)
        else:
            fields[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(fields.get("asset"), str):
        fields["asset"] = (fields["asset"],)
    if "co" in fields:
        fields["creation"] = fields.pop("co")
    fields["vectors"] = VectorOptions(
        min_area_m2=fields.pop("min_area", 0.0),
        simplify_m=fields.pop("simplify", 0.0),
        cut_at_tiles=fields.pop("cut_at_tiles", False),
    )
    return fields


def _map_of(request: MapRequest, document: Mapping[str, Any]) -> SceneMap:
    outputs = request.outputs()
    return SceneMap(path=outputs["map"], outputs=outputs, document=document)


def _polygons(path: Path) -> geopandas.GeoDataFrame:
    if path.suffix.lower() == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, layer=path.stem)  # a GeoPackage holds its style, too
