"""GDAL and PROJ: several copies come with the packages, and must read their own files."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from earthgate_geo.doctor.check import REINSTALL, Doubt

_LEADERS = ("GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_DATA", "PROJ_LIB")


def foreign(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that lead GDAL and PROJ to files outside this environment."""
    own = Path(sys.prefix).resolve()
    return {
        name: environment[name]
        for name in _LEADERS
        if environment.get(name) and not Path(environment[name]).resolve().is_relative_to(own)
    }


def leaders(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that lead GDAL and PROJ anywhere, empty ones, too."""
    return {name: environment[name] for name in _LEADERS if name in environment}


def mend(leading: Mapping[str, str]) -> str:
    """Say what to do where GDAL or PROJ is broken."""
    return f"unset {' and '.join(leading)}, which another program set" if leading else REINSTALL


def environment(foreign: Mapping[str, str]) -> str | Doubt:
    """Tell of variables that lead to files of another installation, though all may work yet."""
    if not foreign:
        return "no variable leads GDAL or PROJ to another installation"
    told = ", ".join(f"{name}={value}" for name, value in foreign.items())
    return Doubt(f"{told}: files of another installation", mend(foreign))


def gdal() -> str:
    """Write a small COG in memory and read it back."""
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


def proj() -> str:
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


def geopackage() -> str:
    """Look whether polygons can be written."""
    pyogrio = import_module("pyogrio")
    if "w" not in pyogrio.list_drivers().get("GPKG", ""):
        raise OSError("pyogrio cannot write GeoPackage")
    return f"GDAL {'.'.join(map(str, pyogrio.__gdal_version__))}, writes GPKG"
