"""Depthwise convolution + LayerNorm forward, backward and both: the kernels against PyTorch in both layouts and compiled.

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


def builds(passes: Pass, channels: int) -> list[str]:
    forward = [f"dwconv_norm forward bf16 C={channels}"]
    backward = [
        f"dwconv_norm backward bf16 C={channels}",
        f"depthwise bf16 C={channels}",
        f"depthwise weight gradient bf16 C={channels}",
    ]
    return {"forward": forward, "backward": backward, "both": forward + backward}[passes]


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
    benchmark.pedantic(case.run, rounds=20 if device == "cuda" else 3, warmup_rounds=3 if device == "cuda" else 1)
    sizes = {"forward": 3, "backward": 7, "both": 10}
    report(sizes[passes] * case.x.numel() * case.x.element_size())
    if candidate == OURS:
        add_floor(benchmark, dict.fromkeys(builds(passes, shape[3]), case.x.numel()))
