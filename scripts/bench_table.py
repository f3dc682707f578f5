"""Speed-ups out of pytest-benchmark's JSON, which is the one record of what was measured.

    python -m pytest bench --benchmark-json=bench/run.json
    python -m scripts.bench_table bench/run.json                  # prints one table, writes bench/latest.json
    python -m scripts.bench_table bench/run.json --keep           # also stores it and draws the tables of the docs anew
    python -m scripts.bench_table bench/run.json --check DIR      # exit status 1 where a stored speed-up is lost

All candidates of a group ran side by side in one process; a row compares the fastest of ours with one baseline.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.errors import InputError, RunError
from scripts.marks import between

ROOT = Path(__file__).resolve().parent.parent
LATEST = ROOT / "bench" / "latest.json"
RESULTS = ROOT / "bench" / "results"
DOCS, README, SPARSE = ROOT / "docs" / "results.md", ROOT / "README.md", ROOT / "docs" / "sparse-encoding.md"
BEGIN, END = "<!-- tables: made by scripts/bench_table.py -->", "<!-- end of tables -->"
STEP_BEGIN, STEP_END = "<!-- step: made by scripts/bench_table.py -->\n", "<!-- end of step -->\n"
STEP = "step, batch 32"
# What the candidates of a step are called in the README, in the order of its table.
STEP_NAMES = {
    "ours": "**jepa_fast**",
    "ours_compiled": "jepa_fast, torch.compile'd",
    "ours_pieces": "jepa_fast, without its compiled kernels",
    "plain": "well-tuned PyTorch: one encoder call, static channels once, channels last, fused Adam",
    "compiled": "the same, torch.compile'd",
    "published": "the loop as published: eager, one encoder call per time step",
}
# How a processor's name ends; what was measured before instruction sets were named is not shown with the others.
CPU_ENDINGS = (" thread", " threads")
# A speed-up may shrink to this share of the stored one.
LEAST_SHARE = 0.7


@dataclass(frozen=True)
class Arguments:
    """Print the comparisons in a pytest-benchmark JSON and write them to bench/latest.json."""

    run: tyro.conf.Positional[Path]
    """JSON of pytest --benchmark-json."""
    keep: bool = False
    """Store it under bench/results/<device>/ and draw the tables of README.md and docs/ anew."""
    check: Path | None = None
    """Folder of stored results: exit status 1 if a speed-up fell below 0.7 times the newest one there."""


@dataclass(frozen=True)
class Row:
    """One comparison. Times are medians in ms; `ratio` is how many times faster ours is."""

    name: str
    device: str
    ours: str
    ours_ms: float
    baseline: str
    baseline_ms: float
    ratio: float
    note: str


def rows_of(record: dict[str, Any], statistic: str = "median") -> list[Row]:
    """Every group's fastest candidate of ours against each of its baselines, by `statistic` of the times."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for benchmark in record["benchmarks"]:
        groups.setdefault(benchmark["group"] or benchmark["name"], []).append(benchmark)
    rows = []
    for name, benchmarks in groups.items():
        timed = [
            (
                benchmark["stats"][statistic] * 1e3,
                {"rounds": benchmark["stats"].get("rounds")} | benchmark["extra_info"],
            )
            for benchmark in benchmarks
        ]
        ours = min((one for one in timed if one[1]["is_ours"]), key=lambda one: one[0], default=None)
        if ours is None:
            continue
        ours_ms, info = ours
        for baseline_ms, other in timed:
            if not other["is_ours"]:
                ratio, note = baseline_ms / ours_ms, _note(info, other)
                rows.append(
                    Row(name, info["device"], info["candidate"], ours_ms, other["candidate"], baseline_ms, ratio, note)
                )
    return rows


def _note(ours: dict[str, Any], baseline: dict[str, Any]) -> str:
    parts = [f"torch {ours['torch']}"]
    if "percent_of_copy" in ours:
        parts.append(f"{ours['percent_of_copy']:.0f}% of the copy bandwidth")
    if "percent_of_peak" in ours:
        parts.append(f"{ours['percent_of_peak']:.0f}% of the multiply-add peak")
    if "percent_of_memcpy" in ours:
        parts.append(f"{ours['trajectories_per_s']:,} trajectories/s")
    if "peak_mb" in ours and "peak_mb" in baseline:
        parts.append(f"peak {ours['peak_mb']:,} MB against {baseline['peak_mb']:,} MB")
    if ours["rounds"] is not None and baseline["rounds"] is not None:
        parts.append(f"rounds {ours['rounds']:,} against {baseline['rounds']:,}")
    return "; ".join(parts)


def read_record(path: Path) -> dict[str, Any]:
    """A pytest-benchmark JSON.

    Raises:
        InputError: no such file, or not one whose benchmarks bench/conftest.py described.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        for benchmark in record["benchmarks"]:
            _ = benchmark["extra_info"]["candidate"], benchmark["stats"]["median"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: found no record of pytest bench --benchmark-json ({error})") from error
    return record


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | ours | ms | baseline | ms | times faster | note |", "|---|---|---:|---|---:|---:|---|"]
    lines += [
        f"| {row.name} | {row.ours} | {_ms(row.ours_ms)} | {row.baseline} | {_ms(row.baseline_ms)} "
        f"| {row.ratio:.2f} | {row.note} |"
        for row in rows
    ]
    return "\n".join(lines)


def _ms(time_ms: float) -> str:
    return f"{time_ms:,.0f}" if time_ms >= 1000 else f"{time_ms:.3g}"


def newest(folder: Path) -> Path:
    """The newest record in a device's folder; names begin with the date.

    Raises:
        InputError: there is none.
    """
    records = sorted(folder.glob("*.json"))
    if not records:
        raise InputError(f"{folder}: found no stored results, expected <date>-<commit>.json")
    return records[-1]


def lost(record: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What was lost against stored results, in a line each: a speed-up that shrank, a comparison that is gone.

    Only ratios are compared, of the fastest rounds: those depend the least on what else the machine does.
    """
    found = {(row.name, row.baseline): row.ratio for row in rows_of(record, "min")}
    losses = []
    for row in rows_of(stored, "min"):
        ratio = found.get((row.name, row.baseline))
        what = f"{row.name} against {row.baseline}"
        if ratio is None:
            losses.append(f"{what}: was not measured, stored is {row.ratio:.2f} times faster")
        elif ratio < LEAST_SHARE * row.ratio:
            losses.append(f"{what}: {ratio:.2f} times faster, stored is {row.ratio:.2f}")
    return losses


def keep(record: dict[str, Any], results: Path) -> Path:
    """Store a record, without the times of single rounds, as <device>/<date>-<commit>.json.

    Raises:
        InputError: it was measured with uncommitted changes, or on several devices.
    """
    commit = record["commit_info"]
    require(not commit.get("dirty"), "--keep", "uncommitted changes", "a record of a commit")
    devices = {benchmark["extra_info"]["device"] for benchmark in record["benchmarks"]}
    require(len(devices) == 1, "--keep", sorted(devices), "one device")
    benchmarks = [
        benchmark | {"stats": {key: value for key, value in benchmark["stats"].items() if key != "data"}}
        for benchmark in record["benchmarks"]
    ]
    path = results / slug(devices.pop()) / f"{record['datetime'][:10]}-{commit['id'][:9]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | {"benchmarks": benchmarks}, indent=1) + "\n")
    return path


def slug(device: str) -> str:
    """A device's name as a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def with_tables(text: str, results: Path) -> str:
    """A page of the docs with the tables between its markers: of every device, each group as it was measured last.

    Loaders are left out: research/loader_table.py shows them in more detail.
    """
    parts = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        shown: set[str] = set()
        for path in sorted(folder.glob("*.json"), reverse=True):
            rows = [row for row in rows_of(read_record(path)) if row.name not in shown and "loader" not in row.name]
            if not rows:
                continue
            if not shown:
                parts.append(f"### {rows[0].device}\n")
            shown |= {row.name for row in rows}
            parts.append(f"From `{path.relative_to(results.parent.parent)}`.\n\n{table(rows)}\n")
    return between(text, BEGIN, END, "\n\n" + "\n".join(parts) + "\n")


def newest_steps(results: Path) -> list[Path]:
    """Of every device the newest stored record that times whole steps and names its instruction set, if it has one.

    Raises:
        InputError: there is none.
    """
    found = {}
    for path in sorted(results.glob("*/*.json")):
        infos = [one["extra_info"] for one in read_record(path)["benchmarks"] if one["group"] == STEP]
        if any("instruction_set" in info or not info["device"].endswith(CPU_ENDINGS) for info in infos):
            found[path.parent] = path
    if not found:
        raise InputError(f"{results}: found no stored results of {STEP!r}")
    return list(found.values())


def step_table(results: Path) -> str:
    """The times of a whole step on every device, each beside how many times slower it is than our fastest there."""
    paths = newest_steps(results)
    devices, sources = [], []
    cells: dict[str, list[str]] = {name: [] for name in STEP_NAMES}
    peak_mb = dict.fromkeys(STEP_NAMES, 0)
    for path in paths:
        steps = {
            benchmark["extra_info"]["candidate"]: benchmark
            for benchmark in read_record(path)["benchmarks"]
            if benchmark["group"] == STEP
        }
        ours_ms = min(1e3 * step["stats"]["median"] for step in steps.values() if step["extra_info"]["is_ours"])
        for name in STEP_NAMES:
            cells[name] += ["", ""] if name not in steps else _step_cells(steps[name], ours_ms)
            if name in steps:
                peak_mb[name] = max(peak_mb[name], steps[name]["extra_info"]["peak_mb"])
        info = next(iter(steps.values()))["extra_info"]
        devices.append(info["device"])
        rounds = sorted({step["stats"]["rounds"] for step in steps.values()})
        counted = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        sources.append(
            f"{info['device']}: torch {info['torch']}, medians of {counted} rounds, "
            f"`{path.relative_to(results.parent.parent)}`."
        )
    heads = "".join(f" {device}, ms | times slower |" for device in devices)
    lines = [f"| step |{heads} peak memory |", f"|---|{'---:|' * (2 * len(devices) + 1)}"]
    lines += [
        f"| {shown} | {' | '.join(cells[name])} | {peak_mb[name]:,} MB |"
        for name, shown in STEP_NAMES.items()
        if peak_mb[name]
    ]
    return "\n".join([*lines, "", *sources, ""])


def _step_cells(step: dict[str, Any], ours_ms: float) -> list[str]:
    step_ms = 1e3 * step["stats"]["median"]
    return [_ms(step_ms), "" if step_ms == ours_ms else f"{step_ms / ours_ms:.1f}"]


def claim(results: Path) -> str:
    """What the README says first: how many times faster our step is than the fastest baseline, at least."""
    records = [read_record(path) for path in newest_steps(results)]
    ratio = min(row.ratio for record in records for row in rows_of(record) if row.name == STEP)
    return (
        f"Trains JEPA world models {ratio:.1f} times faster than well-tuned PyTorch on the same CPU cores, "
        "with the same losses and gradients up to rounding.\n"
    )


def draw_pages() -> None:
    """Put the stored results into README.md and the docs."""
    DOCS.write_text(with_tables(DOCS.read_text(), RESULTS))
    SPARSE.write_text(between(SPARSE.read_text(), STEP_BEGIN, STEP_END, step_table(RESULTS)))
    readme = f"{claim(RESULTS)}\n{step_table(RESULTS)}"
    README.write_text(between(README.read_text(), STEP_BEGIN, STEP_END, readme))


def main(arguments: Arguments) -> None:
    """Print, write, and what else was asked for.

    Raises:
        RunError: --check found a loss.
    """
    record = read_record(arguments.run)
    rows = rows_of(record)
    print(table(rows))
    LATEST.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if arguments.keep:
        print(f"\n{keep(record, RESULTS)}")
        draw_pages()
    if arguments.check is not None:
        path = newest(arguments.check)
        losses = lost(record, read_record(path))
        for loss in losses:
            print(f"\nlost: {loss}")
        if losses:
            raise RunError(f"{len(losses)} of the comparisons in {path} lost more than {1 - LEAST_SHARE:.0%}")


if __name__ == "__main__":
    cli.run(main, Arguments, "Compare what pytest-benchmark measured.")
