"""What planning came to, model by model: `python -m research.planning_table` draws the tables of docs/planning.md.

    python -m research.planning_table --add RUN [RUN ...]

first keeps what `python -m jepa_fast.evaluate RUN` and `python -m jepa_fast.plan RUN [--held-out]` found: planning.json
and held-out/planning.json go to research/records/planning/PRESET-seed-S[-held-out].json, a run's training and probe
errors to research/records/planner.jsonl where its preset has no records of its own.
"""

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jepa_fast.config import RunConfig
from jepa_fast.data.writing import write_text
from jepa_fast.planning.results import PLANNING, Outcome, Planning, load, save, wilson
from jepa_fast.presets import canonical
from jepa_fast.probing.evaluation import PROBE_SETS
from jepa_fast.report.probes import short
from jepa_fast.runs import CONFIG
from research import jsonl
from research.run_record import RunRecord, record_of
from scripts.marks import between

RECORDS = Path(__file__).parent / "records"
PLANS, PROBES = RECORDS / "planning", RECORDS / "planner.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
RESULTS = "<!-- results: python -m research.planning_table -->\n", "<!-- end of results -->\n"
ERRORS = "<!-- errors: python -m research.planning_table -->\n", "<!-- end of errors -->\n"
HELD_OUT = "held-out"  # folder of a run, and end of a record's name
PEER = "peer"  # another end: the peer's planner
PRESET = "planner"
MODEL = "model"


@dataclass(frozen=True)
class Row:
    """One way of acting under one protocol."""

    name: str
    seeds: str
    planning: Planning
    outcomes: tuple[Outcome, ...]


def main() -> None:
    """Keep what is named, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="RUN")
    for run in parser.parse_args().add:
        add(run)
    text = between(PAGE.read_text(encoding="utf-8"), *RESULTS, table(sorted(PLANS.glob("*.json"))))
    records = [RunRecord.parse(fields, str(PROBES)) for fields in jsonl.read(PROBES)]
    write_text(PAGE, between(text, *ERRORS, errors(records)))


def add(run: Path) -> None:
    """Keep what was found of a run."""
    config = RunConfig.load(run / CONFIG)
    preset = canonical(config.preset)
    for folder, end in ((run, ""), (run / HELD_OUT, f"-{HELD_OUT}")):
        if (folder / PLANNING).exists():
            save(load(folder / PLANNING), PLANS / f"{preset}-seed-{config.seed}{end}.json")
    if preset == PRESET:
        record_of(run, None, 0).append(PROBES)


def table(paths: Iterable[Path]) -> str:
    """Every record's rows in Markdown, protocol by protocol; several seeds of a model in one more row."""
    models: dict[tuple[str, bool, str], list[tuple[str, Planning]]] = {}
    others: dict[tuple[str, bool, str], Row] = {}
    for path in paths:
        name, _, rest = path.stem.partition("-seed-")
        for planning in load(path):
            for one in planning.outcomes:
                if one.name == MODEL:
                    seed = rest.partition("-")[0]
                    models.setdefault((planning.protocol, planning.held_out, name), []).append((seed, planning))
                else:
                    key = (planning.protocol, planning.held_out, one.name)
                    others.setdefault(key, Row(one.name, "", planning, (one,)))
    rows = []
    for protocol, held_out in sorted({key[:2] for key in models}):
        for name in sorted({key[2] for key in models if key[:2] == (protocol, held_out)}):
            seeds = models[protocol, held_out, name]
            found = [_model(planning) for _, planning in seeds]
            each = [
                Row(f"`{name}`", seed, planning, (one,)) for (seed, planning), one in zip(seeds, found, strict=True)
            ]
            rows += each
            if len(seeds) > 1:
                rows.append(Row(f"**`{name}`**", "all", seeds[0][1], tuple(found)))
        rows += [row for key, row in others.items() if key[:2] == (protocol, held_out)]
    lines = [
        "| what acts, training seed | protocol | walls | final | 95% interval | ever | arrival | s / episode "
        "| predictor steps / episode |",
        "|---|---|---|---:|---|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *map(_line, rows), ""])


def _model(planning: Planning) -> Outcome:
    (one,) = (each for each in planning.outcomes if each.name == MODEL)
    return one


def _line(row: Row) -> str:
    episodes = sum(one.episodes for one in row.outcomes)
    final, ever = (sum(getattr(one, name) for one in row.outcomes) for name in ("final", "ever"))
    low, high = wilson(final, episodes)
    arrivals = [one.median_arrival for one in row.outcomes if one.median_arrival is not None]
    seconds, steps = (
        statistics.fmean(getattr(one, name) for one in row.outcomes) for name in ("seconds", "predictor_steps")
    )
    where = "held out" if row.planning.held_out else "as in training"
    who = f"{row.name}, {row.seeds}" if row.seeds else row.name
    return (
        f"| {who} | {row.planning.protocol} | {where} | {final / episodes:.1%} | {low:.1%} to {high:.1%} "
        f"| {ever / episodes:.1%} | {f'{statistics.median(arrivals):.0f}' if arrivals else '-'} | {seconds:.2f} "
        f"| {steps:,.0f} |"
    )


def errors(records: list[RunRecord]) -> str:
    """Probe errors of the model to plan with, seed by seed, in Markdown."""
    if not records:
        return "Not measured yet.\n"
    lines = [f"| seed | steps | {' | '.join(map(short, PROBE_SETS))} |", "|---:|---:" + "|---:" * len(PROBE_SETS) + "|"]
    for record in sorted(records, key=lambda one: one.seed):
        cells = " | ".join(f"{record.probe_sets[name].trained.converged:.2f}" for name in PROBE_SETS)
        lines.append(f"| {record.seed} | {record.steps:,} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
