"""The target: the trainer's step, bf16, compiled and captured, at batch 128, beside the published loop and a tuned one.

    python -m bench.bench_captured

Each ends with a JSON line, also in the file JEPA_FAST_BENCH_LINES: median and best milliseconds of a step on one batch
that is on the device, and how many steps were timed. `published` is float32 and eager, `compiled` the same model
batched over time, the wall once, bf16, channels last, torch.compile, fused Adam. One that fails stops no other.
"""

import json
import os
import statistics
import tempfile
import traceback
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
    "published": (5, lambda split, batch: Published(split, batch).step),
    "compiled": (20, lambda split, batch: Compiled(split, batch).step),
}


def measure(step: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each of `rounds` steps, after some that are left out."""
    for _ in range(WARM_UPS):
        step()
    taken = []
    for _ in range(rounds):
        start = device_clock()
        step()
        taken.append(1e3 * (device_clock() - start))
    return taken


def main() -> None:
    torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        split = packed_split(Path(folder))
        batch = first_batch(split, BATCH)
        for candidate, (rounds, make) in CONTENDERS.items():
            try:
                taken = measure(make(split, batch), rounds)
            except Exception:
                traceback.print_exc()
                failed.append(candidate)
                continue
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
    if failed:
        raise SystemExit(f"bench_captured: {', '.join(failed)}: an error, above")


if __name__ == "__main__":
    main()
