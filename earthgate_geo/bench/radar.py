"""Scores by setting as a radar: one axis per setting, one line per method. No torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _RADIUS, _MARGIN = 900, 250, 70
_MIDDLE = (_WIDTH / 2, _RADIUS + _MARGIN)
_LINE_PX = 20
_RING = 20
_OURS = (
    *("#0e7454", "#c2410c", "#1d4ed8", "#a21caf", "#111827", "#ca8a04"),
    *("#0891b2", "#e11d48", "#65a30d", "#7c3aed", "#92400e", "#f472b6"),
)
_PUBLISHED = ("#6b7280", "#a16207", "#0e7490", "#be7fb5")


@dataclass(frozen=True, kw_only=True)
class Series:
    """The scores of one method."""

    name: str
    """For the legend."""

    percent: tuple[float | None, ...]
    """Score by axis, 0..100; None where there is none."""

    spread: tuple[float | None, ...] | None = None
    """Standard deviation by axis, in points; None altogether for figures of others."""


def radar(title: str, axes: Sequence[str], series: Sequence[Series]) -> str:
    """Return the picture as SVG: 0 in the middle, one scale for all axes.

    Lines join neighbours only, so that an axis without a score breaks them. Figures of others are
    dashed; ours stand on top of them, with bars of the spread.

    Args:
        title: What is shown, above the picture.
        axes: Names, clockwise from the top; three or more.
        series: With at least one score; each has one entry per axis.
    """
    known = [value for entry in series for value in entry.percent if value is not None]
    frame = _Frame(len(axes), _RING * math.ceil(max(known, default=1) / _RING))
    ours = [entry for entry in series if entry.spread is not None]
    theirs = [entry for entry in series if entry.spread is None]
    styled = [
        *((entry, _PUBLISHED[i % len(_PUBLISHED)]) for i, entry in enumerate(theirs)),
        *((entry, _OURS[i % len(_OURS)]) for i, entry in enumerate(ours)),
    ]
    below = 2 * (_RADIUS + _MARGIN)
    legend = [*styled[len(theirs) :], *styled[: len(theirs)]]
    parts = [
        *_rings(frame),
        *_spokes(frame, axes, ours),
        *(part for entry, color in styled for part in _line(frame, entry, color)),
        *(p for i, (e, c) in enumerate(legend) for p in _legend(below + i * _LINE_PX, e, c)),
    ]
    height = below + _LINE_PX * len(legend)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/><text x="{_MIDDLE[0]}" y="28" '
        f'text-anchor="middle" font-size="15" fill="#111827">{escape(title)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


@dataclass(frozen=True)
class _Frame:
    count: int
    top: float

    def at(self, axis: int, value: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / self.count
        reach = _RADIUS * value / self.top
        return _MIDDLE[0] + reach * math.sin(angle), _MIDDLE[1] - reach * math.cos(angle)

    def path(self, points: Sequence[tuple[int, float]]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*self.at(*point)) for point in points)


def _rings(frame: _Frame) -> Iterator[str]:
    for value in range(_RING, int(frame.top) + 1, _RING):
        ring = frame.path([(axis, value) for axis in range(frame.count)])
        yield f'<polygon points="{ring}" fill="none" stroke="#e5e7eb"/>'
        x, y = frame.at(0, value)
        yield f'<text x="{x + 3:.1f}" y="{y + 11:.1f}" fill="#9ca3af" font-size="10">{value}</text>'


def _spokes(frame: _Frame, axes: Sequence[str], ours: Sequence[Series]) -> Iterator[str]:
    for axis, name in enumerate(axes):
        (x, y), (far_x, far_y) = frame.at(axis, frame.top), frame.at(axis, frame.top * 1.05)
        yield (
            f'<line x1="{_MIDDLE[0]}" y1="{_MIDDLE[1]}" x2="{x:.1f}" y2="{y:.1f}" '
            'stroke="#e5e7eb"/>'
        )
        side = far_x - _MIDDLE[0]
        anchor = "middle" if abs(side) < 1 else "start" if side > 0 else "end"
        ran = any(entry.percent[axis] is not None for entry in ours)
        weight = 'font-weight="600" fill="#111827"' if ran else 'fill="#9ca3af"'
        yield (
            f'<text x="{far_x:.1f}" y="{far_y + 4:.1f}" text-anchor="{anchor}" {weight}>'
            f"{escape(name)}</text>"
        )


def _line(frame: _Frame, series: Series, color: str) -> Iterator[str]:
    for axis, value in enumerate(series.percent):
        following = (axis + 1) % frame.count
        after = series.percent[following]
        if value is not None and after is not None:
            side = frame.path([(axis, value), (following, after)])
            yield f'<polyline points="{side}" fill="none" {_stroke(series, color)}/>'
    inside = color if series.spread is not None else "#fff"
    for axis, value in enumerate(series.percent):
        if value is None:
            continue
        spread = series.spread[axis] if series.spread else None
        if spread:
            bar = frame.path([(axis, max(value - spread, 0)), (axis, value + spread)])
            yield f'<polyline points="{bar}" stroke="{color}" stroke-width="5" opacity=".45"/>'
        x, y = frame.at(axis, value)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{inside}" stroke="{color}"/>'


def _legend(top: float, series: Series, color: str) -> Iterator[str]:
    y = top + _LINE_PX / 2 - 4
    yield (
        f'<line x1="150" y1="{y}" x2="190" y2="{y}" {_stroke(series, color)}/>'
        f'<text x="200" y="{y + 4}" fill="#374151">{escape(series.name)}</text>'
    )


def _stroke(series: Series, color: str) -> str:
    if series.spread is None:
        return f'stroke="{color}" stroke-width="1.2" stroke-dasharray="5 3"'
    return f'stroke="{color}" stroke-width="2.2"'
