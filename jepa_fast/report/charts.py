"""Line charts as SVG whose colours are CSS variables, so that a page decides what light and dark look like."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jepa_fast.report.words import number

COLORS = 8  # series colours: --series-1 to --series-8

# Colours that are drawn with and found again in the SVG, each standing for a variable.
_STAND_INS = {
    "#010203": "var(--ink)",
    "#040506": "var(--muted)",
    "#070809": "var(--grid)",
    **{f"#1{number}1{number}1{number}": f"var(--series-{number})" for number in range(1, COLORS + 1)},
}
_INK, _MUTED, _GRID = list(_STAND_INS)[:3]
# Any: matplotlib types a style by the literal names of all its settings.
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.linewidth": 1.6,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Series:
    """A named curve; `color` is 1 to COLORS, or 0 for the text's colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """An area between two curves."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    color: int
    opacity: float


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, log: bool = False, bands: Sequence[Band] = ()
) -> Markup:
    """The chart as an <svg> element, without a legend. On a log axis values of zero or less are left out.

    Where a curve ends in such values, the chart ends before them.
    """
    # Ids are hashes of what is drawn: salted by the data, those of two charts on one page differ.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": repr((series, bands))}):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for band in bands:
            axes.fill_between(band.x, band.low, band.high, color=_color(band.color), alpha=band.opacity, linewidth=0)
        for one in series:
            style = "--" if one.dashed else "-"
            x, y = _ends_cut(one) if log else (one.x, one.y)
            # A curve of one point would be invisible.
            marker = "o" if len(x) == 1 else None
            axes.plot(x, y, style, color=_color(one.color), marker=marker, markersize=4)
        if log:
            axes.set_yscale("log", nonpositive="mask")
            low, high = axes.get_ylim()
            # Plain numbers in place of powers, and between the powers where these are few.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            low, high = axes.get_ylim()
            low = min(0.0, low)
            # A flat curve has no margins of its own and would lie on the edge.
            axes.set_ylim(low, high + 0.05 * (high - low))
        # Steps and axes are counted.
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.01)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # matplotlib escapes text.
    return Markup(_themed(drawn.getvalue()))


def _ends_cut(series: Series) -> tuple[Sequence[float], Sequence[float]]:
    """The curve up to its last value above zero: an axis scaled to all of it would be empty from there on."""
    length = max((index + 1 for index, value in enumerate(series.y) if value > 0), default=0)
    return series.x[:length], series.y[:length]


def _color(number: int) -> str:
    return _INK if number == 0 else list(_STAND_INS)[2 + number]


def _themed(svg: str) -> str:
    """The <svg> element alone, sized by the page, its colours variables, with no ids but those that are referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg)
    used = set(re.findall(r"#([A-Za-z][\w-]*)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    for color, variable in _STAND_INS.items():
        svg = svg.replace(color, variable)
    return svg
