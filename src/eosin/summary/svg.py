"""Small line charts as inline SVG: text that stays text, colours from the page's own light or dark theme.

Series differ in marker and dash as well as in colour, every point carries its value as a tooltip, and
the chart has a title and a description for a screen reader.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader

from eosin.summary.names import number

WIDTH, HEIGHT = 360, 230
_FRAME = {"width": WIDTH, "height": HEIGHT, "left": 72, "right": WIDTH - 12, "top": 14, "floor": HEIGHT - 44}
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

    def to_ticks(self, bounds: tuple[float, float]) -> "_Axis":
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
    return str(
        _macros().chart(
            chart,
            _FRAME,
            _describe(chart, series),
            [(_x(x_axis, tick), name) for tick, name in _x_ticks(chart, x_axis)],
            [(_y(y_axis, tick), _tick(tick)) for tick in y_axis.ticks()],
            [(_y(y_axis, value), name, f"{_short(name)} {number(value)}") for name, value in chart.levels],
            [(_x(x_axis, x), name) for name, x in chart.marks],
            [_drawn(s, i, x_axis, y_axis) for i, s in enumerate(series)],
        )
    )


@cache
def _macros() -> Any:
    environment = Environment(
        loader=PackageLoader("eosin.summary"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("chart.svg.j2").module


def legend(chart: Chart) -> list[tuple[str, str]]:
    """(swatch as markup, name) of each series, where there is more than one; then what numbers on the x axis
    stand for, where its names are too long to be written there."""
    drawn = [s for s in chart.series if s.points]
    named = len(drawn) > 1 or any(not s.line for s in drawn)
    swatches = [(str(_macros().swatch(i, s)), s.name) for i, s in enumerate(drawn)] if named else []
    names = chart.x_names if _are_numbered(chart.x_names) else ()
    return swatches + [(f"<b>{place}</b>", name) for place, name in enumerate(names, 1)]


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether names side by side under the axis would run into one another."""
    room = (_FRAME["right"] - _FRAME["left"]) / max(1, len(names))
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
    return replace(series, points=kept)


def _describe(chart: Chart, series: Sequence[Series]) -> str:
    ranges = [
        f"{s.name}: {number(s.points[0].y)} to {number(s.points[-1].y)} over {len(s.points)} points"
        for s in series
    ]
    return f"{chart.y_label} by {chart.x_label}. " + "; ".join(ranges)


def _x(axis: _Axis, value: float) -> float:
    return round(axis.place(value, _FRAME["left"], _FRAME["right"]), 1)


def _y(axis: _Axis, value: float) -> float:
    return round(axis.place(max(value, axis.low) if axis.log else value, _FRAME["floor"], _FRAME["top"]), 1)


def _x_ticks(chart: Chart, x_axis: _Axis) -> list[tuple[float, str]]:
    if chart.x_names:
        names = chart.x_names
        shown = map(str, range(1, len(names) + 1)) if _are_numbered(names) else names
        return [(float(place), name) for place, name in enumerate(shown)]
    return [(tick, _tick(tick)) for tick in x_axis.ticks()]


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:.9g}" if abs(value) >= 1e-3 else f"{value:.3g}".replace("e-0", "e-")


def _short(name: str) -> str:
    """As much of a long name as a level's line has room for, its end included."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME // 2]}…{name[-(_MAX_NAME // 2 - 1) :]}"


def _drawn(series: Series, number_of: int, x_axis: _Axis, y_axis: _Axis) -> dict[str, Any]:
    """Places of a series in the frame: of its line, of its intervals, and of each point that is marked."""
    places = [(_x(x_axis, p.x), _y(y_axis, p.y)) for p in series.points]
    band = [(_x(x_axis, p.x), [_y(y_axis, end) for end in p.interval]) for p in series.points if p.interval]
    marked = len(places) <= _MAX_MARKED if series.marked is None else series.marked
    dots = []
    for p, (x, y) in zip(series.points, places, strict=True) if marked else ():
        ends = [_y(y_axis, p.y - p.spread), _y(y_axis, p.y + p.spread)] if p.spread else []
        spread = f" ± {number(p.spread)}" if p.spread else ""
        spread += f" [{number(p.interval[0])}, {number(p.interval[1])}]" if p.interval else ""
        dots.append((x, y, ends, f"{series.name}, {p.label or _tick(p.x)}: {number(p.y)}{spread}"))
    return {"series": series, "number": number_of, "places": places, "band": band, "dots": dots}
