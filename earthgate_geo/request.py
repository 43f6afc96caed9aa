"""What a job is asked to do, and the checks that need no torch: they take milliseconds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from earthgate_geo.errors import InputError, MissingDependencyError, OutputError
from earthgate_geo.raster.cog import check_creation
from earthgate_geo.raster.destination import Destination
from earthgate_geo.raster.read import Scene, SceneOptions, open_scene
from earthgate_geo.raster.stac_item import COLLECTION_NAME, missing_pystac
from earthgate_geo.recipe import Policy

VECTOR_FORMATS = ("gpkg", "fgb", "parquet")

ENDINGS = {
    "model": (".safetensors",),
    "styles": (".safetensors",),
    "vector": tuple(f".{each}" for each in VECTOR_FORMATS),
    "adapter": (".safetensors",),
    "report": (".html",),
    "result": (".json",),
    "page": (".md",),
    "stac": (".json",),
    "onnx": (".onnx",),
}
"""Endings of an output by role; rasters end in ``.tif``. So no two outputs of a run are one."""

RUNTIMES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "bf16")
ENGINES = ("local", "dask")

MAP_NAME = "{scene}_map.tif"
"""Usual name of a scene's map: {scene} is the scene's stem, {n} its place in the list."""


@dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """How a map becomes polygons."""

    min_area_m2: float = 0.0
    """Ground area in square metres under which a polygon is left out."""

    simplify_m: float = 0.0
    """Size in metres of the bends that outlines lose; 0 keeps every pixel's edge."""

    cut_at_tiles: bool = False
    """Whether polygons end at the lines of a fixed grid, so that none grows with the map."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            InputError: As the sentence says.
        """
        for option, value in (("--min-area", self.min_area_m2), ("--simplify", self.simplify_m)):
            if not 0 <= value < math.inf:
                raise InputError(found=f"{option} {value:g}", expected="0 or more")


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """Map a scene with a model as it is."""

    src: str
    """Path of the scene, or path or address of a STAC Item."""

    asset: tuple[str, ...] = ()
    """Which assets of the Item are the image: one, or one for each band; found out without."""

    dst: Path | None = None
    """Map to write; only an adaptation can do without."""

    model: str | None = None
    """Model or adapter by file or name; the packaged model without."""

    model_folder: Path | None = None
    """Further folder in which names are looked up."""

    vector: Path | None = None
    """Polygons to write, in one of ``VECTOR_FORMATS``."""

    confidence: bool = False
    """Whether to write ``<dst stem>_conf.tif``."""

    probs: bool = False
    """Whether to write ``<dst stem>_probs.tif``."""

    stac: bool = False
    """Whether to write a STAC Item of the map, ``<dst stem>.json``."""

    collection: str | None = None
    """Id of the STAC Collection that the Item belongs to, in ``COLLECTION_NAME`` beside it."""

    bands: Mapping[str, int] | None = None
    """1-based file band by meaning."""

    nodata: float | None = None
    """Value of gaps where the file names none."""

    gsd: float | None = None
    """Forced ground size that the network sees, in metres; None keeps to the model's range."""

    assume_crs: str | None = None
    """CRS of a scene, or heights, without one."""

    dsm: str | None = None
    """Raster of heights, for a model that takes them."""

    dtm: str | None = None
    """Raster of the ground's heights, to be subtracted from ``dsm``."""

    device: str = "auto"
    """Torch device, or ``auto``."""

    creation: Mapping[str, str] = field(default_factory=dict)
    """Creation options of GDAL's COG driver."""

    overwrite: bool = False
    """Whether existing outputs may be replaced."""

    aoi: str | None = None
    """Vector file of the area to map; a pixel whose centre is outside is nodata."""

    vectors: VectorOptions = field(default_factory=VectorOptions)
    """How the map becomes polygons."""

    memory: int | None = None
    """Bytes to keep to; None is a quarter of the machine's, at least 1 GB."""

    resume: bool = True
    """Whether to go on where an earlier run with the same outputs stopped."""

    runtime: str = "auto"
    """What runs the network, one of ``RUNTIMES``."""

    precision: str = "auto"
    """In which numbers, one of ``PRECISIONS``."""

    cache: Path | None = None
    """Folder of converted networks; without one nothing is kept."""

    engine: str = "local"
    """Who maps, one of ``ENGINES``."""

    scheduler: str | None = None
    """Address of a running Dask scheduler."""

    workers: int | None = None
    """Dask processes to start on this machine."""

    def open(self) -> Scene:
        """Open the scene.

        Raises:
            InputError, DataError: As ``open_scene``.
        """
        options = SceneOptions(
            bands=self.bands, nodata=self.nodata, assume_crs=self.assume_crs, assets=self.asset
        )
        return open_scene(self.src, options)

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders in which names of models are looked up, after the packaged ones."""
        return () if self.model_folder is None else (self.model_folder,)

    @property
    def adds_heights(self) -> bool:
        """Whether a model that takes no heights gets a part for them."""
        return False

    def without_heights(self) -> Self:
        """Return the same request without heights."""
        return replace(self, dsm=None, dtm=None)

    def inputs(self) -> list[str]:
        """Return the files that are read and must not be written."""
        files = (self.src, self.model, self.aoi, self.dsm, self.dtm)
        return [path for path in files if path]

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role."""
        wanted: dict[str, Path | None] = {"map": self.dst, "vector": self.vector}
        if self.dst is not None:
            asked = {"confidence": ("conf", self.confidence), "probs": ("probs", self.probs)}
            wanted |= {
                role: self.dst.with_name(f"{self.dst.stem}_{ending}.tif")
                for role, (ending, given) in asked.items()
                if given
            }
            wanted["stac"] = self.dst.with_suffix(".json") if self.stac else None
        return {role: path for role, path in wanted.items() if path is not None}

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: An output exists, cannot be written, is an input, or ends wrongly.
            InputError: Options that exclude or miss one another.
            DataError: The scene cannot be opened or used.
        """
        if self.dst is None and (self.vector or self.confidence or self.probs or self.stac):
            raise InputError(
                found="--vector, --confidence, --probs or --stac without --dst",
                expected="a map that they are made from",
                fix="Add --dst map.tif",
            )
        self.check_options()
        check_outputs(self.outputs(), overwrite=self.overwrite, inputs=self.inputs())
        with self.open() as scene:  # a file that a VRT or an Item names is an input, too
            check_outputs(self.outputs(), overwrite=self.overwrite, inputs=scene.files)

    def check_options(self) -> None:
        """Refuse what cannot work for any scene.

        Raises:
            InputError: Options that are unknown, or exclude or miss one another.
            DataError: The heights cannot be opened or used.
            MissingDependencyError: The engine, or what ``stac`` needs, is not installed.
        """
        if self.stac and find_spec("pystac") is None:
            raise missing_pystac("--stac")
        check_creation(self.creation)
        choices = {"runtime": RUNTIMES, "precision": PRECISIONS, "engine": ENGINES}
        for option, known in choices.items():
            if getattr(self, option) not in known:
                found = f"the {option} {getattr(self, option)!r}"
                raise InputError(found=found, expected=f"one of {', '.join(known)}")
        if self.engine == "dask":
            check_cluster(self.scheduler, self.workers)
        elif self.scheduler is not None or self.workers is not None:
            raise InputError(
                found="--scheduler or --workers without --engine dask",
                expected="the engine that they are about",
            )
        self._check_heights()

    def _check_heights(self) -> None:
        if self.dtm is not None and self.dsm is None:
            raise InputError(
                found="--dtm without --dsm",
                expected="the surface model that it is subtracted from",
                fix="Give heights that are above ground already as --dsm alone",
            )
        for path in (self.dsm, self.dtm):
            if path is not None:
                open_scene(path, SceneOptions(assume_crs=self.assume_crs)).close()


@dataclass(frozen=True, kw_only=True)
class AdaptRequest(MapRequest):
    """Adapt a model to a scene, then map it."""

    out: Path | None = None
    """Adapter file; by default ``<scene>.adapter.safetensors`` beside ``dst``."""

    report: Path | None = None
    """HTML page to write."""

    labels: str | None = None
    """Vector or raster of known classes."""

    label_field: str | None = None
    """Field that holds the class."""

    label_class: str | None = None
    """Class of all labels."""

    label_map: Mapping[str, str] | None = None
    """Class by code of the labels."""

    minutes: float | None = None
    """Time after which training stops."""

    steps: int | None = None
    """Optimiser steps; None sizes them to 3 minutes on 2 cores."""

    seed: int = 0
    """Seed of everything random."""

    policy: str = "gate"
    """What trains beside the head, a value of ``recipe.Policy``."""

    more: tuple[str, ...] = ()
    """Further scenes of the same sensor, adapted to and mapped together with ``src``."""

    out_dir: Path | None = None
    """Folder for the maps of several scenes, instead of ``dst``."""

    name: str = MAP_NAME
    """Name of a scene's map in ``out_dir``, with the fields {scene} and {n}."""

    vector_format: str | None = None
    """One of ``VECTOR_FORMATS`` for polygons beside every map in ``out_dir``."""

    command: str = ""
    """Command line, for the report."""

    @property
    def adds_heights(self) -> bool:
        """Whether a model that takes no heights gets a part for them."""
        return self.dsm is not None

    def inputs(self) -> list[str]:
        """Return the files that are read and must not be written."""
        return [*super().inputs(), *self.more, *([self.labels] if self.labels else [])]

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role, without those of ``batch``.

        The adapter file is always one of them.
        """
        folder = self.dst.parent if self.dst else self.out_dir or Path()
        adapter = self.out or folder / f"{Path(self.src).stem}.adapter.safetensors"
        report = {"report": self.report} if self.report else {}
        return {**super().outputs(), "adapter": adapter, **report}

    def batch(self) -> "BatchRequest | None":
        """Return the mapping of all scenes with the adapter file; None without ``out_dir``."""
        if self.out_dir is None:
            return None
        shared = {each.name: getattr(self, each.name) for each in fields(MapRequest)}
        return BatchRequest(
            srcs=(self.src, *self.more),
            out_dir=self.out_dir,
            each=MapRequest(**shared | {"model": str(self.outputs()["adapter"])}),
            name=self.name,
            vector_format=self.vector_format,
        )

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError, InputError, DataError: As ``MapRequest.check``.
        """
        if self.more and self.dst is not None:
            raise InputError(
                found=f"--dst for {1 + len(self.more)} scenes",
                expected="--out-dir, a folder for their maps",
            )
        batch = self.batch()
        if batch is None:
            super().check()
        else:
            batch.check()
            self.check_options()
            for asked in (self, *batch.requests()):  # now, not after minutes of training
                check_outputs(
                    asked.outputs(),
                    overwrite=self.overwrite,
                    inputs=self.inputs(),
                    made=batch.out_dir,
                )
            self.open().close()
        for src in self.more:
            replace(self, src=src).open().close()

    def check_options(self) -> None:
        """Refuse what cannot work for any scene.

        Raises:
            InputError, DataError, MissingDependencyError: As ``MapRequest.check_options``.
        """
        if self.minutes is not None and self.steps is not None:
            raise InputError(
                found="--minutes and --steps together",
                expected="one of them",
                fix="Give --steps to repeat a run exactly, or --minutes to end in time",
            )
        if self.labels is None and (self.label_field or self.label_class or self.label_map):
            raise InputError(
                found="--label-field, --label-class or --label-map without --labels",
                expected="the labels that they are about",
                fix="Add --labels polygons.gpkg",
            )
        check_policy(self.policy)
        super().check_options()


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """Map many scenes with one model."""

    srcs: tuple[str, ...]
    """Paths of the scenes."""

    out_dir: Path
    """Folder for the maps and ``manifest.jsonl``; made where it is missing."""

    each: MapRequest
    """What is asked of every scene; its ``src`` does not count, and ``out_dir`` is its ``dst``."""

    name: str = MAP_NAME
    """Name of a scene's map, with the fields {scene} and {n}."""

    vector_format: str | None = None
    """One of ``VECTOR_FORMATS`` for polygons beside every map."""

    retry_failed: bool = False
    """Whether scenes that failed in an earlier run are mapped again."""

    @property
    def manifest(self) -> Path:
        """The file with one line of JSON per finished scene."""
        return self.out_dir / "manifest.jsonl"

    @property
    def collection(self) -> Path:
        """The STAC Collection of all maps in the folder."""
        return self.out_dir / COLLECTION_NAME

    def requests(self) -> list[MapRequest]:
        """Return what is asked of each scene.

        Raises:
            InputError: The template is not one.
        """
        asked = []
        for n, src in enumerate(self.srcs, start=1):
            dst = self.out_dir / _map_name(self.name, src, n)
            vector = dst.with_suffix(f".{self.vector_format}") if self.vector_format else None
            asked.append(
                replace(self.each, src=src, dst=dst, vector=vector, collection=self._collection_id)
            )
        return asked

    @property
    def _collection_id(self) -> str | None:
        return self.out_dir.resolve().name if self.each.stac else None

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        A scene that cannot be opened, or an output that exists, is no reason yet.

        Raises:
            OutputError: An output cannot be written, is an input, or ends wrongly.
            InputError: Options that are unknown or exclude one another, or two maps of one name.
        """
        self.each.check_options()
        self._check_place()
        requests = self.requests()
        inputs = {Path(path).resolve() for request in requests for path in request.inputs()}
        owners: dict[str, MapRequest] = {}
        self._check_collection(requests)
        for request in requests:
            outputs = request.outputs()
            check_outputs(outputs, overwrite=True, inputs=[], made=self.out_dir)
            for path in outputs.values():
                if path.resolve() in inputs:
                    raise OutputError(
                        found=f"{path} is an input of this run",
                        expected="another file for the output",
                    )
                owner = owners.setdefault(str(path).casefold(), request)
                if owner is not request:
                    raise InputError(
                        found=f"{owner.src} and {request.src} would both write {path}",
                        expected="a name of its own for every scene",
                        fix="Number them, e.g. --name {scene}_{n}_map.tif",
                    )

    def _check_collection(self, requests: list[MapRequest]) -> None:
        if not self.each.stac:
            return
        # One that lies beside a manifest is ours, and grows with it.
        ours = self.each.overwrite or self.manifest.exists()
        check_outputs({"stac": self.collection}, overwrite=ours, inputs=[], made=self.out_dir)
        for request in requests:
            if request.outputs()["stac"].name == COLLECTION_NAME:
                raise InputError(
                    found=f"the map of {request.src} named {request.dst}",
                    expected=f"another name: {COLLECTION_NAME} is the Collection's",
                )

    def _check_place(self) -> None:
        if self.each.dst is not None:
            raise InputError(
                found="--dst and --out-dir together",
                expected="one of them",
                fix="--dst names the map of one scene, --out-dir a folder for many",
            )
        if self.each.vector is not None:
            raise InputError(
                found="--vector together with --out-dir",
                expected="--vector-format, for polygons beside every map",
            )


@dataclass(frozen=True, kw_only=True)
class VectorizeRequest:
    """Turn a map into polygons."""

    map: str
    """Map that earthgate wrote."""

    dst: Path
    """Polygons to write, in one of ``VECTOR_FORMATS``."""

    overwrite: bool = False
    """Whether an existing one may be replaced."""

    vectors: VectorOptions = field(default_factory=VectorOptions)
    """How the map becomes polygons."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Compare a map with known classes."""

    map: str
    """Map that earthgate wrote."""

    labels: str
    """Vector or raster of known classes."""

    label_field: str | None = None
    """Field that holds the class."""

    label_class: str | None = None
    """Class of all labels."""

    label_map: Mapping[str, str] | None = None
    """Class by code of the labels."""


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """Make a model file of a checkpoint that CrossEarth's authors released."""

    checkpoint: Path
    """File of torch or safetensors."""

    classes: str
    """Name of a dataset, or a ``classes.json`` in the checkpoint's order."""

    out: Path
    """Model file to write."""

    weights: str | None = None
    """DINOv2's own, by file or ``published``, for a checkpoint without its backbone."""

    channels: tuple[str, ...] = ("red", "green", "blue")
    """Meaning of the input channels."""

    gsd: float | None = None
    """Ground size of a pixel of the images that it was trained on, in metres."""

    tile_px: int | None = None
    """Height and width of a tile; None reads it off the checkpoint."""

    overwrite: bool = False
    """Whether an existing model file may be replaced."""

    def inputs(self) -> list[str]:
        """Return the files that are read and must not be written."""
        return [str(self.checkpoint), *([self.weights] if self.weights else [])]

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role."""
        return {"model": self.out}

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: The model file exists or cannot be written.
            InputError: There are not three channels, or a number is out of range.
        """
        if len(set(self.channels)) != 3 or not all(self.channels):
            raise InputError(
                found=f"--channels {','.join(self.channels)}",
                expected="three names, e.g. nir,red,green",
            )
        if self.gsd is not None and not 0 < self.gsd < math.inf:
            raise InputError(found=f"--gsd {self.gsd:g}", expected="metres, more than 0")
        check_outputs(self.outputs(), overwrite=self.overwrite, inputs=self.inputs())


def check_policy(name: str) -> None:
    """Refuse a policy that there is not.

    Raises:
        InputError: As the sentence says.
    """
    if name not in tuple(Policy):
        raise InputError(found=f"the policy {name!r}", expected=", ".join(Policy))


def check_cluster(scheduler: str | None, workers: int | None) -> None:
    """Refuse two Dask clusters at once, or one without Dask.

    Raises:
        InputError: A running cluster and one to start.
        MissingDependencyError: Dask is not installed.
    """
    if scheduler is not None and workers is not None:
        raise InputError(
            found="--scheduler and --workers together",
            expected="one of them",
            fix="--scheduler joins a running cluster, --workers starts one on this machine",
        )
    if find_spec("distributed") is None:
        raise MissingDependencyError(
            found="--engine dask needs the library distributed, which is not installed",
            fix="Install it with: pip install 'earthgate-geo[dask]'",
        )


def _map_name(template: str, src: str, n: int) -> str:
    try:
        name = template.format(scene=Path(src).stem, n=n)
    except (AttributeError, LookupError, TypeError, ValueError):
        name = ""
    if not name or Path(name).name != name:
        raise InputError(
            found=f"the name {template!r}",
            expected=f"a file's name, with the fields {{scene}} and {{n}} if any, e.g. {MAP_NAME}",
        )
    return name


def check_outputs(
    outputs: Mapping[str, Path],
    *,
    overwrite: bool,
    inputs: Sequence[str],
    made: Path | None = None,
) -> None:
    """Refuse outputs that cannot or must not be written, without touching anything.

    Args:
        outputs: Final names by role.
        overwrite: Whether older outputs may be replaced.
        inputs: Files that no output may be.
        made: Folder that will be made if it is missing.

    Raises:
        OutputError: One exists, is an input, has the ending of another kind of file, or its
            folder is missing or not writable.
    """
    for role, path in outputs.items():
        endings = ENDINGS.get(role, (".tif",))
        if path.suffix.lower() not in endings:
            raise OutputError(
                found=f"{path} for the {role}",
                expected=f"a name ending in {' or '.join(endings)}",
            )
        if path.parent != made or made.exists():
            Destination(path, overwrite=overwrite, inputs=inputs).check()
