"""The loaders' tables of docs/results.md, out of the newest stored results that hold loaders.

    make bench
    python -m scripts.bench_table bench/run.json --keep
    python -m research.loader_table

The middle line stores results; without it the tables stay those of the results that were stored last.
"""

import json
from pathlib import Path
from typing import Any

from scripts.marks import between

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- tables: python -m research.loader_table -->", "<!-- end of loader tables -->"
GROUP = "loader, "


def loader_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What was noted of every loader, with its group's name and its median time."""
    return [
        benchmark["extra_info"] | {"what": benchmark["group"].split(", ")[1]}
        for benchmark in record["benchmarks"]
        if (benchmark["group"] or "").startswith(GROUP)
    ]


def newest_with_loaders(results: Path) -> Path | None:
    """The newest stored results with loaders in them; their names begin with the date."""
    paths = sorted(results.glob("*/*.json"), key=lambda path: path.name, reverse=True)
    return next((path for path in paths if loader_rows(json.loads(path.read_text()))), None)


def tables(rows: list[dict[str, Any]]) -> str:
    """One table for each encoding; the PyTorch way, which knows whole frames alone, stands in the first."""
    parts = []
    for number, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        shown = [row for row in rows if row["what"] == what and (number == 0 or row["is_ours"])]
        batch_mb, memcpy_gb_s = shown[-1]["batch_bytes"] / 1e6, shown[-1]["memcpy_gb_s"]
        lines = [
            f"#### {what[0].upper()}{what[1:]}: {batch_mb:.2f} MB a batch, one thread copies {memcpy_gb_s:.1f} GB/s\n",
            "| loader | trajectories/s | GB/s | of memcpy | private MB | resident MB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['candidate']} | {row['trajectories_per_s']:,} | {row['gb_s']:.2f} "
            f"| {row['percent_of_memcpy']:.0f}% | {row['private_mb']:,} | {row['resident_mb']:,} |"
            for row in shown
        ]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, summary(rows)])


def summary(rows: list[dict[str, Any]]) -> str:
    """What the tables come to, in a list."""
    found = {(row["what"], row["candidate"]): row for row in rows}
    speed = {key: row["trajectories_per_s"] for key, row in found.items()}
    host = found["full frames", "ours, host"]
    lines = [
        f"host, full frames: {speed['full frames', 'ours, host'] / speed['full frames', name]:.1f} times {name}"
        for name in ("DataLoader, float32", "DataLoader, float32, tuned malloc")
    ]
    lines.append(f"host, full frames: {host['percent_of_memcpy']:.0f}% of what one thread copies")
    lines += [
        f"resident, {what}: {speed[what, 'ours, resident'] / speed[what, 'ours, host']:.2f} times host"
        for what in dict.fromkeys(row["what"] for row in rows)
    ]
    return "In short:\n\n" + "\n".join(f"- {line}" for line in lines)


def drawn(text: str, results: Path) -> str:
    """The page with the tables between its markers made anew."""
    path = newest_with_loaders(results)
    if path is None:
        body = "Not measured yet."
    else:
        rows = loader_rows(json.loads(path.read_text()))
        origin = f"From `{path.relative_to(results.parent.parent)}`: {rows[0]['device']}, torch {rows[0]['torch']}."
        body = f"{origin}\n\n{tables(rows)}"
    return between(text, BEGIN, END, f"\n\n{body}\n\n")


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(), RESULTS))
