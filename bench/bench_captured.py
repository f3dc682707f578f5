"""The target: the trainer's step, bf16, compiled and captured, at batch 128, beside the published loop and a tuned one.

    python -m bench.bench_captured

Each ends with a JSON line, also in the file JEPA_FAST_BENCH_LINES: median and best milliseconds of a step on one batch
that is on the device, and how many steps were timed. `published` is float32 and eager, `compiled` the same model
batched over time, the wall once, bf16, channels last, torch.compile, fused Adam.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from bench.conftest import device_clock
from bench.step_contenders import DEVICE, Plain, Published, first_batch, packed_split
from jepa_fast.backends import choose_kernels
from jepa_fast.config import RunConfig
from jepa_fast.data.batches import Batch
from jepa_fast.data.host import group_bases
from jepa_fast.data.shards import Split
from jepa_fast.engine.step import Trainer
from jepa_fast.presets import explorejepa_repo

WARM_UPS = 6  # compile, capture and the first replays
BATCH = 128


class Compiled(Plain):
    """The tuned baseline, under bf16 autocast."""

    def __init__(self, split: Split, batch: Batch) -> None:
        super().__init__(split, batch)
        compiled = torch.compile(self.energy, dynamic=False)

        def forward() -> tuple[torch.Tensor, ...]:
            with torch.autocast(DEVICE, torch.bfloat16):
                return compiled()

        self.forward = forward


def ours(split: Split, batch: Batch) -> Callable[[], object]:
    """The step of a run with `--amp bf16`, as it is by default on a GPU."""
    recipe, is_gpu = explorejepa_repo(), DEVICE == "cuda"
    config = RunConfig(
        preset="explorejepa_repo", recipe=recipe, seed=0, steps=100_000, batch_size=len(batch.indices),
        amp="bf16" if is_gpu else "off", compile=is_gpu, device=DEVICE, data=".", loader="host",
        kernels=choose_kernels("auto", DEVICE, recipe.model.dim), sparse=True, capture=is_gpu,
    )  # fmt: skip
    trainer = Trainer(config, split.spec, group_bases(split, torch.device(DEVICE)))
    return lambda: trainer.step(batch)


CONTENDERS: dict[str, tuple[int, Callable[[Split, Batch], Callable[[], object]]]] = {
    "ours_captured": (200, ours),
    "compiled": (20, lambda split, batch: Compiled(split, batch).step),
    "published": (5, lambda split, batch: Published(split, batch).step),
}


def measure(step: Callable[[], object], rounds: int, warm_ups: int) -> list[float]:
    """Milliseconds of each of `rounds` steps, after some that are left out."""
    for _ in range(warm_ups):
        step()
    taken = []
    for _ in range(rounds):
        start = device_clock()
        step()
        taken.append(1e3 * (device_clock() - start))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="two steps of each, of a batch of 8")
    rehearse = parser.parse_args().rehearse
    torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    with tempfile.TemporaryDirectory() as folder:
        split = packed_split(Path(folder))
        batch = first_batch(split, 8 if rehearse else BATCH)
        for candidate, (rounds, make) in CONTENDERS.items():
            if rehearse and candidate == "compiled":
                continue
            taken = measure(make(split, batch), 2 if rehearse else rounds, 1 if rehearse else WARM_UPS)
            line = json.dumps(
                {
                    "benchmark": "step", "candidate": candidate, "batch": len(batch.indices), "device": name,
                    "torch": torch.__version__, "median_ms": round(statistics.median(taken), 4),
                    "best_ms": round(min(taken), 4), "steps": len(taken),
                }
            )  # fmt: skip
            print(line, flush=True)
            if place := os.environ.get("JEPA_FAST_BENCH_LINES"):
                with Path(place).open("a") as lines:
                    print(line, file=lines)


if __name__ == "__main__":
    main()
