"""Crops, differences and the depthwise convolution of windows, forward and backward: ours against indexing PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.window import crop, depthwise, difference

# A batch of the default recipe: windows of 10 x 10 pixels in 65 x 65, grown by the first block, over one base image.
WINDOWS, SIDE, IMAGE, CHANNELS, MARGIN = 544, 16, 65, 16, 3


def indexed(base: Tensor, corners: Tensor, groups: Tensor) -> Tensor:
    """Windows by advanced indexing of the padded base."""
    padded = F.pad(base, (0, 0, MARGIN, MARGIN, MARGIN, MARGIN))
    rows, columns = (corners[:, axis, None] + torch.arange(SIDE, device=base.device) for axis in (0, 1))
    return padded[groups[:, None, None], rows[:, :, None], columns[:, None, :]]


def ours(base: Tensor, values: Tensor, weight: Tensor, corners: Tensor, groups: Tensor) -> Tensor:
    margin, size = (MARGIN, MARGIN), (SIDE, SIDE)
    convolved = depthwise(values, weight, margin, crop(base, corners, groups, margin, size))
    return difference(convolved, base, corners, groups, margin)


def plain(base: Tensor, values: Tensor, weight: Tensor, corners: Tensor, groups: Tensor) -> Tensor:
    convolved = F.conv2d(values.permute(0, 3, 1, 2), weight, padding=MARGIN, groups=CHANNELS).permute(0, 2, 3, 1)
    windows = indexed(base, corners, groups)
    on_image = indexed(torch.ones_like(base), corners, groups)
    return (convolved + windows - windows) * on_image


@pytest.mark.parametrize("candidate", ["jepa_fast", "indexing", "indexing, compiled"])
def bench_window(benchmark, device: str, candidate: str) -> None:
    benchmark.group = f"crop, depthwise, difference [{WINDOWS}, {SIDE}, {SIDE}, {CHANNELS}]"
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, IMAGE, IMAGE, CHANNELS, generator=generator).to(device).requires_grad_()
    values = torch.randn(WINDOWS, SIDE, SIDE, CHANNELS, generator=generator).to(device).requires_grad_()
    weight = torch.randn(CHANNELS, 1, 7, 7, generator=generator).to(device).requires_grad_()
    corners = torch.randint(0, IMAGE - SIDE, (WINDOWS, 2), generator=generator).to(device)
    inputs = base, values, weight, corners, torch.zeros(WINDOWS, dtype=torch.int64, device=device)
    leaves = inputs[:3]
    function = ours if candidate == "jepa_fast" else plain
    if candidate.endswith("compiled"):
        function = torch.compile(function, dynamic=False)
    torch.testing.assert_close(function(*inputs), plain(*inputs), rtol=1e-4, atol=1e-4)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*inputs).sum().backward()

    benchmark.pedantic(step, rounds=3, warmup_rounds=1)
