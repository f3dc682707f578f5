"""Multiply-adds from registers to registers: what this processor can do at most, in float32, on all threads."""

import pytest
import torch

from jepa_fast.kernels import extension

STEPS = 2_000_000


@pytest.mark.skipif(extension.load() is not None, reason="jepa_fast is installed without its compiled extension")
def bench_peak(benchmark) -> None:
    benchmark.group = "multiply-adds"
    benchmark.extra_info["is_ours"] = True
    flops = benchmark.pedantic(torch.ops.jepa_fast.multiply_adds, (STEPS,), rounds=20, warmup_rounds=2)
    benchmark.extra_info["gflops"] = round(flops / benchmark.stats.stats.median / 1e9, 1)
