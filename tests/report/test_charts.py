"""What a chart's axes show of its curves."""

import re

import pytest

from jepa_fast.report.charts import Series, line_chart


def heights(svg):
    """Smallest y of the curve and of all that is drawn inside the axes; y grows downwards."""
    curve = re.search(r'<path d="([^"]+)"[^>]*stroke: var\(--series-1\)', svg)[1]
    grid = "".join(re.findall(r'<path d="([^"]+)"[^>]*stroke: var\(--grid\)', svg))
    return [min(float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)) for path in (curve, grid)]


def last_x_label(svg):
    """The largest number under the x axis, whose labels come first."""
    labels = re.findall(r">(\d+)</text>", svg[: svg.index(">axis</text>")])
    return max(map(int, labels))


@pytest.mark.parametrize(("values", "end"), [([9.0] * 128, 120), ([10.0, 0.0, 9.0] + [0.0] * 125, 3)])
def test_a_log_axis_ends_where_a_curve_falls_to_zero_for_good(values, end):
    svg = line_chart([Series("one", list(range(1, 129)), values, 1)], "axis", "value", log=True)
    assert last_x_label(svg) == end


def test_a_curve_of_which_one_point_is_left_is_a_dot():
    svg = line_chart([Series("one", [1, 2, 3], [5.0, 0.0, 0.0], 1)], "axis", "value", log=True)
    assert re.search(r"<use [^>]*fill: var\(--series-1\)", svg)


def test_nothing_above_zero_is_an_empty_chart():
    assert "--series-1" not in line_chart([Series("one", [1, 2], [0.0, 0.0], 1)], "axis", "value", log=True)


@pytest.mark.parametrize("last", [2.0, 1.9999])
def test_a_flat_curve_does_not_lie_on_the_edge(last):
    curve, edge = heights(line_chart([Series("one", [0, 100], [2.0, last], 1)], "step", "rank"))
    assert curve > edge + 5
