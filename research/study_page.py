"""A study's records as tables in Markdown and as plots, and their place in a page."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jepa_fast.config import require
from jepa_fast.probing.evaluation import PROBE_SETS
from jepa_fast.report.probes import short
from jepa_fast.report.words import number
from research.run_record import RunRecord
from research.studies import Study
from scripts.marks import between

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

PROBES = {
    "converged": "Converged probe: what the latents hold.",
    "official": "Official probe, under-trained by its protocol: for comparison with other codes.",
}


def by_preset(study: Study, records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """The records of each preset that has any, in the study's order."""
    found = {name: [record for record in records if record.preset == name] for name in study.presets}
    return {name: some for name, some in found.items() if some}


def scored(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records with scores: those of runs that did not fail."""
    return [record for record in records if record.failure is None]


def errors(records: Sequence[RunRecord], probe_set: str, probe: str) -> list[float]:
    """Errors in px^2 of the records that were scored on the set by the probe."""
    found = [record.probe_sets[probe_set].trained for record in scored(records) if probe_set in record.probe_sets]
    return [getattr(scores, probe) for scores in found]


def spread(values: Sequence[float], show: Callable[[float], str] = number) -> str:
    """Mean and, of two or more, standard deviation (n - 1): "1.16 ± 0.05"."""
    if not values:
        return "-"
    mean = show(statistics.fmean(values))
    if len(values) == 1:
        return mean
    deviation = statistics.stdev(values)
    # Two digits, without an exponent.
    return f"{mean} ± {deviation:.2g}" if deviation < 99.5 else f"{mean} ± {deviation:.0f}"


def tables(study: Study, records: Sequence[RunRecord]) -> str:
    """All tables of a study, with what it asks, on what it ran, and what it lacks."""
    parts = [f"{study.purpose} Mean ± standard deviation over seeds; squared errors in px²."]
    parts += [f"{title}\n\n{_errors(study, records, probe)}" for probe, title in PROBES.items()]
    parts += [_costs(study, records), _machine(records)]
    lacking = len(study.presets) * len(study.seeds) - len(records)
    if lacking:
        parts.append(f"{lacking} of {len(study.presets) * len(study.seeds)} runs have not been measured yet.")
    return "\n\n".join(parts) + "\n"


def _errors(study: Study, records: Sequence[RunRecord], probe: str) -> str:
    lines = [
        f"| preset | runs | {' | '.join(map(short, PROBE_SETS))} | wall / normal |",
        "|---|---:|" + "---:|" * (len(PROBE_SETS) + 1),
    ]
    for name, some in by_preset(study, records).items():
        cells = [spread(errors(some, probe_set, probe)) for probe_set in PROBE_SETS]
        cells.append(spread([one.wall_to_agent[probe] for one in some if one.wall_to_agent]))
        count = len(scored(some))
        lines.append(_row(name, str(count) if count == len(some) else f"{count} of {len(some)}", *cells))
    floors = [record for record in records if any(one.untrained is not None for one in record.probe_sets.values())]
    for record in floors[:1]:
        untrained = [
            getattr(record.probe_sets[name].untrained, probe) for name in PROBE_SETS if name in record.probe_sets
        ]
        lines.append(_row(f"*{record.preset}, untrained*", "1", *map(number, untrained), _ratio(untrained)))
    for record in scored(records)[:1]:
        constant = [record.probe_sets[name].constant for name in PROBE_SETS if name in record.probe_sets]
        lines.append(_row("*constant guess*", "", *map(number, constant), _ratio(constant)))
    return "\n".join(lines)


def _ratio(values: Sequence[float]) -> str:
    return number(values[1] / values[0]) if len(values) == len(PROBE_SETS) else "-"


def _costs(study: Study, records: Sequence[RunRecord]) -> str:
    lines = [
        "| preset | parameters | trajectories | training, wall-clock s | CPU time, s | effective rank | RankMe | of | "
        "ended early or collapsed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, some in by_preset(study, records).items():
        parameters, *_ = [*(record.parameters for record in scored(some)), 0]
        wall_s = [record.train_wall_s for record in some if record.train_wall_s is not None]
        cpu_s = [record.train_cpu_s for record in some if record.train_cpu_s is not None]
        looks = [record.collapse for record in some if record.collapse is not None]
        lines.append(
            _row(
                name,
                f"{parameters:,}" if parameters else "-",
                f"{max(record.trajectories for record in some):,}",
                spread(wall_s, lambda value: f"{value:.0f}"),
                spread(cpu_s, lambda value: f"{value:.0f}"),
                spread([look.rank for look in looks]),
                spread([look.rankme for look in looks]),
                str(looks[0].dim) if looks else "-",
                "; ".join(filter(None, map(_trouble, some))) or "no",
            )
        )
    return "\n".join(lines)


def _trouble(record: RunRecord) -> str:
    if record.failure is not None:
        return f"seed {record.seed} failed: {record.failure}"
    return f"seed {record.seed} collapsed" if record.collapse is not None and record.collapse.collapsed else ""


def _machine(records: Sequence[RunRecord]) -> str:
    """On what the runs were made; records of several machines, versions or commits name all of them."""

    def all_of(values: Sequence[object]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    environments = [record.environment for record in records]
    devices, threads, torch = (all_of([one[key] for one in environments]) for key in ("device", "threads", "torch"))
    commits = all_of([str(one["commit"])[:12] for one in environments])
    loads = [record.load_average_after for record in records]
    between = f"{min(loads):.1f} to {max(loads):.1f}"
    return f"On {devices}, {threads} thread(s), torch {torch}, commit {commits}; load average {between}."


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def insert(page: Path, name: str, shown: str) -> None:
    """Put a study's tables between its marks in `page`; at the end where it has none yet.

    Raises:
        InputError: a mark of the two is missing.
    """
    begin, end = f"<!-- study: python -m research.study {name} --draw -->\n", f"<!-- end of study {name} -->\n"
    text = page.read_text() if page.exists() else "# Studies\n"
    require(
        (begin in text) == (end in text), f"{page}: marks of {name}", "one of two", f"{begin.strip()} and {end.strip()}"
    )
    if begin not in text:
        text += f"\n## {name}\n\n{begin}{end}"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(between(text, begin, end, shown))


def draw(study: Study, records: Sequence[RunRecord], folder: Path, name: str) -> list[Path]:
    """Write study-NAME.png and study-NAME-pareto.png into `folder`; their paths."""
    found = by_preset(study, scored(records))
    paths = [folder / f"study-{name}.png", folder / f"study-{name}-pareto.png"]
    for path, figure in zip(paths, (_seeds(found), _pareto(found)), strict=True):
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=100)
    return paths


def _seeds(found: dict[str, list[RunRecord]]) -> Figure:
    """A panel for each set: a row for each preset, a point for each seed, a line at the mean, for both probes."""
    figure = Figure(figsize=(13, 1.6 + 0.36 * len(found)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(PROBE_SETS), sharey=True))
    for axis, probe_set in zip(axes, PROBE_SETS, strict=True):
        for row, some in enumerate(found.values()):
            for probe, color, offset in (("converged", CONVERGED, -0.14), ("official", OFFICIAL, 0.14)):
                values = errors(some, probe_set, probe)
                if values:
                    label = f"{probe} probe" if row == 0 else None
                    axis.plot(
                        values, [row + offset] * len(values), "o", color=color, ms=4.5, alpha=0.7, mew=0, label=label
                    )
                    axis.plot([statistics.fmean(values)], [row + offset], "|", color=color, ms=12, mew=1.6)
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
                means.append((size, statistics.fmean(values)))
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
        "Coloured: this project, mean over the seeds, trained and probed on the replica; the line joins what nothing "
        "smaller beats.\nLetters: published models, on the original data set, which is another one: for orientation, "
        "not for comparison.",
        fontsize=10,
    )
    return figure


def _frontier(axis: Axes, points: Sequence[tuple[int, float]]) -> None:
    """A line through the models that no smaller or equal one beats."""
    best = [(size, error) for size, error in sorted(points) if all(e >= error for s, e in points if s <= size)]
    axis.step([size for size, _ in best], [error for _, error in best], where="post", color=OTHERS, lw=0.8, zorder=0)
