"""The models' tables of README.md and docs/results.md, out of the committed records.

python -m research.model_tables
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from jepa_fast.probing.evaluation import PROBE_SETS
from jepa_fast.report.probes import short
from research import jsonl
from research.run_record import RunRecord
from scripts.marks import between

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "research" / "records"
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results.md"
MODELS = ("gated_features", "gated_pixels", "gated_convnext", "short_rollouts", "baseline")
# The tables of single runs: records, the preset that is shown of them, and what a run's name is in words.
VARIANTS = {
    "short_rollouts_variants": {
        "variance_1-seed-0": "weight 1, seed 0",
        "variance_1-seed-1": "weight 1, seed 1",
        "variance_1-two_epochs-seed-0": "weight 1, two epochs, seed 0",
        "variance_1-two_epochs-seed-1": "weight 1, two epochs, seed 1",
        "variance_1-flips-seed-0": "weight 1, flips, seed 0",
        "no_variance_term-seed-0": "weight 0, seed 0",
    },
    "gated_convnext_together": {
        "together-uncentred-seed-0": "seed 0, without the centring term",
        "together-seed-1": "seed 1",
    },
}
VARIANT_RECORDS = {"short_rollouts_variants": "short_rollouts", "gated_convnext_together": "gated_convnext"}


def main() -> None:
    """Put all tables between their marks."""
    README.write_text(with_tables(README.read_text(), {"models": models(full_runs())}))
    RESULTS.write_text(with_tables(RESULTS.read_text(), run_tables()))


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table."""
    return f"<!-- {name}: python -m research.model_tables -->\n", f"<!-- end of {name} -->\n"


def with_tables(text: str, tables: dict[str, str]) -> str:
    """A page with the tables of that name between their marks."""
    for name, table in tables.items():
        text = between(text, *marks(name), table)
    return text


def full_runs() -> dict[str, list[RunRecord]]:
    """The runs of every model by its full recipe, seed by seed."""
    found: dict[str, list[RunRecord]] = {name: [] for name in MODELS}
    path = RECORDS / "study" / "pareto.jsonl"
    for fields in jsonl.read(path):
        record = RunRecord.parse(fields, str(path))
        found[record.preset].append(record)
    return {name: sorted(records, key=lambda record: record.seed) for name, records in found.items()}


def run_tables() -> dict[str, str]:
    """The tables of single runs on the results' page, by name."""
    full = full_runs()
    found = {}
    for name in ("short_rollouts", "gated_convnext"):
        records = full[name]
        each = {f"seed {record.seed}": record for record in records}
        found[f"{name}_runs"] = runs(each, mean=records)
    for name, words in VARIANTS.items():
        path = RECORDS / f"{VARIANT_RECORDS[name]}.jsonl"
        records_by_run = {fields.pop("run"): RunRecord.parse(fields, str(path)) for fields in jsonl.read(path)}
        found[name] = runs({words[run]: records_by_run[run] for run in words})
    return found


def models(found: dict[str, list[RunRecord]]) -> str:
    """A row for every model: parameters, CPU time of training, both probes' mean errors on every set."""
    lines = [
        f"| preset | parameters | training | {' | '.join(map(short, PROBE_SETS))} |",
        "|---|---:|---:|" + "---:|" * len(PROBE_SETS),
    ]
    for name, records in found.items():
        parameters = records[0].parameters
        cpu_s = [record.train_cpu_s for record in records if record.train_cpu_s is not None]
        cells = [f"`{name}`", f"{parameters:,}", span(cpu_s), *mean_errors(records)]
        lines.append(f"| {' | '.join(cells)} |")
    environment = found["baseline"][0].environment
    machine = f"{environment['device']}, {environment['threads']} thread, torch {environment['torch']}"
    return "\n".join([*lines, "", f"Training is CPU time, fastest to slowest seed. {machine}.", ""])


def span(seconds: Sequence[float]) -> str:
    """The least and the most of them, in minutes from two minutes on: "66 to 81 s"."""
    least, most = min(seconds), max(seconds)
    if most < 120:
        return f"{least:.0f} to {most:.0f} s"
    return f"{least / 60:.0f} to {most / 60:.0f} min"


def runs(found: dict[str, RunRecord], mean: Sequence[RunRecord] = ()) -> str:
    """A row for every run: both probes' errors on every set, and what training took; then the mean of some."""
    lines = [
        f"| run | {' | '.join(map(short, PROBE_SETS))} | CPU time, s | wall-clock s |",
        "|---|" + "---:|" * (len(PROBE_SETS) + 2),
    ]
    for name, record in found.items():
        times = [f"{value:,.0f}" if value is not None else "-" for value in (record.train_cpu_s, record.train_wall_s)]
        lines.append(f"| {' | '.join([name, *mean_errors([record]), *times])} |")
    if mean:
        lines.append(f"| mean | {' | '.join(mean_errors(mean))} | | |")
    return "\n".join([*lines, ""])


def mean_errors(records: Sequence[RunRecord]) -> list[str]:
    """By set, "official / converged" in px^2."""
    cells = []
    for name in PROBE_SETS:
        scores = [record.probe_sets[name].trained for record in records]
        pair = [statistics.fmean(getattr(score, probe) for score in scores) for probe in ("official", "converged")]
        cells.append(" / ".join(error(value) for value in pair))
    return cells


def error(value: float) -> str:
    """Two decimals, or as many as the first digit that is not zero needs."""
    decimals = 2 if value >= 0.1 else 3 if value >= 0.01 else 4
    return f"{value:.{decimals}f}"


if __name__ == "__main__":
    main()
