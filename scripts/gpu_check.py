"""Build, steps, profile, presets, benchmarks, tests, sanitizer on a GPU: whatever fails, the rest runs and is written.

Each stage is a process of its own with a limit of its own, and ends with "green", "red" or "out of time"; nothing is
withheld for it. Two calls of six minutes, `--part 1` and `--part 2`, cover all of them; `--quick` takes three minutes;
`--rehearse` runs every stage small on a machine that has no GPU.

OUTDIR gets summary.json (device, versions, stages), log.txt (what stages printed), steps.jsonl (raw metrics of every
step), profile.txt (kernels of five steps, and their times), benchmarks.jsonl (a line each, as it ends), tests.xml and
sanitizer.txt. Exit status: 0 all green, 1 something red, 2 there is no device.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BENCHES = ("vicreg", "convnext_block", "dwconv_norm", "rollout", "window", "hidden", "step", "loop")


class Stage(NamedTuple):
    """A command, how long it may take, and the part of two calls that it is in."""

    name: str
    part: int
    limit_s: int
    command: list[str]
    log: str = "log.txt"
    is_quick: bool = False


def stages(out: Path, data: Path, rehearse: bool) -> list[Stage]:
    """All stages in order: what would be missed the most comes first."""
    python, here = sys.executable, str(Path(__file__).resolve())
    small = ["--rehearse"] if rehearse else []

    def inner(name: str, *arguments: str) -> list[str]:
        return [python, here, *small, "--stage", name, *arguments, "--data", str(data), str(out)]

    build = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    found = [Stage("build", 0, 150, build, is_quick=True), Stage("data", 0, 40, inner("data"), is_quick=True)]
    found.append(Stage("steps", 1, 150, inner("steps"), is_quick=True))
    found.append(Stage("profile", 1, 60, inner("profile"), is_quick=True))
    target = [python, "-m", "bench.bench_captured", *(["--rehearse"] if rehearse else [])]
    found.append(Stage("bench captured", 1, 120, target, is_quick=True))
    found.append(Stage("presets", 1, 120, inner("presets")))
    files = subprocess.run(
        ["grep", "-rlE", "mark\\.gpu|\"cuda\"", "--include=test_*.py", "tests"], cwd=ROOT, capture_output=True,
        text=True, check=False,
    ).stdout.split()  # fmt: skip
    pytest = [python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    parallel = ["-n", "12"] if _has("xdist") and not rehearse else []
    chosen = ["tests/engine/test_graph.py"] if rehearse else ["-m", "gpu", *sorted(files)]
    tests = [*pytest, *parallel, f"--junitxml={out / 'tests.xml'}", "--durations=10", *chosen]
    found.append(Stage("tests", 2, 200, tests))
    for bench in BENCHES[:1] if rehearse else BENCHES:
        options = ["--benchmark-max-time=0.2", "--benchmark-warmup=on", "--benchmark-warmup-iterations=10"]
        found.append(Stage(f"bench {bench}", 2, 60, [*pytest, *options, f"bench/bench_{bench}.py"]))
    if shutil.which("compute-sanitizer"):
        small_tests = [*pytest, "-m", "gpu", "-k", "small_shapes", "tests/kernels"]
        for tool in ("memcheck", "racecheck"):
            check = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *small_tests]
            found.append(Stage(tool, 2, 60, check, log="sanitizer.txt"))
    return found


def _has(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def describe() -> dict[str, Any]:
    """The machine and what is installed; nothing here can fail."""
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
    return found


def run_all(options: argparse.Namespace) -> int:
    """Run the stages that are asked for, one after another; the exit status."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = describe() | {"stages": []}
    if "device" not in summary and not options.rehearse:
        print("gpu_check: torch sees no CUDA device")
        return 2
    last = time.monotonic() + options.seconds
    environment = os.environ | {"JEPA_FAST_BENCH_LINES": str(out / "benchmarks.jsonl")}
    if "device" in summary:
        # For this device alone: an install for others compiles all architectures.
        flags = f"-DCMAKE_CUDA_ARCHITECTURES={summary['capability']} {os.environ.get('CMAKE_ARGS', '')}"
        environment |= {"JEPA_FAST_CUDA": "ON", "CMAKE_ARGS": flags.strip()}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages(out, Path(folder), options.rehearse):
            wanted = stage.is_quick if options.quick else stage.part in (0, options.part) or options.part == 0
            if not wanted:
                continue
            left = int(last - time.monotonic())
            # Nothing of a rehearsal is timed: its machine may have other things to do.
            limit_s = left if options.rehearse else min(stage.limit_s, left)
            state, seconds = run_one(stage, out, limit_s, environment)
            summary["stages"].append({"stage": stage.name, "state": state, "seconds": round(seconds, 1)})
            print(f"gpu_check: {stage.name}: {state} after {seconds:.0f} s", flush=True)
            (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 1 if any(stage["state"] == "red" for stage in summary["stages"]) else 0


def run_one(stage: Stage, out: Path, limit_s: int, environment: dict[str, str]) -> tuple[str, float]:
    """How a stage ended, and after how many seconds."""
    start = time.monotonic()
    if limit_s < 5:
        return "out of time", 0.0
    own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if stage.log == "sanitizer.txt" else {}
    with (out / stage.log).open("a") as log:
        print(f"== {stage.name}: {' '.join(stage.command)}", file=log, flush=True)
        try:
            done = subprocess.run(
                stage.command, cwd=ROOT, env=environment | own, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s,
                check=False,
            )  # fmt: skip
            state = "green" if done.returncode == 0 else "red"
        except subprocess.TimeoutExpired:
            state = "out of time"
        except OSError as error:
            print(error, file=log)
            state = "red"
    return state, time.monotonic() - start


class Sizes(NamedTuple):
    """Of the stages that train."""

    device: str
    trajectories: int
    batch: int
    steps: int
    profiled: int
    preset_steps: int


def sizes(rehearse: bool) -> Sizes:
    """Those of a GPU, or small ones for a rehearsal."""
    return Sizes("cpu", 512, 8, 6, 2, 2) if rehearse else Sizes("cuda", 2048, 128, 150, 5, 10)


def make_trainer(data: Path, name: str, size: Sizes, capture: bool, batch: int | None = None) -> tuple[Any, Any]:
    """A trainer of a preset, as `--amp bf16 --compile --capture` would have it, and its batches for ever."""
    import torch

    from jepa_fast.backends import choose_kernels
    from jepa_fast.config import RunConfig
    from jepa_fast.data.host import gather, group_bases
    from jepa_fast.data.sampler import Sampler
    from jepa_fast.data.shards import open_split
    from jepa_fast.engine.step import Trainer
    from jepa_fast.presets import preset

    recipe, is_gpu = preset(name), size.device == "cuda"
    kernels = choose_kernels("auto", "cuda" if is_gpu else "cpu", recipe.model.dim)
    split = open_split(data / "train")
    config = RunConfig(
        preset=name, recipe=recipe, seed=0, steps=1000, batch_size=batch or size.batch,
        amp="bf16" if is_gpu and "bf16" in recipe.model.amps else "off", compile=is_gpu,
        device="cuda" if is_gpu else "cpu", data=str(data), loader="host", kernels=kernels, sparse=True,
        capture=is_gpu and capture,
    )  # fmt: skip
    trainer = Trainer(config, split.spec, group_bases(split, torch.device(config.device)))
    rows = Sampler(split.count, config.batch_size, 0).steps(0, config.steps)
    return trainer, (gather(split, each) for each in rows)


def run_steps(data: Path, out: Path, size: Sizes, name: str, steps: int) -> None:
    """Steps of a preset, captured, with the raw metrics of each as a line; red if any is not finite."""
    import torch

    trainer, batches = make_trainer(data, name, size, capture=True)
    bad = 0
    with (out / "steps.jsonl").open("a") as lines:
        for number in range(steps):
            start = time.perf_counter()
            metrics = trainer.step(next(batches)).metrics
            values = dict(zip(trainer.names, metrics.tolist(), strict=True))
            bad += not torch.isfinite(metrics).all().item()
            is_graph = getattr(trainer._advance, "_graph", None) is not None
            row = {"preset": name, "step": number, "ms": round(1e3 * (time.perf_counter() - start), 3)}
            print(json.dumps(row | {"one_graph": is_graph} | values), file=lines, flush=True)
    if bad or (size.device == "cuda" and not is_graph):
        raise SystemExit(f"{name}: {bad} steps that are not finite, captured: {is_graph}")


def run_profile(data: Path, out: Path, size: Sizes) -> None:
    """Kernels of a few steps of the default recipe, not captured, by time and in order."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    trainer, batches = make_trainer(data, "baseline", size, capture=False)
    for _ in range(3):
        trainer.step(next(batches))
    kinds = [ProfilerActivity.CPU] if size.device == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds) as profiler:
        for _ in range(size.profiled):
            trainer.step(next(batches))
        if size.device == "cuda":
            torch.cuda.synchronize()
    key = "self_cpu_time_total" if size.device == "cpu" else "self_device_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=120, max_name_column_width=90)
    kernels = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    listed = "\n".join(f"{event.time_range.elapsed_us():9.1f} us  {event.name}" for event in kernels)
    (out / "profile.txt").write_text(f"{len(kernels)} kernels in {size.profiled} steps\n\n{table}\n\n{listed}\n")


def run_presets(data: Path, out: Path, size: Sizes) -> None:
    """A few captured steps of every preset; all are tried, whichever fails."""
    import traceback

    from jepa_fast.presets import PRESETS

    failed = []
    for name in PRESETS:
        try:
            run_steps(data, out, size, name, size.preset_steps)
        except (Exception, SystemExit):
            failed.append(name)
            traceback.print_exc()
    if failed:
        raise SystemExit(f"presets: {', '.join(failed)}")


def run_data(data: Path, out: Path, size: Sizes) -> None:
    """Trajectories for the stages that train."""
    from jepa_fast.generate import generate

    generate(data, trajectories=size.trajectories, splits=("train",), workers=1)


STAGES: dict[str, Callable[[Path, Path, Sizes], None]] = {
    "data": run_data,
    "steps": lambda data, out, size: run_steps(data, out, size, "baseline", size.steps),
    "profile": run_profile,
    "presets": run_presets,
}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="three minutes: build, steps, profile, the target")
    parser.add_argument("--part", type=int, default=0, choices=(0, 1, 2), help="of two calls; 0 is both")
    parser.add_argument("--seconds", type=int, help="in all, 340 by default, 175 with --quick, 680 without --part")
    parser.add_argument("--rehearse", action="store_true", help="small, and without a GPU")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    if options.seconds is None:
        options.seconds = 175 if options.quick else 340 if options.part else 680
    return options


def main() -> None:
    """Run all stages, or in a process of its own one of them."""
    options = options_of()
    if options.stage is not None:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        STAGES[options.stage](options.data, options.out, sizes(options.rehearse))
        return
    sys.exit(run_all(options))


if __name__ == "__main__":
    main()
