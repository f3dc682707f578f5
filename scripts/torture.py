"""Kill commands again and again, start them anew each time, and compare their end with that of commands left alone.

    python scripts/torture.py                 # 20 kills of a run, a few minutes; exit status 1 if a bit differs

A training run is killed with SIGKILL at random moments before its first checkpoint; then, saving after every step,
after random numbers of steps: in a step, in the middle of writing a checkpoint or a line of metrics, at the end of a
stage, of an epoch. Beside it a second process is started on its folder. Packing and converting a data set are killed at
random moments of their course. Nothing may be lost, and of two processes on a folder one at most may work: the other
says why it leaves.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa_fast import cli
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint
from jepa_fast.engine.record import read_metrics, read_spectra
from jepa_fast.errors import RunError
from jepa_fast.generate import generate
from jepa_fast.runs import CONFIG

ROOT = Path(__file__).resolve().parent.parent
TRAJECTORIES, BATCH = 96, 4
# Of what is packed and converted.
PACKED, CONVERTED = 2000, 400
# A start survives at most so many steps, and then so long.
MOST_STEPS, LONGEST_S = 10, 0.1


@dataclass(frozen=True)
class Arguments:
    """Kill and resume a small run, and compare it with one that was left alone."""

    kills: int = 20
    """How often a run is killed once it has a checkpoint; a fourth as often before, and each of the other commands."""
    steps: int = 200
    """Of the run; the second of its two stages begins half-way, an epoch has 24 steps."""
    seed: int = 0
    """Of the moments."""


def start(*flags: str) -> subprocess.Popen[bytes]:
    """Training, saving after every step."""
    return command("jepa_fast.train", "--checkpoint-minutes", "0", *flags)


def command(module: str, *flags: str) -> subprocess.Popen[bytes]:
    """A command, on one thread, as a user starts it."""
    words = [sys.executable, "-m", module, *flags]
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a run.

    Raises:
        RunError: it failed.
    """
    _, error = process.communicate()
    if process.returncode != 0:
        raise RunError(f"a command failed: {error.decode().strip().splitlines()[-1]}")


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


def kill_early(run: Path, flags: list[str], kills: int, moments: random.Random) -> None:
    """Kill a run `kills` times at moments before its first checkpoint, from its first import on."""
    began = time.monotonic()
    process = start("--out", str(run), *flags)
    while newest_step(run) < 0 and process.poll() is None:
        time.sleep(0.005)
    start_s = time.monotonic() - began
    process.kill()
    process.communicate()
    for kill in range(kills):
        shutil.rmtree(checkpoint_folder(run), ignore_errors=True)
        process = start("--resume" if (run / CONFIG).exists() else "--out", str(run), *flags)
        time.sleep(moments.uniform(0, start_s))
        process.kill()
        process.communicate()
        print(f"early kill {kill + 1}: {'a run' if (run / CONFIG).exists() else 'no run yet'}", flush=True)
    shutil.rmtree(checkpoint_folder(run), ignore_errors=True)


def intrude(run: Path, process: subprocess.Popen[bytes]) -> list[str]:
    """Start a second process on the folder of a run at work; what is wrong with how it leaves.

    Raises:
        RunError: the run has ended by then.
    """
    # Held meanwhile: it could be done before the second one has imported all it needs.
    process.send_signal(signal.SIGSTOP)
    if process.poll() is not None:
        raise RunError("the run ended before a second process could be started: give it more --steps")
    second = start("--resume", str(run))
    _, error = second.communicate()
    process.send_signal(signal.SIGCONT)
    said = (error.decode().strip().splitlines() or [""])[-1]
    is_told = second.returncode == 2 and ": in use by process " in said
    print(f"a second process: {said}", flush=True)
    return [] if is_told else [f"a second process ended with status {second.returncode}: {said}"]


def torture_writer(
    module: str, flags: list[str], folders: tuple[Path, Path], kills: int, moments: random.Random
) -> list[str]:
    """Kill what writes --out FOLDER `kills` times at random moments of its course; what differs at its end."""
    whole, killed = folders
    began = time.monotonic()
    finish(command(module, *flags, "--out", str(whole)))
    course_s = time.monotonic() - began
    for kill in range(kills):
        process = command(module, *flags, "--out", str(killed))
        time.sleep(moments.uniform(0, course_s))
        process.kill()
        process.communicate()
        print(f"{module}, kill {kill + 1}: {len(list(killed.rglob('*')))} files", flush=True)
    # Two at once, which may come one after the other: one works, or finds the work done.
    two = [command(module, *flags, "--out", str(killed)) for _ in range(2)]
    said = [process.communicate()[1].decode() for process in two]
    wrong = [
        one.strip().splitlines()[-1]
        for process, one in zip(two, said, strict=True)
        if process.returncode != 0 and ": in use by process " not in one
    ]
    if all(process.returncode != 0 for process in two):
        wrong.append("neither of two packers worked")
    ours, theirs = ({path.relative_to(one): path.read_bytes() for path in files(one)} for one in (killed, whole))
    return wrong + [f"{module}: {path}" for path in {*ours, *theirs} if ours.get(path) != theirs.get(path)]


def files(folder: Path) -> list[Path]:
    """All files in it."""
    return [path for path in folder.rglob("*") if path.is_file()]


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
        fewer = max(1, arguments.kills // 4)
        kill_early(killed, flags, fewer, moments)
        process, found = start("--resume", str(killed)), []
        for kill in range(arguments.kills):
            step = kill_at_random(process, killed, moments)
            print(f"kill {kill + 1}: newest checkpoint is of step {step}", flush=True)
            process = start("--resume", str(killed))
        while newest_step(killed) <= step and process.poll() is None:
            time.sleep(0.005)
        found += intrude(killed, process)
        finish(process)
        found += differences(load_checkpoint(killed), load_checkpoint(whole), "checkpoint")
        found += differences(lines(killed), lines(whole), "metrics")
        litter = [path.name for path in checkpoint_folder(killed).iterdir() if path.suffix != ".pt"]
        litter += [path.name for path in killed.glob(".*")]
        packed = ["--splits", "train", "--trajectories", str(PACKED), "--workers", "2"]
        packs = Path(name, "packed"), Path(name, "packed again")
        found += torture_writer("jepa_fast.generate", packed, packs, fewer, moments)
        draw = np.random.default_rng(arguments.seed)
        np.save(Path(name, "states.npy"), draw.integers(0, 256, (CONVERTED, 8, 1, 32, 32), dtype=np.uint8))
        np.save(Path(name, "actions.npy"), draw.standard_normal((CONVERTED, 7, 2)).astype(np.float32))
        arrays = ["--states", str(Path(name, "states.npy")), "--actions", str(Path(name, "actions.npy"))]
        converted = Path(name, "converted"), Path(name, "converted again")
        found += torture_writer("jepa_fast.convert", [*arrays, "--workers", "2"], converted, fewer, moments)
    if found or litter:
        raise RunError(f"after {arguments.kills} kills something differs: {', '.join(found + litter)}")
    print(f"A run killed {arguments.kills + fewer} times, packing and converting killed {fewer} times each,")
    print("ended with the bits of those left alone, and second processes left with a reason.")


if __name__ == "__main__":
    cli.run(main, Arguments, "Kill and resume a run again and again.")
