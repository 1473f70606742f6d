"""Small line charts as inline SVG: text that stays text, colours from the page's own light or dark theme.

Series differ in marker and dash as well as in colour, every point carries its value as a tooltip, and
the chart has a title and a description for a screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from eosin.summary.names import number

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 12, 14, 44
_MARKERS = ("circle", "square", "triangle", "diamond")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_MAX_MARKED = 30
_MAX_POINTS = 400
_MAX_NAME = 38
# Width of a character of a tick, about.
_CHARACTER = 6.5


@dataclass(frozen=True)
class Point:
    """A place in a chart."""

    x: float
    y: float
    spread: float = 0.0
    """Half the length of the error bar (a standard deviation)."""
    label: str = ""
    interval: tuple[float, float] | None = None
    """Ends of the band around the line here."""


@dataclass(frozen=True)
class Series:
    """A line or a set of points of a chart."""

    name: str
    points: tuple[Point, ...]
    stepped: bool = False
    """Holds its value until the next point."""
    line: bool = True
    marked: bool | None = None
    """None: markers where the points are few."""


@dataclass(frozen=True)
class Chart:
    """A chart before it is drawn."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[tuple[str, float], ...] = ()
    """Horizontal lines, each with its name."""
    marks: tuple[tuple[str, float], ...] = ()
    """Vertical lines: something that happened at x."""
    y_from_zero: bool = False
    y_span: float = 0.0
    """The y axis covers no less than this, so that nothing small looks large."""
    y_bounds: tuple[float, float] = (-math.inf, math.inf)
    """Values there can be: the axis goes no further."""
    log_y: bool = False
    x_names: tuple[str, ...] = ()
    """Where x is no quantity: the names of x = 0, 1, 2, …"""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool = False
    step: float = 0.0
    """Between ticks; 0: found from the ends."""

    def place(self, value: float, start: float, end: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return start + (value - low) / (high - low) * (end - start)

    def to_ticks(self, bounds: tuple[float, float]) -> _Axis:
        """Widened to round numbers, so that a tick stands above and below all that is drawn."""
        step = _tick_step(self.low, self.high, 4)
        low, high = (
            round(edge * step, 12)
            for edge in (math.floor(self.low / step + 1e-9), math.ceil(self.high / step - 1e-9))
        )
        return _Axis(max(low, bounds[0]), min(high, bounds[1]), step=step)

    def ticks(self) -> list[float]:
        return (
            _log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, step=self.step)
        )


def render(chart: Chart) -> str:
    """The chart as an `<svg>` element; an empty string where there is nothing to draw."""
    series = tuple(_thinned(s) for s in chart.series if s.points)
    if not series:
        return ""
    x_axis, y_axis = _axes(chart, series)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}" preserveAspectRatio="xMidYMid meet">',
        f"<title>{escape(chart.title)}</title><desc>{escape(_describe(chart, series))}</desc>",
        *_grid(chart, x_axis, y_axis),
        *_levels(chart, y_axis),
        *_marks(chart, x_axis),
        *(part for i, s in enumerate(series) for part in _draw(s, i, x_axis, y_axis)),
        "</svg>",
    ]
    return "".join(parts)


def legend(chart: Chart) -> list[tuple[str, str]]:
    """(swatch as markup, name) of each series, where there is more than one; then what numbers on the x axis
    stand for, where its names are too long to be written there."""
    drawn = [s for s in chart.series if s.points]
    named = len(drawn) > 1 or any(not s.line for s in drawn)
    swatches = [(_swatch(i, s), s.name) for i, s in enumerate(drawn)] if named else []
    names = chart.x_names if _are_numbered(chart.x_names) else ()
    return swatches + [(f"<b>{place}</b>", name) for place, name in enumerate(names, 1)]


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether names side by side under the axis would run into one another."""
    room = (WIDTH - _LEFT - _RIGHT) / max(1, len(names))
    return any(len(name) * _CHARACTER > room for name in names)


def nice_ticks(low: float, high: float, *, target: int = 4, step: float = 0.0) -> list[float]:
    """About `target` round numbers within [low, high], or the multiples of `step`."""
    step = step or _tick_step(low, high, target)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_step(low: float, high: float, target: int) -> float:
    raw = (high - low) / target
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    stride = max(1, math.ceil(len(ticks) / 5))
    return ticks[::stride] if len(ticks) > 1 else [low, high]


def _axes(chart: Chart, series: Sequence[Series]) -> tuple[_Axis, _Axis]:
    x_axis, y_axis = _quantities(chart, series)
    return (_Axis(-0.4, len(chart.x_names) - 0.6) if chart.x_names else x_axis), y_axis


def _quantities(chart: Chart, series: Sequence[Series]) -> tuple[_Axis, _Axis]:
    xs = [p.x for s in series for p in s.points] + [x for _, x in chart.marks]
    ys = [v for s in series for p in s.points for v in (p.y - p.spread, p.y + p.spread)]
    ys += [value for _, value in chart.levels]
    ys += [end for s in series for p in s.points for end in p.interval or ()]
    if chart.log_y:
        positive = [y for y in ys if y > 0] or [1.0]
        return _padded(xs, 0.0), _Axis(min(positive) / 1.2, max(positive) * 1.2, log=True)
    if chart.y_from_zero:
        ys.append(0.0)
    y_axis = _padded(ys, 0.04)
    short = max(0.0, chart.y_span - (y_axis.high - y_axis.low)) / 2
    low = 0.0 if chart.y_from_zero or (y_axis.low < 0 <= min(ys)) else y_axis.low - short
    x_room = 0.0 if any(s.line for s in series) else 0.05
    return _padded(xs, x_room), _Axis(low, y_axis.high + short).to_ticks(chart.y_bounds)


def _padded(values: Sequence[float], share: float) -> _Axis:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return _Axis(low - room, high + room)
    room = (high - low) * share
    return _Axis(low - room, high + room)


def _thinned(series: Series) -> Series:
    """At most 400 points: the page stays small, the line the same to the eye."""
    stride = math.ceil(len(series.points) / _MAX_POINTS)
    if stride == 1:
        return series
    kept = (*series.points[:-1:stride], series.points[-1])
    return Series(series.name, kept, series.stepped, series.line, series.marked)


def _describe(chart: Chart, series: Sequence[Series]) -> str:
    ranges = [
        f"{s.name}: {number(s.points[0].y)} to {number(s.points[-1].y)} over {len(s.points)} points"
        for s in series
    ]
    return f"{chart.y_label} by {chart.x_label}. " + "; ".join(ranges)


def _x(axis: _Axis, value: float) -> float:
    return round(axis.place(value, _LEFT, WIDTH - _RIGHT), 1)


def _y(axis: _Axis, value: float) -> float:
    return round(axis.place(max(value, axis.low) if axis.log else value, HEIGHT - _BOTTOM, _TOP), 1)


def _grid(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    floor, parts = HEIGHT - _BOTTOM, []
    for tick in y_axis.ticks():
        y = _y(y_axis, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{_tick(tick)}</text>'
        )
    for tick, name in _x_ticks(chart, x_axis):
        x = _x(x_axis, tick)
        parts.append(f'<line class="axis" x1="{x}" y1="{floor}" x2="{x}" y2="{floor + 4}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{floor + 16}" text-anchor="middle">{name}</text>')
    middle = (_TOP + floor) / 2
    parts += [
        f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{WIDTH - _RIGHT}" y2="{floor}"/>',
        f'<text class="label" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(chart.x_label)}</text>",
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y_label)}</text>",
    ]
    return parts


def _x_ticks(chart: Chart, x_axis: _Axis) -> list[tuple[float, str]]:
    if chart.x_names:
        names = chart.x_names
        shown = map(str, range(1, len(names) + 1)) if _are_numbered(names) else map(escape, names)
        return [(float(place), name) for place, name in enumerate(shown)]
    return [(tick, _tick(tick)) for tick in x_axis.ticks()]


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:.9g}" if abs(value) >= 1e-3 else f"{value:.3g}".replace("e-0", "e-")


def _levels(chart: Chart, y_axis: _Axis) -> list[str]:
    parts = []
    for name, value in chart.levels:
        y = _y(y_axis, value)
        parts.append(f'<line class="level" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>')
        text = f"<title>{escape(name)}</title>{escape(_short(name))} {number(value)}"
        parts.append(
            f'<text class="note" x="{WIDTH - _RIGHT - 2}" y="{y - 4}" text-anchor="end">{text}</text>'
        )
    return parts


def _short(name: str) -> str:
    """As much of a long name as a level's line has room for, its end included."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME // 2]}…{name[-(_MAX_NAME // 2 - 1) :]}"


def _marks(chart: Chart, x_axis: _Axis) -> list[str]:
    return [
        f'<line class="mark" x1="{_x(x_axis, x)}" y1="{_TOP}" x2="{_x(x_axis, x)}" y2="{HEIGHT - _BOTTOM}">'
        f"<title>{escape(name)}</title></line>"
        for name, x in chart.marks
    ]


def _draw(series: Series, number_of: int, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    places = [(_x(x_axis, p.x), _y(y_axis, p.y)) for p in series.points]
    style = f"s{number_of % 6}"
    parts = _band(series, x_axis, y_axis, style)
    parts += [_path(places, series.stepped, style, _DASHES[number_of % 4])] if series.line else []
    marked = len(places) <= _MAX_MARKED if series.marked is None else series.marked
    for point, (x, y) in zip(series.points, places, strict=True):
        if point.spread and marked:
            low, high = _y(y_axis, point.y - point.spread), _y(y_axis, point.y + point.spread)
            parts.append(f'<line class="bar {style}" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>')
        if marked:
            spread = f" ± {number(point.spread)}" if point.spread else ""
            spread += f" [{number(point.interval[0])}, {number(point.interval[1])}]" if point.interval else ""
            text = f"{series.name}, {point.label or _tick(point.x)}: {number(point.y)}{spread}"
            parts.append(_marker(number_of, x, y, style, text))
    return parts


def _band(series: Series, x_axis: _Axis, y_axis: _Axis, style: str) -> list[str]:
    """The intervals of all points as one area; of a single point as a bar."""
    known = [(_x(x_axis, p.x), [_y(y_axis, end) for end in p.interval]) for p in series.points if p.interval]
    if len(known) < 2:
        return [
            f'<line class="bar {style}" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>'
            for x, (low, high) in known
        ]
    edge = [f"{x} {low}" for x, (low, _) in known] + [f"{x} {high}" for x, (_, high) in reversed(known)]
    return [f'<polygon class="band {style}" points="{" ".join(edge)}"/>']


def _swatch(number_of: int, series: Series) -> str:
    style = f"s{number_of % 6}"
    line = _path([(1.0, 7.0), (33.0, 7.0)], False, style, _DASHES[number_of % 4]) if series.line else ""
    marker = "" if series.marked is False else _marker(number_of, 17.0, 7.0, style, series.name)
    return f'<svg viewBox="0 0 34 14" aria-hidden="true">{line}{marker}</svg>'


def _path(places: Sequence[tuple[float, float]], stepped: bool, style: str, dash: str) -> str:
    commands = [f"M{places[0][0]} {places[0][1]}"]
    commands += [f"H{x}V{y}" if stepped else f"L{x} {y}" for x, y in places[1:]]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="line {style}" d="{"".join(commands)}"{dashes}/>'


def _marker(number_of: int, x: float, y: float, style: str, text: str) -> str:
    kind = _MARKERS[number_of % len(_MARKERS)]
    title = f"<title>{escape(text)}</title>"
    if kind == "circle":
        return f'<circle class="dot {style}" cx="{x}" cy="{y}" r="3.2">{title}</circle>'
    if kind == "square":
        return (
            f'<rect class="dot {style}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6">{title}</rect>'
        )
    top = f"{x} {y - 4:.1f}"
    base = f"{x + 3.8:.1f} {y + 3:.1f} {x - 3.8:.1f} {y + 3:.1f}"
    sides = f"{x + 4:.1f} {y} {x} {y + 4:.1f} {x - 4:.1f} {y}"
    corners = base if kind == "triangle" else sides
    return f'<polygon class="dot {style}" points="{top} {corners}">{title}</polygon>'
