"""Charts: ticks, escaping, degenerate series."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.summary.svg import HEIGHT, WIDTH, Chart, Point, Series, legend, nice_ticks, render

FINITE = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-9)


def _chart(*series: Series, **fields: object) -> Chart:
    return Chart("Title", "x", "y", tuple(series), **fields)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(low=FINITE, span=st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    high = low + span
    if not high - low > abs(low) * 1e-9:
        return
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert ticks == sorted(ticks)


@settings(max_examples=100, deadline=None)
@given(points=st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=40), stepped=st.booleans())
def test_every_chart_is_well_formed_and_within_its_frame(
    points: list[tuple[float, float]], stepped: bool
) -> None:
    series = Series("s", tuple(Point(x, y) for x, y in sorted(points)), stepped=stepped, marked=True)
    root = ET.fromstring(render(_chart(series)))
    for dot in root.iter("circle"):
        assert -1 <= float(dot.attrib["cx"]) <= WIDTH + 1
        assert -1 <= float(dot.attrib["cy"]) <= HEIGHT + 1


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0, 5.0], [-1e-12, 1e-12], [1e12, 1e12 + 1]])
def test_flat_series_can_be_drawn(values: list[float]) -> None:
    series = Series("s", tuple(Point(float(i), value) for i, value in enumerate(values)))
    assert "nan" not in render(_chart(series))


def test_nothing_to_draw_is_nothing() -> None:
    assert render(_chart()) == ""
    assert render(_chart(Series("s", ()))) == ""


def test_names_are_escaped_everywhere() -> None:
    bad = "</text><script>&\"'"
    series = (Series(bad, (Point(0, 1, 0.1, bad), Point(1, 2))), Series(bad, (Point(0, 1),)))
    chart = Chart(bad, bad, bad, series, levels=((bad, 1.5),), marks=((bad, 0.5),))
    root = ET.fromstring(render(chart))
    assert not [element for element in root.iter() if element.tag == "script"]
    for swatch, _ in legend(chart):
        ET.fromstring(swatch)


def test_a_log_axis_takes_zero_and_tiny_values() -> None:
    series = Series("s", (Point(1, 1.0), Point(2, 1e-6), Point(3, 0.0)))
    root = ET.fromstring(render(_chart(series, log_y=True)))
    path = next(root.iter("path")).attrib["d"]
    assert all(math.isfinite(float(part)) for part in path.replace("M", " ").replace("L", " ").split())


def test_long_series_are_thinned_and_keep_their_ends() -> None:
    series = Series("s", tuple(Point(float(i), float(i)) for i in range(10_001)))
    drawn = render(_chart(series))
    assert drawn.count("L") < 450
    path = next(ET.fromstring(drawn).iter("path")).attrib["d"]
    assert path.split("L")[-1].split()[0] == str(float(WIDTH - 12))


def test_series_differ_in_more_than_colour() -> None:
    series = [Series(f"s{i}", (Point(0, i), Point(1, i))) for i in range(4)]
    root = ET.fromstring(render(_chart(*series)))
    dashes = [path.attrib.get("stroke-dasharray", "") for path in root.iter("path")]
    assert len(set(dashes)) == 4


def test_a_tick_says_the_value_it_stands_at() -> None:
    points = tuple(Point(float(i), 1.6e-5 * i / 4) for i in range(5))
    drawn = render(Chart("rate", "step", "rate", (Series("rate", points),), y_from_zero=True))
    assert ">1.5e-5<" in drawn
    assert drawn.count(">2e-5<") == 1


def test_close_ticks_do_not_read_alike() -> None:
    points = (Point(0.0, 0.9992189), Point(1.0, 0.9992206))
    drawn = render(Chart("near one", "step", "odcorr", (Series("odcorr", points),)))
    ticks = re.findall(r'text-anchor="end">([^<]+)<', drawn)
    assert len(ticks) > 1
    assert len(set(ticks)) == len(ticks)


def test_names_too_long_for_the_axis_are_numbered_and_explained() -> None:
    series = (Series("trained", (Point(0.0, 0.1), Point(1.0, 0.2))),)
    short = Chart("a", "init", "b", series, x_names=("random", "timm"))
    assert legend(short) == []
    assert ">random</text>" in render(short)
    long = Chart("a", "init", "b", series, x_names=("random", "timm-vit_small_patch16_224.<augreg>_in21k"))
    assert legend(long) == [("<b>1</b>", long.x_names[0]), ("<b>2</b>", long.x_names[1])]
    assert ">1</text>" in render(long)
    assert "augreg" not in render(long)
