"""What scripts/gpu_check.py runs in processes of their own: the machine, data, steps with their profile, all presets.

python -m scripts.gpu_steps STAGE DATA OUT
"""

import argparse
import json
import logging
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TRAJECTORIES, BATCH = 2048, 128
STEPS, STEPS_OF_A_PRESET, PROFILED = 150, 10, 5


def describe(data: Path, out: Path) -> None:
    """Print the machine and what is installed, as JSON; "device" is there where torch sees one."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for module in ("triton", "numpy"):
        try:
            found[module] = __import__(module).__version__
        except ImportError:
            found[module] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "capability": f"{properties.major}{properties.minor}"}
        found |= {"multiprocessors": properties.multi_processor_count, "memory_gb": properties.total_memory / 1e9}
    for name, command in {
        "commit": ["git", "rev-parse", "HEAD"],
        "nvidia_smi": ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"],
    }.items():
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            found[name] = done.stdout.strip() or None
        except OSError:
            found[name] = None
    print(json.dumps(found))


def make_data(data: Path, out: Path) -> None:
    """Trajectories for the stages that train."""
    from jepa_fast.generate import generate

    generate(data, trajectories=TRAJECTORIES, splits=("train",), workers=1)


def make_trainer(data: Path, name: str, compiled: bool) -> tuple[Any, Iterator[Any]]:
    """A trainer of a preset, as `--amp bf16 --capture` has it and as `compiled` says, and its batches for ever."""
    import torch

    from jepa_fast.backends import choose_kernels
    from jepa_fast.config import RunConfig
    from jepa_fast.data import host
    from jepa_fast.data.sampler import Sampler
    from jepa_fast.data.shards import open_split
    from jepa_fast.engine.step import Trainer
    from jepa_fast.presets import preset

    recipe = preset(name)
    split = open_split(data / "train")
    config = RunConfig(
        preset=name, recipe=recipe, seed=0, steps=1000, batch_size=BATCH,
        amp="bf16" if "bf16" in recipe.model.amps else "off", compile=compiled, device="cuda", data=str(data),
        loader="host", kernels=choose_kernels("auto", "cuda", recipe.model.dim), sparse=True, capture=True,
    )  # fmt: skip
    trainer = Trainer(config, split.spec, host.group_bases(split, torch.device(config.device)))
    rows = Sampler(split.count, config.batch_size, 0).steps(0, config.steps)
    return trainer, (host.gather(split, each) for each in rows)


def take_steps(trainer: Any, batches: Iterator[Any], out: Path, name: str, steps: int) -> str | None:
    """Take steps, the raw metrics of each a line of steps.jsonl; what is wrong with them, or None."""
    import torch

    bad, is_graph = 0, False
    with (out / "steps.jsonl").open("a") as lines:
        for number in range(steps):
            batch = next(batches)
            torch.cuda.synchronize()
            start = time.perf_counter()
            metrics = trainer.step(batch).metrics
            values = dict(zip(trainer.names, metrics.tolist(), strict=True))
            taken_ms = round(1e3 * (time.perf_counter() - start), 3)
            bad += not torch.isfinite(metrics).all().item()
            is_graph = trainer._advance._graph is not None
            row = {"preset": name, "step": number, "ms": taken_ms, "one_graph": is_graph}
            print(json.dumps(row | values), file=lines, flush=True)
    print(f"{name}: {torch.cuda.max_memory_allocated() / 1e6:.0f} MB at most", flush=True)
    if bad or not is_graph:
        return f"{name}: {bad} steps that are not finite, captured: {is_graph}"
    return None


def run_steps(data: Path, out: Path) -> None:
    """Steps of the default recipe, compiled and captured, then their profile, whatever became of them.

    Raises:
        SystemExit: a step that is not finite, or no graph.
    """
    trainer, batches = make_trainer(data, "baseline", compiled=True)
    wrong = take_steps(trainer, batches, out, "baseline", STEPS)
    profile_steps(trainer, batches, out)
    if wrong:
        raise SystemExit(wrong)


def profile_steps(trainer: Any, batches: Iterator[Any], out: Path) -> None:
    """Kernels of a few steps, by time and in order: of the graph, then of one launched kernel by kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    parts = []
    steps: tuple[tuple[str, int, Callable[[], Any]], ...] = (
        ("captured", PROFILED, lambda: trainer.step(next(batches))),
        ("uncaptured", 1, trainer.advance),
    )
    for kind, count, step in steps:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(count):
                step()
            torch.cuda.synchronize()
        table = profiler.key_averages().table(sort_by="self_device_time_total", row_limit=150, max_name_column_width=90)
        kernels = [event for event in profiler.events() or () if event.device_type.name == "CUDA"]
        listed = "\n".join(f"{event.time_range.elapsed_us():9.1f} us  {event.name}" for event in kernels)
        parts.append(f"{len(kernels)} kernels in {count} {kind} steps\n\n{table}\n\n{listed}\n")
        (out / "profile.txt").write_text("\n".join(parts))


def run_presets(data: Path, out: Path) -> None:
    """A few captured steps of every preset, uncompiled, which saves a minute each; all are tried, whichever fails.

    Raises:
        SystemExit: those that failed.
    """
    from jepa_fast.presets import PRESETS

    failed = []
    for name in PRESETS:
        try:
            wrong = take_steps(*make_trainer(data, name, compiled=False), out, name, STEPS_OF_A_PRESET)
        except Exception:
            traceback.print_exc()
            wrong = f"{name}: an error, above"
        failed += [wrong] if wrong else []
    if failed:
        raise SystemExit("\n".join(failed))


STAGES: dict[str, Callable[[Path, Path], None]] = {
    "describe": describe,
    "data": make_data,
    "steps": run_steps,
    "presets": run_presets,
}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    STAGES[options.stage](options.data, options.out)


if __name__ == "__main__":
    main()
