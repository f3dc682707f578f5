"""Train, probe and show a one-step preset over several seeds. Started again, it goes on where it was stopped.

    python -m research.preset_records PRESET [--seeds 0 1 2] [--data data/full] [--out runs/PRESET]

PRESET is gated_features or gated_pixels. Each seed is trained in a process of its own, whose wall-clock and CPU time
are noted, and evaluated with a probe seed that was used for nothing else. The floor of both probes is measured on the
true locations, embedded by the same layer. Results go to research/records/PRESET.jsonl, a line per seed, and from there
into docs/results.md and its figure:

    python -m research.preset_records PRESET --draw       # only that
    python -m research.preset_records PRESET --curve      # trains seed 0 once more and scores it on the way
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import jepa_fast
from jepa_fast.config import LoopOptions
from jepa_fast.data.shards import open_split
from jepa_fast.data.writing import write_text
from jepa_fast.engine.loop import training
from jepa_fast.models.gated import PositionModel
from jepa_fast.models.model import Model
from jepa_fast.probing.evaluation import PROBE_SETS, scores
from jepa_fast.probing.prober import converged_probe, official_probe
from jepa_fast.probing.results import Scores
from jepa_fast.probing.rollouts import Rollouts, all_locations, rollout_split
from jepa_fast.report.probes import short
from jepa_fast.train import Arguments, DataArguments, prepare
from research import jsonl
from research.process import Command, Cost
from research.run_record import record_of, rounded
from scripts.marks import between

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ("gated_features", "gated_pixels")
PAGE = ROOT / "docs" / "results.md"
PROBE_SEED = 1000  # plus the training seed
# Steps after which the learning curve scores its run, and trajectories that its read-out is fitted to.
CURVE_STEPS = (25, 50, 100, 200, 400, 800, 1600, 3200)
CURVE_TRAJECTORIES = 2000


def main() -> None:
    """Measure what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "full")
    parser.add_argument("--out", type=Path)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--draw", action="store_true")
    only.add_argument("--curve", action="store_true")
    arguments = parser.parse_args()
    preset: str = arguments.preset
    out = arguments.out or ROOT / "runs" / preset
    if arguments.curve:
        points = curve(preset, arguments.data, out / "curve")
        write_text(path_of(f"{preset}_curve"), "".join(json.dumps(rounded(point)) + "\n" for point in points))
    elif not arguments.draw:
        measured = {record["seed"] for record in records(preset)}
        missing = [seed for seed in arguments.seeds if seed not in measured]
        print(f"{path_of(preset)}: {f'to measure: seeds {missing}' if missing else 'nothing to measure'}", flush=True)
        if missing and not arguments.data.exists():
            succeed("jepa_fast.generate", "--out", arguments.data)
        for seed in missing:
            jsonl.append(path_of(preset), rounded(measure(preset, seed, arguments.data, out / f"seed-{seed}")))
    print(results(preset))
    PAGE.write_text(between(PAGE.read_text(), *marks(preset), results(preset)))
    draw(records(preset), ROOT / "docs" / "images" / f"{preset}.png")


def path_of(name: str) -> Path:
    """The records of that name."""
    return ROOT / "research" / "records" / f"{name}.jsonl"


def marks(preset: str) -> tuple[str, str]:
    """What stands before and after a preset's tables in the page."""
    return f"<!-- results: python -m research.preset_records {preset} -->\n", f"<!-- end of results {preset} -->\n"


def records(preset: str) -> list[dict[str, Any]]:
    """What was measured, seed by seed."""
    return sorted(jsonl.read(path_of(preset)), key=lambda record: int(record["seed"]))


def results(preset: str) -> str:
    """What the page shows of a preset's records, in Markdown."""
    points = jsonl.read(path_of(f"{preset}_curve"))
    return tables(records(preset)) + (curve_table(points) if points else "")


def measure(preset: str, seed: int, data: Path, run: Path) -> dict[str, Any]:
    """What one seed gives."""
    flags: list[str | Path] = ["--preset", preset, "--seed", str(seed), "--data", data, "--out", run]
    training = succeed("jepa_fast.train", *flags)
    succeed("jepa_fast.evaluate", run, "--seed", str(PROBE_SEED + seed))
    model = cast(PositionModel, jepa_fast.load(run))
    record = asdict(record_of(run, training, PROBE_SEED + seed))
    for name, floor in floors(model, data, PROBE_SEED + seed).items():
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


def floors(model: PositionModel, data: Path, probe_seed: int) -> dict[str, Scores]:
    """Both probes' scores on true locations, embedded by the model's encoder: what a perfect predictor would get."""

    def embedded(name: str) -> Rollouts:
        locations = all_locations(open_split(data / name))
        half = (model.config.frame - 1) / 2
        with torch.no_grad():
            return Rollouts(model.lift((locations - half) / half), locations)

    probes: dict[str, Any] = {}
    found = {}
    for name, source in PROBE_SETS.items():
        if source not in probes:
            train = embedded(source)
            probes[source] = official_probe(train, probe_seed), converged_probe(train, probe_seed)
        official, converged = (probe.squared_errors(embedded(name)) for probe in probes[source])
        found[name] = scores(official, converged)
    return found


def curve(preset: str, data: Path, run: Path) -> list[dict[str, Any]]:
    """Errors of seed 0 on its way, on validation sets, by the linear read-out of latents that fits best.

    It is fitted to rollouts of the probes' training split: no more is asked of latents than to be linear in locations.
    """
    flags = Arguments(preset=preset, out=run, seed=0, data=DataArguments(path=data), device="cpu")
    folder, config = prepare(flags, "cpu", ranks=1)
    points = []
    for progress in training(config, folder, LoopOptions()):
        if progress.done in CURVE_STEPS or progress.done == config.steps:
            found = linear_errors(progress.model, data)
            print(progress.done, found)
            points.append({"seed": 0, "step": progress.done, **found})
    return points


def linear_errors(model: Model, data: Path) -> dict[str, float]:
    """By validation set, the squared error in pixels^2 of a linear read-out of latents."""

    def read(name: str, most: int) -> tuple[Tensor, Tensor]:
        states, locations = rollout_split(model, open_split(data / name), name)
        states = states[:most].flatten(0, 1).double()
        return torch.cat([states, torch.ones(len(states), 1)], dim=1), locations[:most].flatten(0, 1).double()

    fitted: dict[str, Tensor] = {}
    errors = {}
    for name, source in PROBE_SETS.items():
        if source not in fitted:
            states, locations = read(source, CURVE_TRAJECTORIES)
            # States stand for two numbers: the rank that a solver for full rank would not find.
            fitted[source] = torch.linalg.pinv(states, rtol=1e-6) @ locations
        states, locations = read(name, CURVE_TRAJECTORIES)
        errors[name] = (states @ fitted[source] - locations).square().mean().item()
    return errors


def curve_table(points: list[dict[str, Any]]) -> str:
    """The learning curve in Markdown."""
    lines = [f"| step | {' | '.join(map(short, PROBE_SETS))} |", "|---:" * (1 + len(PROBE_SETS)) + "|"]
    lines += [f"| {one['step']:,} | {' | '.join(f'{one[name]:.4f}' for name in PROBE_SETS)} |" for one in points]
    return "\n".join(
        ["", "Learning curve of seed 0: a linear read-out of latents, fitted to rollouts.", "", *lines, ""]
    )


def tables(results: list[dict[str, Any]]) -> str:
    """A preset's tables in Markdown."""
    lines = ["| probe set | probe | trained: mean (each seed) | true locations | untrained | constant |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for name in PROBE_SETS:
        sets = [result["probe_sets"][name] for result in results]
        for probe in ("official", "converged"):
            each = [one["trained"][probe] for one in sets]
            shown = f"**{statistics.fmean(each):.4f}** ({', '.join(f'{value:.4f}' for value in each)})"
            true = statistics.fmean(one["true_locations"][probe] for one in sets)
            untrained = statistics.fmean(one["untrained"][probe] for one in sets)
            lines.append(
                f"| {short(name)} | {probe} | {shown} | {true:.4f} | {untrained:.1f} | {sets[0]['constant']:.1f} |"
            )
    lines += [
        "",
        "| seed | probe seed | steps | epochs | wall-clock s | CPU time, s | load average |",
        "|---:" * 7 + "|",
    ]
    lines += [
        f"| {one['seed']} | {one['probe_seed']} | {one['steps']:,} | {one['epochs']:.1f} | {one['train_wall_s']:.0f} | "
        f"{one['train_cpu_s']:.0f} | {one['load_average_after']:.1f} |"
        for one in results
    ]
    environment = results[0]["environment"]
    machine = f"{environment['device']}, {environment['threads']} thread(s), torch {environment['torch']}"
    return "\n".join([*lines, "", f"On {machine}, commit {environment['commit'][:12]}.", ""])


def draw(results: list[dict[str, Any]], path: Path) -> None:
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
        axis.set(title=short(name), xlabel="step", yscale="log")
    axes[0].set(ylabel="squared error, px²")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)


def over(curves: list[list[float]], function: Callable[[tuple[float, ...]], float]) -> list[float]:
    """`function` of all curves' values, step by step."""
    return [function(values) for values in zip(*curves, strict=True)]


if __name__ == "__main__":
    main()
