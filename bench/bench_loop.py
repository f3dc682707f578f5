"""The training loop beside the bare step that it runs: what loading, logging, the collapse watch and the bar cost.

Both in one process, a step of one, a step of the other, from the same weights; a round is the mean of 20 such steps,
two log steps and one look of the collapse watch among them, as in a run of 400 steps. Checkpoints are minutes apart and
left out. The bare step must have the loss of the loop's before anything is timed.

    python -m pytest bench/bench_loop.py            # in the record of make bench: bare ms / loop ms
    python -m bench.bench_loop                      # percent, from medians of each kind of step
    python -m bench.bench_loop --cpu-time           # the same where other jobs hold the cores meanwhile
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.conftest import device_clock
from bench.step_contenders import packed_split
from jepa_fast.backends import choose_kernels
from jepa_fast.config import LoopOptions, RunConfig
from jepa_fast.data.batches import Batch
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import Split, open_split
from jepa_fast.engine.loop import training
from jepa_fast.engine.pace import LOG_EVERY, look_is_due
from jepa_fast.engine.step import Trainer
from jepa_fast.presets import baseline
from jepa_fast.runs import create_run

BATCH, STEPS = 32, 400
ROUND, ROUNDS = 20, 4
# The loop's clock begins after its first steps, as every timing does.
WARM_UPS = 20


class ReplayedClock:
    """The clock of times that were measured already, for pytest-benchmark to keep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.times: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now

    def replay(self) -> None:
        """Let the next of `times` pass."""
        self.now += next(self.times)


CLOCK = ReplayedClock()


def configuration(folder: Path, device: str) -> RunConfig:
    recipe = baseline()
    kernels = choose_kernels("auto", device, recipe.model.dim)  # type: ignore[arg-type]
    return RunConfig(
        preset="baseline", recipe=recipe, seed=0, steps=STEPS, batch_size=BATCH, amp="off", compile=False,
        device=device, data=str(folder), loader="auto", kernels=kernels, sparse=True, capture=device == "cuda",
    )  # fmt: skip


def trainer_for(config: RunConfig, split: Split) -> Trainer:
    return Trainer(config, split.spec, group_bases(split, torch.device(config.device)))


def first_batch(config: RunConfig, split: Split) -> Batch:
    return gather(split, next(Sampler(split.count, BATCH, config.seed).batches(0)))


class BareStep:
    """Forward, backward, clip and Adam on one batch on the device, and nothing else."""

    def __init__(self, config: RunConfig, split: Split) -> None:
        # Its own trainer gives it the same weights and ops; none of its step is used.
        device = torch.device(config.device)
        trainer = trainer_for(config, split)
        self.forward, self.parameters = trainer.forward, list(trainer.model.parameters())
        self.batch = first_batch(config, split).to(device)
        weights = torch.tensor([25.0, 25.0, 1.0], device=device).unbind()
        self.weights = dict(zip(("invariance", "variance", "covariance"), weights, strict=True))
        self.optimizer = torch.optim.Adam(self.parameters, lr=3e-3, weight_decay=3e-4, fused=True)

    def __call__(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        terms, _ = self.forward(self.batch, self.weights)
        terms.total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 0.5)
        self.optimizer.step()
        return terms.total.detach()


def take_turns(folder: Path, device: str, clock: Callable[[], float] = device_clock) -> dict[str, list[float]]:
    """Seconds by `clock` of every step of both, but for the first WARM_UPS of each."""
    packed_split(folder / "data" / "train")
    config = configuration(folder / "data", device)
    split = open_split(folder / "data" / "train")
    bare = BareStep(config, split)
    create_run(folder / "run", config)
    loop = training(config, folder / "run", LoopOptions())
    taken: dict[str, list[float]] = {"ours_loop": [], "bare step": []}
    expected = trainer_for(replace(config, capture=False), split).step(first_batch(config, split)).metrics[0]
    assert float(bare()) == pytest.approx(float(expected), rel=1e-6)
    for number in range(WARM_UPS + ROUND * ROUNDS):
        # Each is first every other time: what the one before leaves in the caches is nobody's alone.
        for name in list(taken)[:: 1 if number % 2 else -1]:
            start = clock()
            next(loop) if name == "ours_loop" else bare()
            if number >= WARM_UPS:
                taken[name].append(clock() - start)
    loop.close()
    return taken


def overhead(taken: dict[str, list[float]], device: str) -> float:
    """What the loop adds, relative to the bare step beside it: medians of each kind of step, by how often it comes."""
    every = LOG_EVERY[device]
    kinds: dict[tuple[bool, bool], list[float]] = {}
    for number, (loop, bare) in enumerate(zip(taken["ours_loop"], taken["bare step"], strict=True), WARM_UPS + 1):
        logs = number % every == 0
        kinds.setdefault((logs, logs and look_is_due(number, STEPS, every)), []).append(loop / bare)
    steps = len(taken["ours_loop"])
    return sum(statistics.median(ratios) * len(ratios) / steps for ratios in kinds.values()) - 1


@pytest.fixture(scope="module")
def taken(tmp_path_factory, device):
    return take_turns(tmp_path_factory.mktemp("loop"), device)


@pytest.mark.parametrize("candidate", ["ours_loop", "bare step"])
@pytest.mark.benchmark(group=f"loop, batch {BATCH}", timer=CLOCK)
def bench_loop(benchmark, taken, device, candidate):
    times = taken[candidate]
    CLOCK.times = iter([statistics.fmean(times[first : first + ROUND]) for first in range(0, len(times), ROUND)])
    benchmark.extra_info |= {"batch": BATCH, "overhead_percent": round(100 * overhead(taken, device), 2)}
    benchmark.pedantic(CLOCK.replay, rounds=ROUNDS)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Of all threads, the loader's too.
    clock, unit = (time.process_time, "ms of CPU time") if "--cpu-time" in sys.argv else (device_clock, "ms")
    with tempfile.TemporaryDirectory() as name:
        taken = take_turns(Path(name), device, clock)
    bare_ms = 1e3 * statistics.median(taken["bare step"])
    print(f"{device}, {torch.get_num_threads()} threads, batch {BATCH}: bare step {bare_ms:.1f} {unit} (median)")
    print(f"the loop adds {100 * overhead(taken, device):+.2f}%")


if __name__ == "__main__":
    main()
