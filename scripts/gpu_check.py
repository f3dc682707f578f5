"""Build, steps, profile, benchmarks, presets, tests, sanitizer on a GPU: whatever fails, the rest runs and is written.

Each stage is a process of its own with a limit of its own. It ends "green" or "red", and if red says why: its exit
status, that it was killed at its limit, that its program is missing, or that no time was left to start it. Two calls of
six minutes, `--part 1` and `--part 2`, cover all of them; `--quick` takes three minutes.

OUTDIR gets summary.json (device, versions, stages), log.txt (what stages printed), steps.jsonl (raw metrics of every
step), profile.txt (kernels of six steps, and their times), benchmarks.jsonl (a line each, as it ends), tests.xml and
sanitizer.txt. Exit status: 0 all green, 1 something red, 2 there is no device.

`--rehearse` runs the same stages where there is no GPU: steps, presets and the target on a CUDA device that does
nothing (tests/fake_cuda), vicreg's benchmark once on the CPU, the sanitizer as a stub that runs what it is given, and
without limits, for a machine may have other things to do. Tests of a GPU are collected and skipped, other benchmarks
collected. With a CUDA build of torch and nvcc all that is missing then is the hardware.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# Of each op that CUDA has kernels for, then of whole steps; before the first of the others the sanitizer has its turn.
BENCHES = ("vicreg", "dwconv_norm", "convnext_block", "rollout")
OTHER_BENCHES = ("window", "hidden", "step", "loop")
FEWEST_S = 5  # that a stage is started with
GRACE_S = 10  # for pytest to write its report after an interrupt
SANITIZER = "compute-sanitizer"
# Runs what it is given.
STUB = """#!/bin/sh
echo "a stand-in for compute-sanitizer: $*"
while [ "${1#--}" != "$1" ]; do shift 2; done
exec "$@"
"""


class Stage(NamedTuple):
    """A command, how long it may take, and the part of two calls that it is in; 0 is both."""

    name: str
    part: int
    limit_s: int
    command: list[str]
    log: str = "log.txt"
    is_quick: bool = False
    environment: Mapping[str, str] = MappingProxyType({})


def stages(out: Path, folder: Path, rehearse: bool) -> list[Stage]:
    """All stages in order: what would be missed the most comes first. `folder` is for what none of them leaves."""
    python = [sys.executable]
    on_device = [*python, "-m", *(["tests.fake_cuda.standing_in"] if rehearse else [])]
    data = str(folder / "data")

    def inner(run: list[str], name: str) -> list[str]:
        return [*run, "scripts.gpu_steps", name, data, str(out)]

    found = [
        Stage("build", 0, 120, [*python, "setup.py", "--quiet", "build_ext", "--inplace"], is_quick=True),
        Stage("data", 0, 40, inner([*python, "-m"], "data"), is_quick=True),
        Stage("steps", 1, 170, inner(on_device, "steps"), is_quick=True),
        Stage("bench captured", 1, 150, [*on_device, "bench.bench_captured"], is_quick=True),
        Stage("presets", 1, 120, inner(on_device, "presets")),
    ]
    pytest = [*python, "-m", "pytest", "-W", "default", "-p", "no:cacheprovider"]
    parallel = ["-n", "12"] if _has("xdist") and not rehearse else []
    # Not all of tests/, which would need packages that tests of a GPU do not.
    sources = {path: path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    files = [
        str(path.relative_to(ROOT))
        for path, text in sources.items()
        if ("mark.gpu" in text or '"cuda"' in text) and "fake_cuda" not in path.parts
    ]
    # A line for each test as it ends: where the limit comes first the log still has most of them.
    tests = [*pytest, "-v", *parallel, f"--junitxml={out / 'tests.xml'}", "--durations=10", "-m", "gpu"]
    tests += files
    # Twelve processes share sixteen cores.
    few = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    found.append(Stage("tests", 2, 180, tests, environment=few))
    timed = ["--benchmark-max-time=0.2", "--benchmark-warmup=on", "--benchmark-warmup-iterations=10"]

    def benches(names: tuple[str, ...]) -> list[Stage]:
        options = dict.fromkeys(names, timed)
        if rehearse:
            options = {name: ["--benchmark-disable" if name == "vicreg" else "--collect-only"] for name in names}
        return [
            Stage(f"bench {name}", 2, 50, [*pytest, "-q", *options[name], f"bench/bench_{name}.py"]) for name in names
        ]

    found += benches(BENCHES)
    sanitizer = _sanitizer(folder, rehearse)
    for tool in ("memcheck", "racecheck"):
        check = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        small = [*pytest, "-v", "-m", "gpu", "-k", "small_shapes", "tests/kernels", "tests/gpu"]
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found.append(Stage(tool, 2, 60, [*check, *small], log="sanitizer.txt", environment=uncached))
    return found + benches(OTHER_BENCHES)


def _has(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def _sanitizer(folder: Path, rehearse: bool) -> str:
    """Its place, its name where it is not to be found, or a stand-in's."""
    if rehearse:
        stub = folder / SANITIZER
        stub.write_text(STUB)
        stub.chmod(0o755)
        return str(stub)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [
        os.environ.get("PATH", ""),
        *(str(Path(home, part)) for home in homes if home for part in ("bin", SANITIZER)),
    ]
    return shutil.which(SANITIZER, path=os.pathsep.join(places)) or SANITIZER


def describe(rehearse: bool) -> dict[str, Any]:
    """The machine and what is installed, found out in another process; "error" where even that goes wrong."""
    run = [sys.executable, "-m", *(["tests.fake_cuda.standing_in"] if rehearse else [])]
    try:
        done = subprocess.run(
            [*run, "scripts.gpu_steps", "describe", ".", "."], cwd=ROOT, capture_output=True, text=True,
            timeout=None if rehearse else 60, check=False,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": "no answer from torch within a minute"}
    except ValueError:
        return {"error": (done.stderr.strip() or "nothing was printed").splitlines()[-1]}
    return found


def run_all(options: argparse.Namespace) -> int:
    """Run the stages that are asked for, one after another; the exit status."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    last = time.monotonic() + options.seconds
    summary: dict[str, Any] = describe(options.rehearse) | {"stages": []}

    def write() -> None:
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    write()
    if "device" not in summary:
        print(f"gpu_check: {summary.get('error', 'torch sees no CUDA device')}")
        return 2
    # For this device alone: an install for others compiles all architectures.
    flags = f"-DCMAKE_CUDA_ARCHITECTURES={summary['capability']} {os.environ.get('CMAKE_ARGS', '')}"
    environment = {"JEPA_FAST_BENCH_LINES": str(out / "benchmarks.jsonl"), "CMAKE_ARGS": flags.strip()}
    environment |= {} if options.rehearse else {"JEPA_FAST_CUDA": "ON"}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages(out, Path(folder), options.rehearse):
            wanted = stage.is_quick if options.quick else stage.part in (0, options.part) or options.part == 0
            if not wanted:
                continue
            record: dict[str, Any] = {"stage": stage.name, "state": "running"}
            summary["stages"].append(record)
            write()
            limit_s = None if options.rehearse else min(stage.limit_s, last - time.monotonic())
            start = time.monotonic()
            why = run_one(stage, out, limit_s, os.environ | environment)
            record |= {"state": "red" if why else "green", "seconds": round(time.monotonic() - start, 1)}
            record |= {"why": why} if why else {}
            print(f"gpu_check: {stage.name}: {record['state']} after {record['seconds']:.0f} s", why or "", flush=True)
            write()
    return 1 if any(stage["state"] == "red" for stage in summary["stages"]) else 0


def run_one(stage: Stage, out: Path, limit_s: float | None, environment: dict[str, str]) -> str | None:
    """Run a stage; why it is red, or None. After its limit none of its processes is left."""
    if limit_s is not None and limit_s < FEWEST_S:
        return "no time left to start it"
    with (out / stage.log).open("a") as log:
        print(f"== {stage.name}: {' '.join(stage.command)}", file=log, flush=True)
        try:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env={**environment, **stage.environment}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            print(error, file=log)
            return str(error)
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            # pytest writes its report when it is interrupted.
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return f"killed after {limit_s:.0f} s"
        finally:
            # Workers and compilers that it started hold the device as long as they live.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"exit status {status}" if status else None


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="three minutes: build, steps, profile, the target")
    parser.add_argument("--part", type=int, default=0, choices=(0, 1, 2), help="of two calls; 0 is both")
    parser.add_argument("--seconds", type=int, help="in all, 340 by default, 170 with --quick, 680 without --part")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, and without limits")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    if options.seconds is None:
        options.seconds = 170 if options.quick else 340 if options.part else 680
    return options


if __name__ == "__main__":
    sys.exit(run_all(options_of()))
