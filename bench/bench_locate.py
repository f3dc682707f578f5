"""Positions of a batch of 32 found in windows, forward and backward: the op against its layers, eager and compiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.locate import locate
from jepa_fast.models.softargmax import soft_argmax_of_windows

# The windows of gated_pixels: 32 trajectories of 17 frames.
WINDOWS, SIDE, FRAME, CHANNELS = 544, 10, (65, 65), 8


def layers(images: Tensor, corners: Tensor, look: Tensor, spread: Tensor, log_temperature: Tensor) -> Tensor:
    logits = F.conv_transpose2d(F.relu(F.conv2d(images[:, None], look, padding=2)), spread)[:, 0]
    return soft_argmax_of_windows(logits, corners - 2, FRAME, log_temperature.exp())


def ours(images: Tensor, corners: Tensor, look: Tensor, spread: Tensor, log_temperature: Tensor) -> Tensor:
    return locate(images, corners, look, spread, log_temperature, FRAME)


@pytest.mark.parametrize("candidate", ["jepa_fast", "eager", "compiled"])
# The compiler warns of its own deprecated calls.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def bench_locate(benchmark, device: str, candidate: str) -> None:
    benchmark.group = f"locate {WINDOWS} windows"
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(WINDOWS, SIDE, SIDE, generator=generator).to(device)
    corners = torch.randint(0, FRAME[0] - SIDE, (WINDOWS, 2), generator=generator).to(device)
    shape = CHANNELS, 1, 3, 3
    look, spread = (torch.rand(shape, generator=generator).to(device).requires_grad_() for _ in range(2))
    leaves = look, spread, torch.zeros((), device=device, requires_grad=True)
    function = {"jepa_fast": ours, "eager": layers, "compiled": torch.compile(layers, dynamic=False)}[candidate]
    torch.testing.assert_close(
        function(images, corners, *leaves), layers(images, corners, *leaves), rtol=1e-4, atol=1e-3
    )

    def step() -> None:
        torch.autograd.grad(function(images, corners, *leaves).sum(), leaves)

    benchmark.pedantic(step, rounds=20, warmup_rounds=3)
