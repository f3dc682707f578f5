"""Kill a training run again and again, resume it each time, and compare its end with that of a run left alone.

    python scripts/torture.py                 # 20 kills, a few minutes; exit status 1 if a bit differs

The run saves after every step and is killed with SIGKILL after a random number of steps, at a random moment: in a step,
in the middle of writing a checkpoint or a line of metrics, at the end of a stage, of an epoch.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jepa_fast import cli
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint
from jepa_fast.engine.record import read_metrics, read_spectra
from jepa_fast.errors import RunError
from jepa_fast.generate import generate

ROOT = Path(__file__).resolve().parent.parent
TRAJECTORIES, BATCH = 96, 4
# A start survives at most so many steps, and then so long.
MOST_STEPS, LONGEST_S = 10, 0.1


@dataclass(frozen=True)
class Arguments:
    """Kill and resume a small run, and compare it with one that was left alone."""

    kills: int = 20
    """How often."""
    steps: int = 200
    """Of the run; the second of its two stages begins half-way, an epoch has 24 steps."""
    seed: int = 0
    """Of the moments."""


def start(*flags: str) -> subprocess.Popen[bytes]:
    """The command, on one thread, as a user starts it."""
    words = [sys.executable, "-m", "jepa_fast.train", "--checkpoint-minutes", "0", *flags]
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a run.

    Raises:
        RunError: it failed.
    """
    _, error = process.communicate()
    if process.returncode != 0:
        raise RunError(f"training failed: {error.decode().strip().splitlines()[-1]}")


def newest_step(folder: Path) -> int:
    """Of the checkpoints in a run folder; -1 where there is none."""
    return max((int(path.stem[5:]) for path in checkpoint_folder(folder).glob("step-*.pt")), default=-1)


def kill_at_random(process: subprocess.Popen[bytes], folder: Path, moments: random.Random) -> int:
    """Kill a run some steps and some moments after its start; returns the newest step on disk.

    Raises:
        RunError: it ended before.
    """
    target = max(newest_step(folder), 0) + moments.randint(1, MOST_STEPS)
    while newest_step(folder) < target:
        if process.poll() is not None:
            finish(process)
            raise RunError("the run ended before it was killed often enough: give it more --steps")
        time.sleep(0.005)
    time.sleep(moments.uniform(0, LONGEST_S))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return newest_step(folder)


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Names of what differs between two nested states, bit for bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [name for key in ours for name in differences(ours[key], theirs[key], f"{where}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [name for i in range(len(ours)) for name in differences(ours[i], theirs[i], f"{where}.{i}")]
    same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    return [] if same else [where]


def lines(folder: Path) -> list[list[dict[str, Any]]]:
    """All a run wrote down, without what time it took."""
    timeless = [{k: v for k, v in line.items() if k != "trajectories_per_s"} for line in read_metrics(folder)]
    return [timeless, read_spectra(folder)]


def main(arguments: Arguments) -> None:
    """Run, kill, resume, compare.

    Raises:
        RunError: a bit differs.
    """
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        data, whole, killed = (Path(name, part) for part in ("data", "whole", "killed"))
        generate(data, trajectories=TRAJECTORIES, splits=("train",), workers=1)
        flags = ["--data", str(data), "--data.batch-size", str(BATCH), "--steps", str(arguments.steps)]
        finish(start("--out", str(whole), *flags))
        process = start("--out", str(killed), *flags)
        for kill in range(arguments.kills):
            step = kill_at_random(process, killed, moments)
            print(f"kill {kill + 1}: newest checkpoint is of step {step}", flush=True)
            process = start("--resume", str(killed))
        finish(process)
        found = differences(load_checkpoint(killed), load_checkpoint(whole), "checkpoint")
        found += differences(lines(killed), lines(whole), "metrics")
        litter = [path.name for path in checkpoint_folder(killed).iterdir() if path.suffix != ".pt"]
    if found or litter:
        raise RunError(f"a run killed {arguments.kills} times differs: {', '.join(found + litter)}")
    print(f"A run killed {arguments.kills} times ended with the bits of one left alone.")


if __name__ == "__main__":
    cli.run(main, Arguments, "Kill and resume a run again and again.")
