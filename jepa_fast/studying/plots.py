"""A study's records as plots: errors of every preset and seed, and errors against parameters."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jepa_fast.probing.evaluation import PROBE_SETS
from jepa_fast.report.probes import short
from jepa_fast.studies import Study
from jepa_fast.studying.record import RunRecord
from jepa_fast.studying.tables import by_preset, errors, scored

CONVERGED, OFFICIAL, OTHERS = "#d95f02", "#7570b3", "#777777"


class Published(NamedTuple):
    """A published model: its parameters, and its errors in px^2 on the sets in the order of PROBE_SETS."""

    name: str
    parameters: int
    errors: tuple[float, float, float, float]


# By the protocol of our official probe, but on the original data set, of which ours is a replica: for orientation.
PUBLISHED = (
    Published("wall encoded apart, three stages", 3_631_680, (0.325, 0.742, 2.796, 1.668)),
    Published("CNN, smooth L1 + Barlow", 2_159_904, (1.046, 5.575, 5.881, 1.226)),
    Published("ConvNeXt branches", 293_344, (3.040, 6.671, 6.983, 10.203)),
    Published("patch tokens, inverse dynamics", 26_946, (3.42, 7.00, 6.89, 18.94)),
)


def draw(study: Study, records: Sequence[RunRecord], folder: Path, name: str) -> list[Path]:
    """Write study-NAME.png and study-NAME-pareto.png into `folder`; their paths."""
    found = by_preset(study, scored(records))
    paths = [folder / f"study-{name}.png", folder / f"study-{name}-pareto.png"]
    for path, figure in zip(paths, (_dots(found), _pareto(found)), strict=True):
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=100)
    return paths


def _dots(found: dict[str, list[RunRecord]]) -> Figure:
    """A panel for each set: a row for each preset, a dot for each seed, a line at the mean, for both probes."""
    figure = Figure(figsize=(13, 1.6 + 0.36 * len(found)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(PROBE_SETS), sharey=True))
    for axis, probe_set in zip(axes, PROBE_SETS, strict=True):
        for row, some in enumerate(found.values()):
            for probe, color, lift in (("converged", CONVERGED, -0.14), ("official", OFFICIAL, 0.14)):
                values = errors(some, probe_set, probe)
                if values:
                    label = f"{probe} probe" if row == 0 else None
                    axis.plot(
                        values, [row + lift] * len(values), "o", color=color, ms=4.5, alpha=0.7, mew=0, label=label
                    )
                    axis.plot([fmean(values)], [row + lift], "|", color=color, ms=12, mew=1.6)
        axis.set(title=short(probe_set), xscale="log", xlabel="squared error, px²")
        axis.grid(axis="x", which="both", lw=0.4, alpha=0.5)
    axes[0].set_yticks(range(len(found)), list(found))
    axes[0].set_ylim(len(found) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _pareto(found: dict[str, list[RunRecord]]) -> Figure:
    """A panel for each set: official error against parameters, ours in colour, published ones hollow, by letter."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes: list[Axes] = list(figure.subplots(2, 2, sharex=True).flat)
    for index, (axis, probe_set) in enumerate(zip(axes, PROBE_SETS, strict=True)):
        means = []
        for color, (preset, some) in enumerate(found.items()):
            values, size = errors(some, probe_set, "official"), some[0].parameters
            if values:
                shown = f"C{color % 10}"
                axis.plot([size] * len(values), values, ".", color=shown, ms=5, alpha=0.6, mew=0)
                means.append((size, fmean(values)))
                marker = "D" if color < 10 else "^"
                axis.plot([size], [means[-1][1]], marker, color=shown, ms=6, label=preset, ls="none")
        _frontier(axis, means)
        for letter, one in zip("abcd", PUBLISHED, strict=True):
            place, label = ([one.parameters], [one.errors[index]]), f"{letter}: {one.name}"
            axis.plot(*place, marker=f"${letter}$", color=OTHERS, ms=8, label=label, ls="none")
        axis.set(title=short(probe_set), xscale="log", yscale="log", ylabel="squared error, px², official probe")
        axis.grid(which="both", lw=0.4, alpha=0.4)
        axis.margins(x=0.15, y=0.15)
    for axis in axes[2:]:
        axis.set_xlabel("parameters")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(
        "Coloured: this project, mean over the dots, trained and probed on the replica; the line joins what nothing "
        "smaller beats.\nLetters: published models, on the original data set, which is another one: for orientation, "
        "not for comparison.",
        fontsize=10,
    )
    return figure


def _frontier(axis: Axes, points: Sequence[tuple[int, float]]) -> None:
    """A line through the models that no smaller or equal one beats."""
    best = [(size, error) for size, error in sorted(points) if all(e >= error for s, e in points if s <= size)]
    axis.step([size for size, _ in best], [error for _, error in best], where="post", color=OTHERS, lw=0.8, zorder=0)
