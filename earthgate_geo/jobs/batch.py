"""Many scenes, one after another or together: one that fails does not stop the others."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from earthgate_geo.errors import (
    CancelledError,
    EarthgateError,
    HeightsElsewhereError,
    LostEngineError,
    OutputError,
    OutsideAreaError,
    StorageError,
)
from earthgate_geo.jobs.documents import Document
from earthgate_geo.jobs.engines import Engines
from earthgate_geo.jobs.manifest import Manifest
from earthgate_geo.jobs.map import plan, run_map
from earthgate_geo.jobs.prepare import heights_of
from earthgate_geo.jobs.together import done_together
from earthgate_geo.model_file import LoadedModel
from earthgate_geo.monitor import Monitor
from earthgate_geo.raster.destination import Destination, publish
from earthgate_geo.raster.read import SceneOptions, open_scene
from earthgate_geo.request import BatchRequest, MapRequest, check_outputs

_CURRENT = "current"
"""File in the manifest's hidden folder that holds the keys of the scenes that are being mapped."""

_DECISIVE = (
    *("asset", "bands", "nodata", "gsd", "assume_crs", "confidence", "probs", "creation"),
    "vectors",
    *("runtime", "precision"),
)
"""What of a request decides its outputs, beside the files that it names."""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A scene of a batch."""

    request: MapRequest
    """What is asked of it."""

    key: str
    """Tells it, the model and the options that decide its map from others."""

    asked: str
    """Tells all that is asked, also what only decides whether it can be mapped."""

    record: Document | None
    """What an earlier run made of it; None where there is something left to do."""

    @property
    def about(self) -> Document:
        """What a record begins with."""
        src, dst = self.request.src, self.request.dst
        names = {"src": src, "scene": Path(src).stem, "map": dst.name if dst else ""}
        return {**names, "key": self.key, "asked": self.asked, "outputs": {}}


def run_batch(
    request: BatchRequest, monitor: Monitor, *, engines: Engines | None = None
) -> Document:
    """Map many scenes; the same request again goes on where a run stopped.

    Scenes that are done are passed over as long as their outputs are there and scene, model and
    options are the same; scenes outside the area, too, and scenes that failed unless
    ``retry_failed`` is set.

    Args:
        request: What is asked.
        monitor: Told the stages of every scene; may cancel.
        engines: What earlier requests have loaded.

    Returns:
        The result document of ``earthgate map --out-dir --json``: per scene in ``scenes`` the
        result document of its map, ``src``, ``state`` (done, outside or failed), ``error``
        where it failed, and ``earlier``, whether an earlier run did that; ``manifest``,
        ``seconds`` and, with ``stac``, ``collection``.

    Raises:
        EarthgateError: Nothing can be mapped: the request, the model or the folder is wrong, or
            the cluster is lost.
        CancelledError: Interrupted; the manifest holds what is finished.
    """
    started = time.perf_counter()
    request.check()
    _check_heights(request)
    manifest, found = Manifest(request.manifest), {}
    with (
        made_folder(request.out_dir),
        _place(request) as place,
        Engines() if engines is None else nullcontext(engines) as at_hand,
    ):
        scenes = _scenes(request, at_hand.model(request.each))
        begun = _Begun(place.scratch / _CURRENT)
        left = [(n, scene) for n, scene in enumerate(scenes, 1) if scene.record is None]

        def mapped(numbered: tuple[int, _Scene], monitor: Monitor) -> Document:
            n, scene = numbered
            monitor.log(f"scene {n} of {len(scenes)}: {scene.request.src}")
            begun.add(scene.key)
            return _mapped(scene, monitor, at_hand)

        records = (mapped(each, monitor) for each in left)
        if request.each.engine != "local":
            records = done_together(left, mapped, monitor=monitor)
        with _told_to_go_on(anew=request.each.overwrite), closing(records):
            for record in records:
                manifest.append(record)
                begun.remove(record["key"])
                found[record["key"]] = record | {"earlier": False}
        collected = _collected(request, manifest, place.scratch)
    return {
        "scenes": [found.get(s.key) or {**(s.record or {}), "earlier": True} for s in scenes],
        "manifest": str(request.manifest),
        "seconds": {"total": time.perf_counter() - started},
        **collected,
    }


def _collected(request: BatchRequest, manifest: Manifest, scratch: Path) -> Document:
    """Write the Collection of all Items in the folder; say where it is."""
    listed = [record.get("outputs", {}).get("stac") for record in manifest.records().values()]
    items = [request.out_dir / Path(each).name for each in listed if each]
    there = [item for item in items if item.exists()]
    if not request.each.stac or not there:
        return {}
    from earthgate_geo.stac import write_collection  # noqa: PLC0415 - needs an extra

    built = scratch / request.collection.name
    write_collection(built, there, name=request.out_dir.resolve().name)
    publish(built, request.collection)
    return {"collection": str(request.collection)}


class _Begun:
    """The keys of scenes that are being mapped, on disk: what a killed run may have finished."""

    def __init__(self, path: Path) -> None:
        self._path, self._keys, self._lock = path, set[str](), threading.Lock()

    def add(self, key: str) -> None:
        with self._lock:
            self._keys.add(key)
            self._path.write_text("\n".join(self._keys), encoding="utf-8")

    def remove(self, key: str) -> None:
        with self._lock:
            self._keys.discard(key)
            self._path.write_text("\n".join(self._keys), encoding="utf-8")


@contextmanager
def _told_to_go_on(*, anew: bool) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, CancelledError) as error:
        fix = "Run the same command again to go on with the scenes that are left"
        if anew:
            fix = "Run the same command again; --overwrite makes it begin with the first scene"
        raise CancelledError(fix=fix) from error


def plan_batch(request: BatchRequest, monitor: Monitor) -> Document:
    """Say what a batch would do and need; nothing is written.

    Returns:
        ``scenes``, each with ``src`` and ``state`` (planned, done, outside or failed) beside what
        ``plan`` says; of those planned ``tiles``, ``disk_mb`` and ``seconds`` in all, the most
        ``memory_mb`` and the least ``disk_free_mb``.

    Raises:
        EarthgateError: As ``run_batch`` before its first scene.
    """
    request.check()
    _check_heights(request)
    with made_folder(request.out_dir), Engines() as engines:
        scenes = _scenes(request, engines.model(request.each))
        found = [scene.record or _planned(scene, monitor, engines) for scene in scenes]
    plans = [entry for entry in found if entry["state"] == "planned"]
    return {
        "scenes": found,
        **{key: sum(entry[key] for entry in plans) for key in ("tiles", "disk_mb", "seconds")},
        "memory_mb": max((entry["memory_mb"] for entry in plans), default=0),
        "disk_free_mb": min((entry["disk_free_mb"] for entry in plans), default=0),
        "manifest": str(request.manifest),
    }


def _place(request: BatchRequest) -> Destination:
    return Destination(request.manifest, overwrite=True, keep=_CURRENT)


def _scenes(request: BatchRequest, model: LoadedModel) -> list[_Scene]:
    """Return all scenes, those that an earlier run settled with its record.

    Raises:
        OutputError: An output is in the way.
    """
    records = Manifest(request.manifest).records()
    current = _place(request).scratch / _CURRENT
    killed = current.read_text(encoding="utf-8").split() if current.exists() else []
    scenes = []
    for asked in request.requests():
        scene = _Scene(request=asked, key=_key(asked, model), asked=_digest(asked), record=None)
        record = records.get(scene.about["map"], {})
        state = record["state"] if record.get("key") == scene.key else ""
        if state == "failed" and (request.retry_failed or record.get("asked") != scene.asked):
            state = ""
        if _is_settled(state, asked):
            scene = replace(scene, record=record)
        else:
            # What is left of outputs like these, or was finished just before a kill, is ours.
            overwrite = asked.overwrite or state == "done" or scene.key in killed
            check_outputs(asked.outputs(), overwrite=overwrite, inputs=asked.inputs())
            scene = replace(scene, request=replace(asked, overwrite=overwrite))
        scenes.append(scene)
    return scenes


def _is_settled(state: str, request: MapRequest) -> bool:
    if request.overwrite:
        return False
    if state == "done":
        return all(path.exists() for path in request.outputs().values())
    return state in {"failed", "outside"}


def _mapped(scene: _Scene, monitor: Monitor, engines: Engines) -> Document:
    """Map a scene and return its record."""
    try:
        document = _with_what_fits(run_map, scene.request, monitor, engines)
    except (CancelledError, LostEngineError, StorageError):
        raise  # the next scene would fare no better
    except OutsideAreaError:
        return _outside(scene, monitor)
    except Exception as error:  # noqa: BLE001  # whatever one scene is ill with, others are not
        return _failed(scene, error, monitor)
    return scene.about | {"state": "done"} | document


def _planned(scene: _Scene, monitor: Monitor, engines: Engines) -> Document:
    try:
        planned = _with_what_fits(plan, scene.request, monitor, engines)
    except CancelledError:
        raise
    except OutsideAreaError:
        return _outside(scene, monitor)
    except EarthgateError as error:
        return _failed(scene, error, monitor)
    return scene.about | {"state": "planned"} | planned


def _with_what_fits(
    job: Callable[..., Document], request: MapRequest, monitor: Monitor, engines: Engines
) -> Document:
    """Do a job; without heights where they lie elsewhere, which it warns of."""
    try:
        return job(request, monitor, engines=engines)
    except HeightsElsewhereError:
        return job(request.without_heights(), monitor, engines=engines)


def _check_heights(request: BatchRequest) -> None:
    """Refuse heights that lie in none of the scenes."""
    missed: HeightsElsewhereError | None = None
    for each in request.requests() if request.each.dsm else ():
        try:
            with each.open() as scene:
                heights_of(each, scene).close()
                return
        except HeightsElsewhereError as error:
            missed = error
        except EarthgateError:  # told when it is this scene's turn
            continue
    if missed is not None:
        raise missed


def _outside(scene: _Scene, monitor: Monitor) -> Document:
    monitor.log(f"{scene.request.src} lies outside {scene.request.aoi}: there is nothing to map")
    return scene.about | {"state": "outside"}


def _failed(scene: _Scene, error: Exception, monitor: Monitor) -> Document:
    told = str(error)
    if not isinstance(error, EarthgateError):
        cause = f"unexpected {type(error).__name__}: {' '.join(told.split())}".rstrip(": ")
        told = f"{cause}; map it alone with -v to see more"
    monitor.warn(f"{scene.request.src} failed: {told}")
    return scene.about | {"state": "failed", "error": told}


def _key(request: MapRequest, model: LoadedModel) -> str:
    """Return what tells a scene, a model and the options that decide the outputs from others."""
    told = [
        _state(request.src, request.asset),
        *(_state(path) for path in (request.aoi, request.dsm, request.dtm) if path),
        {role: path.name for role, path in request.outputs().items()},
        {name: getattr(request, name) for name in _DECISIVE},
        [model.digest, model.adapter_digest],
    ]
    return _digest(told)


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


def _state(path: str, assets: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return what changes with a file and those that belong to it, wherever they are moved."""
    options = SceneOptions(placed=False, assets=assets)
    with suppress(EarthgateError), open_scene(path, options) as scene:
        return Path(path).name, scene.digest()
    with suppress(OSError):
        found = Path(path).stat()  # no raster
        return Path(path).name, f"{found.st_size} {found.st_mtime_ns}"
    return Path(path).name, ""


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder; take what was made away again if nothing came to be in it.

    Raises:
        OutputError: It cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            found=f"the folder {folder} cannot be made ({error.strerror})",
            fix="Give another folder",
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # there is something in it
            for place in missing:
                place.rmdir()
