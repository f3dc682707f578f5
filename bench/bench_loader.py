"""Loaders: trajectories delivered per second, ours beside the usual PyTorch way, each in its own process.

Everything lies in the file cache. The consumer only asks for the next batch. The clock is the candidate's own: seconds
for a batch of 128 trajectories, over rounds of about ROUND_S seconds. Before, every loader's batches are compared. The
PyTorch way knows whole frames alone: it is measured once and stands beside each of our encodings.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bench.loader_contenders import BATCH, CANDIDATES, CPU, TUNED_MALLOC, Items
from jepa_fast.data.batches import expand_frames
from jepa_fast.data.host import gather
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.packing import pack
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms.source import TwoRoomsSource

ROOT = Path(__file__).resolve().parent.parent
TRAJECTORIES = 2560
WITHOUT_DALI = find_spec("nvidia") is None or find_spec("nvidia.dali") is None
ROUNDS, ROUND_S = 5, 0.2
ENCODINGS = {"full frames": "dense", "wall once": "static", "windows": "window"}


class Clock:
    """A clock that shows the time a candidate says it took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def go_on(self, seconds: float) -> None:
        self.seconds += seconds


CLOCK = Clock()


class Contender:
    """A candidate at work in another process."""

    def __init__(self, folder: Path, candidate: str, encoding: str):
        tuned = TUNED_MALLOC if "tuned malloc" in candidate else {}
        command = [sys.executable, "-W", "ignore", "-m", "bench.loader_contenders", str(folder), candidate, encoding]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | tuned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.batch_bytes = json.loads(self._answer())["batch_bytes"]
        self.batches = 2
        # The first batches touch the pages and are left out; as many are taken as fill a round.
        while (seconds := self.run(self.batches)) < ROUND_S:
            self.batches = max(2 * self.batches, int(self.batches * ROUND_S / max(seconds, 1e-9)))

    def run(self, batches: int) -> float:
        """Seconds that so many batches take."""
        return float(self._ask(str(batches)))

    def finish(self) -> dict[str, int]:
        """End the process; the memory that it needed beyond its libraries."""
        memory: dict[str, int] = json.loads(self._ask(""))
        self.process.communicate()
        return memory

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


class Measured(NamedTuple):
    """Seconds of a batch in each round, bytes of a batch, and memory."""

    seconds: list[float]
    batch_bytes: int
    memory: dict[str, int]


@cache
def measure(folder: Path, candidate: str, encoding: str) -> Measured:
    """Run a candidate in its own process."""
    contender = Contender(folder, candidate, encoding)
    seconds = [contender.run(contender.batches) / contender.batches for _ in range(ROUNDS)]
    return Measured(seconds, contender.batch_bytes, contender.finish())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same trajectories in all layouts."""
    folder = tmp_path_factory.mktemp("loaders")
    source = TwoRoomsSource("train", TRAJECTORIES, seed=0)
    for encoding in ENCODINGS.values():
        pack(source, folder / encoding, encoding, workers=2)
    split = open_split(folder / "window")
    shape = (TRAJECTORIES, split.spec.frames, 2, split.spec.height, split.spec.width)
    files = {
        kind: np.lib.format.open_memmap(folder / f"states-{kind}.npy", "w+", np.dtype(kind), shape)
        for kind in ("float32", "uint8")
    }
    actions = []
    for low in range(0, TRAJECTORIES, BATCH):
        batch = gather(split, np.arange(low, low + BATCH))
        frames = expand_frames(batch, split.spec).numpy()
        files["float32"][low : low + BATCH] = frames
        files["uint8"][low : low + BATCH] = np.rint(frames / split.spec.scale)
        actions.append(batch.actions.numpy())
    np.save(folder / "actions.npy", np.concatenate(actions))
    return folder


@pytest.fixture(scope="module")
def checked(folder):
    """All loaders deliver the same frames and actions; compared once, before anything is timed."""
    items = {kind: Items(folder, kind) for kind in ("float32", "uint8")}
    for encoding in ENCODINGS.values():
        split = open_split(folder / encoding)
        orders = list(Sampler(TRAJECTORIES, BATCH, seed=1).steps(0, 3))
        for name in ("host", "resident") if WITHOUT_DALI else ("host", "resident", "dali"):
            for batch, indices in zip(open_loader(name, split, CPU).batches(orders), orders, strict=True):
                frames = expand_frames(batch, split.spec)
                for row, index in enumerate(indices[:16]):
                    states, actions = items["float32"][index]
                    assert torch.equal(frames[row], states)
                    assert torch.equal(items["uint8"][index][0].float() * split.spec.scale, states)
                    assert torch.equal(batch.actions[row], actions)


@pytest.fixture(scope="module")
def memcpy_gb_s(folder):
    """GB per second that one thread copies in blocks of a batch, by encoding."""
    speeds = {}
    for what, encoding in ENCODINGS.items():
        measured = measure(folder, "memcpy", encoding)
        speeds[what] = measured.batch_bytes / median(measured.seconds) / 1e9
    return speeds


@pytest.mark.parametrize("candidate", [name for name in CANDIDATES if name != "memcpy"])
@pytest.mark.parametrize("what", ENCODINGS)
@pytest.mark.benchmark(timer=CLOCK, warmup=False)
def bench_loader(benchmark, folder, checked, memcpy_gb_s, what, candidate):
    benchmark.group = f"loader, {what}, batch {BATCH}"
    if candidate == "ours, dali" and WITHOUT_DALI:
        pytest.skip("DALI is not installed")
    measured = measure(folder, candidate, ENCODINGS[what if candidate.startswith("ours") else "full frames"])
    seconds = iter(measured.seconds)
    benchmark.pedantic(lambda: CLOCK.go_on(next(seconds)), rounds=ROUNDS)
    if benchmark.stats is None:
        return
    gb_s = measured.batch_bytes / benchmark.stats.stats.median / 1e9
    benchmark.extra_info |= {
        "trajectories_per_s": round(BATCH / benchmark.stats.stats.median),
        "gb_s": round(gb_s, 2),
        "percent_of_memcpy": round(100 * gb_s / memcpy_gb_s[what], 1),
        "memcpy_gb_s": round(memcpy_gb_s[what], 2),
        "batch_bytes": measured.batch_bytes,
        **measured.memory,
    }
