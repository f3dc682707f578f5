"""A ConvNeXt block forward, backward and both: the kernels against PyTorch in both layouts and compiled.

On a CPU the compiled blocks, in float32, with the share of the processor's multiply-adds that they reach; without the
extension the op is plain PyTorch and is called "reference".
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.block_contenders import (
    CONTENDERS,
    ON_CUDA,
    OURS,
    PASSES,
    SHAPES,
    Pass,
    add_floor,
    check,
    peak_mb,
    prepare,
)
from jepa_fast.kernels.convnext_block import convnext_block, convnext_block_reference
from jepa_fast.kernels.dispatch import why_no_compiled_blocks
from scripts import triton_floors


def plain(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor) -> Tensor:
    """The block of the plain model on x [N, C, H, W]."""
    z = F.conv2d(x, weight, padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
    u = F.layer_norm(z, z.shape[3:], gamma, beta)
    return x + F.linear(F.gelu(F.linear(u, expand)), project).permute(0, 3, 1, 2)


def draw(channels: int, device: str) -> dict[str, Tensor]:
    return {
        "weight": torch.randn(channels, 1, 7, 7, device=device) / 7,
        "gamma": torch.rand(channels, device=device) + 0.5,
        "beta": torch.randn(channels, device=device),
        "expand": torch.randn(4 * channels, channels, device=device) / channels**0.5,
        "project": torch.randn(channels, 4 * channels, device=device) / (2 * channels**0.5),
    }


# On a CPU as many FLOPs for each number of channels.
SHAPES_HERE = SHAPES if ON_CUDA else [(32, 65, 65, 16), (16, 65, 65, 32), (6, 65, 65, 64)]
IS_COMPILED = not ON_CUDA and why_no_compiled_blocks(16, torch.empty(0)) is None


@pytest.mark.parametrize("candidate", CONTENDERS)
@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("shape", SHAPES_HERE, ids=str)
def bench_convnext_block(
    benchmark, report, report_flops, device: str, shape: tuple[int, int, int, int], passes: Pass, candidate: str
) -> None:
    benchmark.group = f"convnext_block {passes} {list(shape)}"
    case = prepare(candidate, convnext_block, plain, shape, draw(shape[3], device), passes, device)
    if candidate == OURS:
        benchmark.extra_info["error"] = check(convnext_block, convnext_block_reference, case)
    benchmark.extra_info["peak_mb"] = peak_mb(case.run, device)
    benchmark.pedantic(case.run, rounds=10 if device == "cuda" else 3, warmup_rounds=2 if device == "cuda" else 1)
    forward, backward = (triton_floors.find_pass("convnext_block", name, shape[3]).activations for name in PASSES[:2])
    activations = {"forward": forward, "backward": backward, "both": forward + backward}[passes]
    report(activations * case.x.numel() * case.x.element_size())
    if candidate == OURS and IS_COMPILED:
        benchmark.extra_info |= {"candidate": "jepa_fast", "is_ours": True}
        per_element = {"forward": 98 + 16 * shape[3], "backward": 196 + 40 * shape[3]}
        per_element["both"] = per_element["forward"] + per_element["backward"]
        report_flops(per_element[passes] * case.x.numel())
    if candidate == OURS:
        add_floor(benchmark, "convnext_block", passes, case.x)
