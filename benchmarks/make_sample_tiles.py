"""Make sample_tiles/: one generated town as two cameras see it, with labels, truth and heights.

Run as ``python benchmarks/make_sample_tiles.py``; the same code gives the same pictures.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp
from shapely import Polygon

from earthgate_geo.data.synthetic import (
    CLASSES,
    Rendering,
    Sensor,
    View,
    draw_town,
    render,
)
from earthgate_geo.raster.classes import NODATA
from earthgate_geo.raster.grid import Size

SEED = 12
EXTENT_M = 400.0
CRS = "EPSG:32737"
EAST_M, NORTH_M = 523_400.0, 9_311_800.0  # the town's north-west corner, on the coast of Tanzania
POLYGONS = {"building": 4, "road": 3, "bare ground": 3, "vegetation": 3, "water": 2}
DSM_NODATA = -9999.0
TILED = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 9}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One scene to make."""

    name: str
    sensor: Sensor
    view: View
    seed: int

    @property
    def transform(self) -> Affine:
        """From pixels to ``CRS``."""
        gsd = self.sensor.gsd_m
        return Affine(gsd, 0, EAST_M + self.view.x_m, 0, -gsd, NORTH_M - self.view.y_m)


SAMPLES = (
    Sample(
        name="town_rgb",
        sensor=Sensor(
            gsd_m=0.25,
            sun_azimuth_deg=62,
            sun_elevation_deg=54,
            diffuse=0.34,
            noise=0.008,
            vignetting=0.08,
            gain=(1.02, 1.0, 0.97),
        ),
        view=View(x_m=20, y_m=30, size=Size(1000, 1000)),
        seed=1,
    ),
    Sample(
        name="town_irrg",
        sensor=Sensor(
            gsd_m=0.4,
            bands=("nir", "red", "green"),
            sun_azimuth_deg=318,
            sun_elevation_deg=38,
            diffuse=0.45,
            haze=0.28,
            noise=0.016,
            blur_px=0.7,
            vignetting=0.14,
            gain=(1.0, 0.92, 0.95),
        ),
        view=View(x_m=110, y_m=104, size=Size(700, 720)),
        seed=2,
    ),
)


def main(folder: Path) -> None:
    """Write every file of sample_tiles into ``folder`` and print its sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2026-01-01T00:00:00Z"})
    plan = draw_town(SEED, EXTENT_M, style="town")
    for sample in SAMPLES:
        made = render(plan, sample.sensor, np.random.default_rng(sample.seed), view=sample.view)
        write_scene(folder / f"{sample.name}.tif", sample, made)
        write_truth(folder / f"{sample.name}_truth.tif", sample, made.labels)
        write_dsm(folder / f"{sample.name}_dsm.tif", sample, made.height)
        write_labels(folder / f"{sample.name}_labels.gpkg", sample, made.labels)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")


def write_scene(path: Path, sample: Sample, made: Rendering) -> None:
    """Write the picture with its band names."""
    bands, rows, cols = made.image.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=cols, height=rows, count=bands, dtype="uint8",
        crs=CRS, transform=sample.transform, photometric="rgb", predictor=2, **TILED,
    ) as out:  # fmt: skip
        out.write(made.image)
        for band, name in enumerate(sample.sensor.bands, 1):
            out.set_band_description(band, name)


def write_truth(path: Path, sample: Sample, labels: NDArray[np.uint8]) -> None:
    """Write the class raster with palette and class table."""
    rows, cols = labels.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=cols, height=rows, count=1, dtype="uint8", nodata=NODATA,
        crs=CRS, transform=sample.transform, **TILED,
    ) as out:  # fmt: skip
        out.write(labels, 1)
        out.write_colormap(1, CLASSES.colormap())
        out.colorinterp = [ColorInterp.palette]
        out.update_tags(EARTHGATE_CLASSES=CLASSES.to_json())


def write_dsm(path: Path, sample: Sample, height: NDArray[np.float32]) -> None:
    """Write heights above ground at half the resolution, to the centimetre."""
    rows, cols = height.shape[0] // 2, height.shape[1] // 2
    coarse = height[: rows * 2, : cols * 2].reshape(rows, 2, cols, 2).mean((1, 3))
    with rasterio.open(
        path, "w", driver="GTiff", width=cols, height=rows, count=1, dtype="float32",
        nodata=DSM_NODATA, crs=CRS, transform=sample.transform @ Affine.scale(2), predictor=3,
        **TILED,
    ) as out:  # fmt: skip
        out.write(np.round(coarse * 100) / np.float32(100), 1)
        out.set_band_description(1, "height above ground (m)")


def write_labels(path: Path, sample: Sample, labels: NDArray[np.uint8]) -> None:
    """Write a few polygons a person could have drawn, with the field ``class``."""
    rng = np.random.default_rng(sample.seed)
    names, shapes = [], []
    for name, count in POLYGONS.items():
        for corners in pure_rectangles(labels, CLASSES.value(name), count, rng):
            names.append(name)
            shapes.append(Polygon([sample.transform @ tuple(corner) for corner in corners]))
    path.unlink(missing_ok=True)
    frame = gpd.GeoDataFrame({"class": names}, geometry=shapes, crs=CRS)
    frame.to_file(path, layer="labels", driver="GPKG", engine="pyogrio")


def pure_rectangles(
    labels: NDArray[np.uint8], value: int, count: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Return corners (4, 2) in (col, row) of large rectangles of one class, far from each other."""
    rows, cols = np.nonzero(labels == value)
    found: list[tuple[float, NDArray[np.float64]]] = []
    steps = np.stack(np.meshgrid(*[np.linspace(-1, 1, 33)] * 2), -1).reshape(-1, 2)
    for index in rng.integers(len(rows), size=6000):
        half, turn = rng.uniform(4, 30, 2), rng.uniform(0, math.pi)
        spin = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        center = np.array([cols[index], rows[index]]) + 0.5
        at = (steps * (half + 1) @ spin + center).astype(int)
        if (at < 0).any() or (at >= labels.shape[::-1]).any():
            continue
        if (labels[at[:, 1], at[:, 0]] == value).all():
            corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
            found.append((float(half.prod()), corners @ spin + center))
    found.sort(key=lambda item: -item[0])
    chosen: list[NDArray[np.float64]] = []
    apart = 0.15 * labels.shape[0]
    for _, corners in found:
        gaps = [np.hypot(*(corners.mean(0) - other.mean(0))) for other in chosen]
        if len(chosen) < count and min(gaps, default=math.inf) > apart:
            chosen.append(corners)
    return chosen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "sample_tiles")
    main(parser.parse_args().to)
