"""Is this installation sound? Each check says what was found and how to mend it."""

import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from earthgate_geo import __version__

_PACKAGES = ("torch", "torchvision", "torchgeo", "timm", "rasterio", "pyproj", "pyogrio")
_REINSTALL = "install earthgate-geo again in a fresh virtual environment"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    """What was looked at."""

    ok: bool
    """False where something is broken."""

    found: str
    """What was found, one line."""

    fix: str
    """What to do where it is broken, an imperative clause."""


def diagnose() -> dict[str, Any]:
    """Look at everything a run needs.

    Returns:
        ``healthy``, ``version``, ``python``, ``platform`` and ``checks`` as JSON values.
    """
    checks = [
        *(_looked_at(name, partial(_import, name), _REINSTALL) for name in _PACKAGES),
        _looked_at("devices", _devices, "install a torch build that fits this machine"),
        _looked_at("OpenVINO", _openvino, f"{_REINSTALL}; until then map with --runtime torch"),
        _looked_at("GDAL", _gdal, f"{_REINSTALL}; unset GDAL_DATA and GDAL_DRIVER_PATH"),
        _looked_at("PROJ", _proj, f"{_REINSTALL}; unset PROJ_DATA and PROJ_LIB"),
        _looked_at("GeoPackage", _geopackage, f"{_REINSTALL}; unset GDAL_DATA"),
        _looked_at("default model", _default_model, _REINSTALL),
        _looked_at("current folder", partial(_writable, Path.cwd()), "run in a writable folder"),
        _looked_at(
            "temporary folder",
            partial(_writable, Path(tempfile.gettempdir())),
            "set TMPDIR (TEMP on Windows) to a writable folder with room",
        ),
    ]
    return {
        "healthy": all(check.ok for check in checks),
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "checks": [asdict(check) for check in checks],
    }


def _looked_at(name: str, look: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name=name, ok=True, found=look(), fix=fix)
    except Exception as error:  # noqa: BLE001  # whatever is broken, the other checks go on
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name=name, ok=False, found=told, fix=fix)


def _import(name: str) -> str:
    import_module(name)
    try:
        return version(name)
    except PackageNotFoundError:
        return "without a version"


def _devices() -> str:
    torch = import_module("torch")
    found = [f"cpu with {torch.get_num_threads()} threads"]
    found += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    for device in ["cuda"] * torch.cuda.is_available() + ["cpu"]:
        if float(torch.ones(2, device=device).sum()) != 2:
            raise ArithmeticError(f"1 + 1 is not 2 on {device}")
    return ", ".join(found)


def _openvino() -> str:
    told = import_module("earthgate_geo.mapping.runtime_openvino").try_out()
    return str(told)


def _gdal() -> str:
    rasterio = import_module("rasterio")
    numpy = import_module("numpy")
    pixels = numpy.arange(64, dtype="uint8").reshape(1, 8, 8)
    shape = {"width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    place = rasterio.Affine(1, 0, 500_000, 0, -1, 5_500_000)
    with rasterio.MemoryFile() as file:
        with file.open(driver="COG", transform=place, **shape) as raster:
            raster.write(pixels)
        with file.open() as raster:
            if not numpy.array_equal(raster.read(), pixels):
                raise OSError("a COG does not come back as it was written")
    return f"{rasterio.__gdal_version__}, writes COG"


def _proj() -> str:
    """Ask both copies of PROJ, pyproj's and GDAL's: a foreign database breaks one of them."""
    pyproj = import_module("pyproj")
    warp = import_module("rasterio.warp")
    wanted = (500_000.0, 5_538_630.703)  # EPSG:32633 of 15 degrees east, 50 degrees north
    direct = pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform(15, 50)
    by_gdal = [axis[0] for axis in warp.transform("EPSG:4326", "EPSG:32633", [15], [50])]
    for who, found in (("pyproj", direct), ("GDAL", by_gdal)):
        if max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > 0.01:
            raise ArithmeticError(f"{who} puts 15 E 50 N at {found} in EPSG:32633")
    return str(pyproj.proj_version_str)


def _geopackage() -> str:
    pyogrio = import_module("pyogrio")
    if "w" not in pyogrio.list_drivers().get("GPKG", ""):
        raise OSError("pyogrio cannot write GeoPackage")
    return f"GDAL {'.'.join(map(str, pyogrio.__gdal_version__))}, writes GPKG"


def _default_model() -> str:
    torch = import_module("torch")
    model = import_module("earthgate_geo.model_file").load_model()
    with torch.inference_mode():
        logits = model.segmenter(torch.full((1, len(model.segmenter.config.bands), 64, 64), 0.5))
    if not torch.isfinite(logits).all():
        raise ArithmeticError(f"{model.name} gives numbers that are not finite")
    return f"{model.name}, sha256 {model.digest}"


def _writable(folder: Path) -> str:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"earthgate")
    return str(folder)
