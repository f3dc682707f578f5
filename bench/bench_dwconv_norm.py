"""Depthwise convolution and LayerNorm, forward, backward, both: the kernels against PyTorch, eager and compiled.

On a CPU the op is plain PyTorch and is called "reference"; the figures that matter are those of a GPU.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.block_contenders import (
    CONTENDERS,
    OURS,
    PASSES,
    SHAPES,
    Pass,
    add_floor,
    check,
    peak_mb,
    prepare,
)
from jepa_fast.kernels.dwconv_norm import dwconv_norm, dwconv_norm_reference
from scripts import triton_floors


def plain(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """As a plain model has it, on x [N, C, H, W]."""
    z = F.conv2d(x, weight, padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
    return F.layer_norm(z, z.shape[3:], gamma, beta)


def draw(channels: int, device: str) -> dict[str, Tensor]:
    return {
        "weight": torch.randn(channels, 1, 7, 7, device=device) / 7,
        "gamma": torch.rand(channels, device=device) + 0.5,
        "beta": torch.randn(channels, device=device),
    }


@pytest.mark.parametrize("candidate", CONTENDERS)
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_dwconv_norm(
    benchmark, report, device: str, shape: tuple[int, int, int, int], passes: Pass, candidate: str
) -> None:
    benchmark.group = f"dwconv_norm {passes} {list(shape)}"
    case = prepare(candidate, dwconv_norm, plain, shape, draw(shape[3], device), passes, device)
    if candidate == OURS:
        benchmark.extra_info["error"] = check(dwconv_norm, dwconv_norm_reference, case)
    benchmark.extra_info["peak_mb"] = peak_mb(case.run, device)
    benchmark.pedantic(case.run, rounds=10 if device == "cuda" else 3, warmup_rounds=2 if device == "cuda" else 1)
    forward, backward = (triton_floors.find_pass("dwconv_norm", name, shape[3]).activations for name in PASSES[:2])
    activations = {"forward": forward, "backward": backward, "both": forward + backward}[passes]
    report(activations * case.x.numel() * case.x.element_size())
    if candidate == OURS:
        add_floor(benchmark, "dwconv_norm", passes, case.x)
