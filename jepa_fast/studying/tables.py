"""A study's records as tables in Markdown, and their place in a page."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from jepa_fast.config import require
from jepa_fast.probing.evaluation import PROBE_SETS
from jepa_fast.report.marks import between
from jepa_fast.report.probes import short
from jepa_fast.report.words import number
from jepa_fast.studies import Study
from jepa_fast.studying.record import RunRecord

PROBES = {
    "converged": "Converged probe: what the states hold.",
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
        "| preset | parameters | trajectories | training, wall-clock s | processor s | effective rank | RankMe | of | "
        "ended early or collapsed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, some in by_preset(study, records).items():
        parameters, *_ = [*(record.parameters for record in scored(some)), 0]
        wall_s = [record.train_wall_s for record in some if record.train_wall_s is not None]
        processor_s = [record.train_processor_s for record in some if record.train_processor_s is not None]
        looks = [record.collapse for record in some if record.collapse is not None]
        lines.append(
            _row(
                name,
                f"{parameters:,}" if parameters else "-",
                f"{max(record.trajectories for record in some):,}",
                spread(wall_s, lambda value: f"{value:.0f}"),
                spread(processor_s, lambda value: f"{value:.0f}"),
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
    begin, end = f"<!-- study: python -m jepa_fast.study {name} --draw -->\n", f"<!-- end of study {name} -->\n"
    text = page.read_text() if page.exists() else "# Studies\n"
    require(
        (begin in text) == (end in text), f"{page}: marks of {name}", "one of two", f"{begin.strip()} and {end.strip()}"
    )
    if begin not in text:
        text += f"\n## {name}\n\n{begin}{end}"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(between(text, begin, end, shown))
