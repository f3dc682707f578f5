"""Train, probe and show the preset features20k over several seeds. Starts again where it was stopped.

    python scripts/features20k.py [--seeds 0 1 2] [--data data/full] [--out runs/features20k]

Each seed is trained in a process of its own, whose wall-clock and processor seconds are noted, and evaluated with a
probe seed that was used for nothing else. The floor of both probes is measured on the true locations, lifted by the
same encoder. Results go to records/features20k/, and from there into docs/features20k.md and its figure:

    python scripts/features20k.py --draw                 # only that
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import jepa_fast
from jepa_fast.data.shards import open_split
from jepa_fast.model.feature_world import FeatureWorld
from jepa_fast.probing.evaluation import PROBE_SETS
from jepa_fast.probing.prober import converged_probe, official_probe
from jepa_fast.probing.results import Scores
from jepa_fast.probing.rollouts import Rollouts, all_locations
from jepa_fast.studying.process import Command, Cost
from jepa_fast.studying.record import record_of, write_json

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "records" / "features20k"
PAGE, FIGURE = ROOT / "docs" / "features20k.md", ROOT / "docs" / "images" / "features20k.png"
BEGIN, END = "<!-- results: scripts/features20k.py --draw -->\n", "<!-- end of results -->\n"
PROBE_SEED = 1000  # plus the training seed


def main() -> None:
    """Measure what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "full")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "features20k")
    parser.add_argument("--draw", action="store_true")
    arguments = parser.parse_args()
    if not arguments.draw:
        RECORDS.mkdir(parents=True, exist_ok=True)
        if not arguments.data.exists():
            succeed("jepa_fast.generate", "--out", arguments.data)
        for seed in arguments.seeds:
            path = RECORDS / f"seed-{seed}.json"
            if not path.exists():
                write_json(path, measure(seed, arguments.data, arguments.out / f"seed-{seed}"))
    results = records()
    print(tables(results))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables(results) + END + rest.partition(END)[2])
    draw(results)


def records() -> list[dict[str, Any]]:
    """What was measured, seed by seed."""
    return [json.loads(path.read_text()) for path in sorted(RECORDS.glob("seed-*.json"))]


def measure(seed: int, data: Path, run: Path) -> dict[str, Any]:
    """What one seed gives."""
    flags: list[str | Path] = ["--preset", "features20k", "--seed", str(seed), "--data.path", data, "--out", run]
    training = succeed("jepa_fast.train", *flags)
    succeed("jepa_fast.evaluate", run, "--seed", str(PROBE_SEED + seed))
    world = jepa_fast.load(run)
    assert isinstance(world, FeatureWorld)
    record = asdict(record_of(run, training, PROBE_SEED + seed))
    for name, floor in floors(world, data, PROBE_SEED + seed).items():
        record["probe_sets"][name]["true_locations"] = vars(floor)
    return record


def succeed(module: str, *flags: str | Path) -> Cost:
    """Run a command of the package to its end: what it cost.

    Raises:
        SystemExit: it failed.
    """
    cost = Command(module, *flags).wait()
    if cost.status != 0:
        raise SystemExit(cost.status)
    return cost


def floors(world: FeatureWorld, data: Path, probe_seed: int) -> dict[str, Scores]:
    """Both probes' scores on true locations, lifted by the world's encoder: what a perfect predictor would get."""

    def lifted(name: str) -> Rollouts:
        locations = all_locations(open_split(data / name))
        half = (world.config.frame - 1) / 2
        with torch.no_grad():
            return Rollouts(world.encoder((locations - half) / half), locations)

    probes: dict[str, Any] = {}
    scores = {}
    for name, source in PROBE_SETS.items():
        if source not in probes:
            train = lifted(source)
            probes[source] = official_probe(train, probe_seed), converged_probe(train, probe_seed)
        official, converged = (probe.squared_errors(lifted(name)) for probe in probes[source])
        means = official.mean().item(), converged.mean().item()
        scores[name] = Scores(*means, official.mean(0).tolist(), converged.mean(0).tolist())
    return scores


def tables(results: list[dict[str, Any]]) -> str:
    """The page's tables in Markdown."""
    lines = ["| probe set | probe | trained: mean (each seed) | true locations | untrained | constant |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for name in PROBE_SETS:
        sets = [result["probe_sets"][name] for result in results]
        for probe in ("official", "converged"):
            each = [one["trained"][probe] for one in sets]
            shown = f"**{statistics.fmean(each):.4f}** ({', '.join(f'{value:.4f}' for value in each)})"
            true = statistics.fmean(one["true_locations"][probe] for one in sets)
            untrained = statistics.fmean(one["untrained"][probe] for one in sets)
            short = name.removeprefix("probe_").removesuffix("/val")
            lines.append(f"| {short} | {probe} | {shown} | {true:.4f} | {untrained:.1f} | {sets[0]['constant']:.1f} |")
    lines += [
        "",
        "| seed | probe seed | steps | epochs | wall-clock s | processor s | load average |",
        "|---:" * 7 + "|",
    ]
    lines += [
        f"| {one['seed']} | {one['probe_seed']} | {one['steps']:,} | {one['epochs']:.1f} | {one['train_wall_s']:.0f} | "
        f"{one['train_processor_s']:.0f} | {one['load_average_after']:.1f} |"
        for one in results
    ]
    environment = results[0]["environment"]
    machine = f"{environment['device']}, {environment['threads']} thread(s), torch {environment['torch']}"
    return "\n".join([*lines, "", f"On {machine}, commit {environment['commit'][:12]}.", ""])


def draw(results: list[dict[str, Any]]) -> None:
    """The error at every step, of both probes, for every set: the seeds' range and mean beside the floor."""
    figure, axes = plt.subplots(1, len(PROBE_SETS), figsize=(12, 3.7), layout="constrained", sharey=True)
    for axis, name in zip(axes, PROBE_SETS, strict=True):
        sets = [result["probe_sets"][name] for result in results]
        for probe, color in (("converged", "#d95f02"), ("official", "#7570b3")):
            trained = [one["trained"][f"{probe}_by_step"] for one in sets]
            steps = range(len(trained[0]))
            axis.fill_between(steps, over(trained, min), over(trained, max), color=color, alpha=0.25, lw=0)
            axis.plot(steps, over(trained, statistics.fmean), color=color, label=f"{probe} probe")
            true = [one["true_locations"][f"{probe}_by_step"] for one in sets]
            axis.plot(steps, over(true, statistics.fmean), color=color, lw=1, ls=":", label="the same, true locations")
        untrained = over([one["untrained"]["converged_by_step"] for one in sets], statistics.fmean)
        axis.plot(range(len(untrained)), untrained, color="#999999", label="untrained, converged probe")
        axis.set(title=name.removeprefix("probe_").removesuffix("/val"), xlabel="step", yscale="log")
    axes[0].set(ylabel="squared error, px²")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(FIGURE, dpi=100)


def over(curves: list[list[float]], function: Callable[[tuple[float, ...]], float]) -> list[float]:
    """`function` of all curves' values, step by step."""
    return [function(values) for values in zip(*curves, strict=True)]


if __name__ == "__main__":
    main()
