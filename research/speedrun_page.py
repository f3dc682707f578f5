"""Write what the time-to-target records say into docs/results.md, and draw the figure.

    python -m research.speedrun_page

Every record in research/records/speedrun is checked first, as `python -m research.speedrun --check` does.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from jepa_fast.report.probes import short
from research.targets import PROBES, SETS, TARGETS, Event, Record, problems, read_records
from scripts.marks import between

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "research" / "records" / "speedrun"
PAGE = ROOT / "docs" / "results.md"
FIGURE = ROOT / "docs" / "images" / "speedrun.png"
MARKS = {
    name: (f"<!-- {name}: python -m research.speedrun_page -->\n", f"<!-- end of {name} -->\n")
    for name in ("targets", "records")
}
COLUMNS = 3  # of the figure
COLORS = dict(zip(SETS, ("#1b9e77", "#d95f02", "#7570b3"), strict=True))


def main() -> None:
    """Check, write, draw."""
    shown = records()
    for name, record in shown.items():
        if found := problems(record):
            raise SystemExit(f"{RECORDS / record.target}.jsonl: {name}: {'; '.join(found)}")
    PAGE.write_text(drawn(PAGE.read_text(), shown))
    print(table(shown))
    draw(shown)


def drawn(text: str, shown: dict[str, Record]) -> str:
    """The page with both tables between their marks."""
    for name, content in (("targets", short_table(shown)), ("records", table(shown))):
        text = between(text, *MARKS[name], content)
    return text


def records() -> dict[str, Record]:
    """All records by name, the easiest target first, then the fastest."""
    found = {record.name: record for path in RECORDS.glob("*.jsonl") for record in read_records(path)}

    def order(name: str) -> tuple[str, float, str]:
        record = found[name]
        return record.target, record.summary["mean_cpu_s"] or float("inf"), name

    return {name: found[name] for name in sorted(found, key=order)}


def time_of(record: Record, name: str) -> str:
    """Mean seconds and those of each seed; where a seed did not meet the target, there is no mean."""
    each = ", ".join(f"{one[name]:.2f}{'' if one['met'] else ' not met'}" for one in record.results)
    mean = record.summary[f"mean_{name}"]
    return f"- ({each})" if mean is None else f"**{mean:.2f}** ({each})"


def table(shown: dict[str, Record]) -> str:
    """The page's table in Markdown."""
    lines = [
        "| record | seeds met | steps of trajectories | checks at | stopped at | CPU time, s | wall-clock s | load |"
    ]
    lines += ["|---|---:|---:|---|---|---:|---:|---:|"]
    for name, record in shown.items():
        loads = [one["load_average"] for one in record.log if "load_average" in one]
        steps = f"{record.config['steps']:,} of {record.config['batch_size']}"
        stops = ", ".join(f"{one['step']:,}" for one in record.results)
        checks = ", ".join(f"{step:,}" for step in record.checks)
        met = f"{record.summary['met']} of {record.summary['seeds']}"
        lines.append(
            f"| [{name}](../research/records/speedrun/{record.target}.jsonl) | {met} | {steps} | {checks} | {stops} | "
            f"{time_of(record, 'cpu_s')} | {time_of(record, 'clock_s')} | {min(loads):.1f} to {max(loads):.1f} |"
        )
    lines += ["", "| record | where the clock stopped | normal | wall | wall_other |", "|---|---|---:|---:|---:|"]
    for name, record in shown.items():
        most = " | ".join(f"{value:g}" for value in record.thresholds.values())
        lines.append(f"| {name} | the target allows | {most} |")
        for seed in record.seeds:
            last = [one for one in record.log if one["seed"] == seed and "scores" in one][-1]
            each = " | ".join(" / ".join(f"{last['scores'][one][probe]:.3f}" for probe in PROBES) for one in SETS)
            lines.append(f"| | seed {seed}, {last['event']} with probe seed {last['probe_seed']} | {each} |")
    machines = sorted({machine(record) for record in shown.values()})
    return "\n".join([*lines, "", f"Official / converged probe, in pixels². On {'; '.join(machines)}.", ""])


def short_table(shown: dict[str, Record]) -> str:
    """The targets: of each its thresholds, and the fastest record that all seeds met, or the one that is there."""
    lines = ["| target | normal | wall | wall_other | CPU time, s | wall-clock s |", "|---|---:|---:|---:|---:|---:|"]
    for target, thresholds in TARGETS.items():
        record = next((one for one in shown.values() if one.target == target), None)
        most = " | ".join(f"{value:g}" for value in thresholds)
        lines.append(f"| {target} | {most} | {'- | -' if record is None else short_times(record)} |")
    return "\n".join([*lines, ""])


def short_times(record: Record) -> str:
    """Mean seconds by both clocks; where a seed did not meet the target, how many did, and their seconds."""
    clocks = "cpu_s", "clock_s"
    if record.summary["mean_clock_s"] is not None:
        return " | ".join(f"{record.summary[f'mean_{clock}']:.2f}" for clock in clocks)
    met = [one for one in record.results if one["met"]]
    count = f"{len(met)} of {len(record.results)} seeds"
    return " | ".join(", ".join([count, *(f"{one[clock]:.2f}" for one in met)]) for clock in clocks)


def machine(record: Record) -> str:
    """Device, threads and versions in one line."""
    environment = record.environment
    threads = f"{environment['threads']} thread{'' if environment['threads'] == 1 else 's'}"
    return f"{environment['device']}, {threads}, torch {environment['torch']}"


def draw(shown: dict[str, Record]) -> None:
    """Errors at the checks of every seed over CPU time, beside what the target allows."""
    rows = -(-len(shown) // COLUMNS)
    size = (1 + 3 * COLUMNS, 0.7 + 3 * rows)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (name, record) in zip(axes.flat, shown.items(), strict=False):
        for split in SETS:
            for seed in record.seeds:
                checks = [one for one in record.log if one["seed"] == seed and one["event"] == "check"]
                curve(axis, checks, split, COLORS[split])
            label = short(split)
            axis.axhline(record.thresholds[split], color=COLORS[split], ls=":", lw=1, label=f"{label}: allowed")
            axis.plot([], [], color=COLORS[split], marker="o", ms=3, label=label)
        axis.set(title=name, xlabel="CPU time of training, s", yscale="log", xlim=(0, None))
    for axis in axes[:, 0]:
        axis.set(ylabel="squared error, px², the worse probe's")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False
    )
    figure.savefig(FIGURE, dpi=100)


def curve(axis: Axes, checks: list[Event], split: str, color: str) -> None:
    """One seed's errors on one set."""
    seconds = [one["cpu_s"] for one in checks]
    axis.plot(seconds, [max(one["scores"][split].values()) for one in checks], color=color, marker="o", ms=3, lw=1)


if __name__ == "__main__":
    main()
