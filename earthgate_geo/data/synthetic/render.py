"""A plan seen by a sensor: pixels, classes and heights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize

from earthgate_geo.data.synthetic.materials import BUILDING, ROAD, WATER
from earthgate_geo.data.synthetic.plan import COLUMN, Layer, TownPlan
from earthgate_geo.data.synthetic.sensor import BANDS, Sensor, draw_sensor, expose
from earthgate_geo.data.synthetic.town import draw_town
from earthgate_geo.raster.grid import Size

Plane = NDArray[np.float32]
"""(row, col) of the fine canvas."""

_FINE_M = (2.1, 0.75, 0.3)
"""Wavelengths of the small noises."""

_FINE = 2
"""Canvas pixels per image pixel and axis; averaged down against stair steps."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a town an image shows, north up."""

    x_m: float
    """West edge, in metres of the plan."""

    y_m: float
    """North edge, in metres of the plan."""

    size: Size
    """Image size in pixels."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """An image with its truth."""

    image: NDArray[np.uint8]
    """(band, row, col)."""

    labels: NDArray[np.uint8]
    """(row, col), values of ``CLASSES``."""

    height: NDArray[np.float32]
    """(row, col), metres above ground: buildings and vegetation."""

    gsd_m: float
    """Ground size of a pixel."""


def render(
    plan: TownPlan, sensor: Sensor, rng: np.random.Generator, *, view: View | None = None
) -> Rendering:
    """Return what ``sensor`` records of ``plan``.

    The ground, its textures and classes depend on the plan only; ``rng`` makes grain and haze.

    Args:
        plan: The town.
        sensor: Camera and day.
        rng: Source of noise.
        view: Part to show; the whole town by default.
    """
    if view is None:
        side = max(1, round(plan.extent_m / sensor.gsd_m))
        view = View(x_m=0.0, y_m=0.0, size=Size(side, side))
    canvas = _Canvas(plan, sensor, view)
    height, east, south = canvas.surface()
    light = canvas.lambert(east, south) * (1 - _shadow(height, sensor, canvas.px))
    albedo_scale = canvas.texture(rng)
    radiance = np.stack(
        [
            _down(canvas.albedo(band) * albedo_scale * (sky + sun * light))
            for band in sensor.band_numbers
            for sky, sun in [sensor.light(band)]
        ]
    )
    labels = _majority(canvas.kinds())
    ground = np.where((labels == ROAD) | (labels == WATER), np.float32(0), _down(height))
    ground = np.where(labels == BUILDING, _max_down(height), ground)
    image = expose(radiance, sensor, rng)
    return Rendering(image=image, labels=labels, height=ground, gsd_m=sensor.gsd_m)


def random_tile(
    rng: np.random.Generator, size_px: int, *, gsd_m: tuple[float, float] = (0.07, 0.6)
) -> Rendering:
    """Return a random place seen by a random sensor.

    Args:
        rng: Source of everything.
        size_px: Side of the tile.
        gsd_m: Smallest and largest ground size of a pixel, drawn evenly by its logarithm.
    """
    gsd = float(np.exp(rng.uniform(*np.log(gsd_m))))
    plan = draw_town(int(rng.integers(2**31)), size_px * gsd)
    return render(
        plan, draw_sensor(rng, gsd_m=gsd), rng, view=View(x_m=0, y_m=0, size=Size(size_px, size_px))
    )


class _Canvas:
    def __init__(self, plan: TownPlan, sensor: Sensor, view: View) -> None:
        self.plan, self.sensor = plan, sensor
        self.px = px = sensor.gsd_m / _FINE
        rows, cols = view.size.rows * _FINE, view.size.cols * _FINE
        self.xs = view.x_m + (np.arange(cols, dtype=np.float64) + 0.5) * px
        self.ys = view.y_m + (np.arange(rows, dtype=np.float64) + 0.5) * px
        self.x0, self.y0 = float(self.xs[0]), float(self.ys[0])
        self.x = (self.xs - self.x0).astype(np.float32)[None, :]
        self.y = (self.ys - self.y0).astype(np.float32)[:, None]
        self.wide, self.mid = self._noise(1, 34.0), self._noise(2, 7.5)
        self.small, self.leafy, self.fine = (self._noise(3 + n, m) for n, m in enumerate(_FINE_M))
        self.ids = self._paint()
        self.faces = _seasoned(plan.faces, sensor)
        self.excess = 0.4 * self.wide + 0.45 * self.mid + 0.4 * self.small - self._wear_level()
        frayed = self.excess + 0.35 * self.leafy + 0.25 * self.fine
        self.worn = np.clip(0.5 + frayed / self._get("soft"), 0, 1)

    def _noise(self, salt: int, wavelength_m: float) -> Plane:
        return _lattice(self.plan.seed * 16 + salt, self.xs, self.ys, wavelength_m, self.px)

    def _get(self, column: str, factor: NDArray[np.floating] | float = 1) -> Plane:
        values = (self.faces[:, COLUMN[column]] * factor).astype(np.float32)
        return np.asarray(np.take(values, self.ids))

    def _paint(self) -> NDArray[np.intp]:
        frame = (self.x0 - self.px / 2, self.y0 - self.px / 2)
        layers, shape = self.plan.layers, (len(self.ys), len(self.xs))
        transform = Affine(self.px, 0, frame[0], 0, self.px, frame[1])
        seen = _seen(self.plan, self.xs, self.ys)
        ground = _burn(self.plan, seen & (layers < Layer.KERB), shape, transform)
        solid = _burn(
            self.plan, seen & (layers >= Layer.KERB) & (layers < Layer.CANOPY), shape, transform
        )
        canopy = _burn(self.plan, seen & (layers == Layer.CANOPY), shape, transform)
        ids = _frayed(ground, self.small, self.mid, 0.4 / self.px)
        ids = np.where(solid > 0, solid, ids)
        leaves = _frayed(canopy, self.leafy, self.small, 0.5 / self.px)
        return np.where(leaves > 0, leaves, ids).astype(np.intp)

    def _wear_level(self) -> Plane:
        share = np.clip(self.plan.faces[:, COLUMN["wear"]], 0.002, 0.998)
        level = 0.16 * np.log((1 - share) / share)  # the noise is about logistic
        level[self.plan.faces[:, COLUMN["wear"]] <= 0] = 9.0
        return np.take(level.astype(np.float32), self.ids)

    def kinds(self) -> NDArray[np.uint8]:
        fresh, worn = (
            self.plan.faces[:, COLUMN[c]].astype(np.uint8) for c in ("kind", "worn_kind")
        )
        return np.where(self.excess > 0, worn[self.ids], fresh[self.ids])

    def _quadric(self) -> tuple[Plane, ...]:
        f = {name: self.faces[:, COLUMN[name]].astype(np.float64) for name in COLUMN}
        radius = np.maximum(f["dome_radius"], 0.1)
        bend = f["dome"] / radius**2
        cx, cy = f["center_x"] - self.x0, f["center_y"] - self.y0
        base = f["height"] + f["slope_x"] * self.x0 + f["slope_y"] * self.y0
        base += f["dome"] - bend * (cx**2 + cy**2)
        columns = (base, f["slope_x"] + 2 * bend * cx, f["slope_y"] + 2 * bend * cy, bend)
        return tuple(np.take(c.astype(np.float32), self.ids) for c in columns)

    def surface(self) -> tuple[Plane, Plane, Plane]:
        """Heights in metres and their slopes to the east and south."""
        base, sx, sy, bend = self._quadric()
        height = base + self.x * (sx - bend * self.x) + self.y * (sy - bend * self.y)
        return np.maximum(height, 0), sx - 2 * bend * self.x, sy - 2 * bend * self.y

    def lambert(self, gx: Plane, gy: Plane) -> Plane:
        """Sunlight on the surface relative to flat ground."""
        relief = self._get("relief")
        bumps = 0.7 * self.small + 0.4 * self.leafy + 0.15 * self.fine
        gx = gx + relief * _diff(bumps, 1, self.px)
        gy = gy + relief * _diff(bumps, 0, self.px)
        sx, sy, up = self.sensor.sun
        lit = (up - gx * sx - gy * sy) / (np.sqrt(1 + gx * gx + gy * gy) * np.float32(up))
        return np.asarray(np.clip(lit, 0, 1.8), dtype=np.float32)

    def texture(self, rng: np.random.Generator) -> Plane:
        """Brightness factor of stripes, stains and grain."""
        fx, fy = self.faces[:, COLUMN["stripe_x"]], self.faces[:, COLUMN["stripe_y"]]
        start = fx.astype(np.float64) * self.x0 + fy.astype(np.float64) * self.y0
        first = np.floor(start).astype(np.int32) + 7 * np.arange(len(fx), dtype=np.int32)
        phase = np.take((start % 1).astype(np.float32), self.ids)
        phase += np.take(fx, self.ids) * self.x
        phase += np.take(fy, self.ids) * self.y
        lane = np.floor(phase)
        seam = np.maximum(4 * np.abs(phase - lane - 0.5) - 1, -0.5)
        tone = np.random.default_rng(self.plan.seed).uniform(-1, 1, 512).astype(np.float32)
        tones = tone[(lane.astype(np.int32) + np.take(first, self.ids)) & 511]
        sharp = np.clip(1.6 - 2.5 * self.px * np.hypot(fx, fy), 0, 1)  # finer than a pixel: gone
        factor = 1 + self._get("stripe", sharp) * seam + self._get("variety", sharp) * tones
        patches = 0.4 * self.wide + 0.5 * self.mid + 0.5 * self.small + 0.6 * self.leafy
        factor += self._get("stain") * (patches + 0.5 * self.fine)
        grain = rng.standard_normal(phase.shape, dtype=np.float32)
        return np.asarray(factor + self._get("grain") * grain, dtype=np.float32)

    def albedo(self, band: int) -> Plane:
        fresh = self._get(BANDS[band])
        return np.asarray(fresh + self.worn * (self._get(f"worn_{BANDS[band]}") - fresh))


def _seasoned(faces: NDArray[np.float32], sensor: Sensor) -> NDArray[np.float32]:
    if sensor.season == "summer":
        return faces
    straw = (0.62, 0.56, 0.38, 0.55) if sensor.season == "dry" else (0.66, 0.47, 0.24, 0.62)
    first, faces = COLUMN["red"], faces.copy()
    amount = 0.75 * faces[:, COLUMN["season"], None] ** 2
    leaves = faces[:, first : first + 4]
    leaves += amount * (np.array(straw, np.float32) - leaves)
    return faces


def _seen(plan: TownPlan, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.bool_]:
    low = np.array([ring.min(0) for ring in plan.rings]) - 1.0
    high = np.array([ring.max(0) for ring in plan.rings]) + 1.0
    across = (low[:, 0] < xs[-1]) & (high[:, 0] > xs[0])
    return np.asarray(across & (low[:, 1] < ys[-1]) & (high[:, 1] > ys[0]))


def _burn(
    plan: TownPlan, chosen: NDArray[np.bool_], shape: tuple[int, int], transform: Affine
) -> NDArray[np.int32]:
    numbers = np.flatnonzero(chosen)
    if not len(numbers):
        return np.zeros(shape, np.int32)
    shapes = []
    for number in numbers:
        points = plan.rings[number].tolist()
        points.append(points[0])
        shapes.append(({"type": "Polygon", "coordinates": [points]}, int(number)))
    return np.asarray(rasterize(shapes, shape, transform=transform, dtype="int32"))


def _frayed(ids: NDArray[np.int32], dy: Plane, dx: Plane, reach_px: float) -> NDArray[np.int32]:
    rows, cols = ids.shape
    row = np.arange(rows, dtype=np.int32)[:, None] + (dy * reach_px).astype(np.int32)
    col = np.arange(cols, dtype=np.int32)[None, :] + (dx * reach_px).astype(np.int32)
    np.clip(row, 0, rows - 1, out=row)
    np.clip(col, 0, cols - 1, out=col)
    return np.asarray(np.take(ids.ravel(), row * cols + col))


def _lattice(
    seed: int, xs: NDArray[np.float64], ys: NDArray[np.float64], wavelength_m: float, px: float
) -> Plane:
    """Gradient noise of about -1..1 fixed to the ground, one axis after the other.

    Source:
        Perlin 2002, "Improving noise"; gradients uniform in a square, not a set of twelve.
    """
    if wavelength_m < 2 * px:
        return np.zeros((len(ys), len(xs)), np.float32)
    col, fade_x, ramp_x = _between(xs, wavelength_m)
    row, fade_y, ramp_y = _between(ys, wavelength_m)
    shape = (int(row[-1]) + 2, int(col[-1]) + 2)
    corner = (int(ys[0] // wavelength_m), int(xs[0] // wavelength_m))
    east, south = (_hashed(seed + salt, corner, shape) for salt in (0, 8))
    noise = np.zeros((len(ys), len(xs)), np.float32)
    east = fade_y[0][:, None] * east[row] + fade_y[1][:, None] * east[row + 1]
    south = ramp_y[0][:, None] * south[row] + ramp_y[1][:, None] * south[row + 1]
    for side in (0, 1):
        noise += np.take(east, col + side, axis=1) * ramp_x[side]
        noise += np.take(south, col + side, axis=1) * fade_x[side]
    return noise


def _between(
    at: NDArray[np.float64], wavelength_m: float
) -> tuple[NDArray[np.intp], list[Plane], list[Plane]]:
    """Return the knot before each position, fade weights of both knots, those times the way."""
    cell = np.floor(at / wavelength_m)
    part = (at / wavelength_m - cell).astype(np.float32)
    fade = part**3 * (part * (6 * part - 15) + 10)
    fades = [1 - fade, fade]
    ramps = [np.float32(1.9) * way for way in ((1 - fade) * part, fade * (part - 1))]
    return np.asarray(cell - cell[0], np.intp), fades, ramps


def _hashed(seed: int, corner: tuple[int, int], shape: tuple[int, int]) -> Plane:
    """Random values in -1..1 that depend on the seed and the position of the knot only."""
    rows, cols = (
        np.arange(first, first + count).astype(np.uint64)
        for first, count in zip(corner, shape, strict=True)
    )
    mixed = rows[:, None] * np.uint64(0x9E3779B97F4A7C15)
    mixed = mixed + cols[None, :] * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed = mixed + np.uint64(seed * 0x165667B19E3779F9 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    top = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(40)
    return top.astype(np.float32) / np.float32(2**23) - 1


def _shadow(height: Plane, sensor: Sensor, px: float) -> Plane:
    """Share of the sun that higher things take away, 0..1."""
    sx, sy, up = sensor.sun
    flat = max(float(np.hypot(sx, sy)), 1e-3)
    drop = up / flat * px  # metres per canvas pixel towards the sun
    top, reach = height, min(float(height.max()) / drop, 1.5 * max(height.shape))
    step = 1
    while step <= reach:
        top = np.maximum(
            top, _shifted(top, step * sy / flat, step * sx / flat) - np.float32(step * drop)
        )
        step *= 2
    shade = np.clip((top - height - np.float32(0.15)) / np.float32(max(0.3, 2 * drop)), 0, 1)
    for _ in range(2):  # whole-pixel steps leave stairs at the edges
        shade[1:-1] = 0.5 * shade[1:-1] + 0.25 * (shade[:-2] + shade[2:])
        shade[:, 1:-1] = 0.5 * shade[:, 1:-1] + 0.25 * (shade[:, :-2] + shade[:, 2:])
    return np.asarray(shade)


def _shifted(plane: Plane, down: float, right: float) -> Plane:
    """``plane`` read at an offset; zeros from outside."""
    dr, dc = round(down), round(right)
    rows, cols = plane.shape
    moved = np.zeros_like(plane)
    if abs(dr) < rows and abs(dc) < cols:
        to_row, to_col = (slice(max(0, -d), n - max(0, d)) for d, n in ((dr, rows), (dc, cols)))
        from_row, from_col = (slice(max(0, d), n + min(0, d)) for d, n in ((dr, rows), (dc, cols)))
        moved[to_row, to_col] = plane[from_row, from_col]
    return moved


def _diff(plane: Plane, axis: int, px: float) -> Plane:
    return np.diff(plane, axis=axis, append=np.take(plane, [-1], axis)) / np.float32(px)


def _quarters(plane: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    return [plane[r::_FINE, c::_FINE] for r in range(_FINE) for c in range(_FINE)]


def _down(plane: Plane) -> Plane:
    a, b, c, d = _quarters(plane)
    return np.asarray((a + b + c + d) * np.float32(0.25))  # type: ignore[operator]


def _max_down(plane: Plane) -> Plane:
    a, b, c, d = _quarters(plane)
    return np.asarray(np.maximum(np.maximum(a, b), np.maximum(c, d)))


def _majority(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the second of the four ordered values: the value that three of four agree on."""
    a, b, c, d = _quarters(kinds)
    low, high = (
        np.maximum(np.minimum(a, b), np.minimum(c, d)),
        np.minimum(np.maximum(a, b), np.maximum(c, d)),
    )
    return np.asarray(np.minimum(low, high))
