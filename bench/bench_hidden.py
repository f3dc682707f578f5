"""The MLP of a block in pieces that stay in cache: `norm_mlp` against PyTorch, eager and compiled, both passes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.kernels.hidden import norm_mlp

# Pixels of a batch of the default recipe: 544 windows of 22 x 22.
PIXELS, EPS = 263_296, 1e-5


def ours(z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor) -> Tensor:
    return norm_mlp(z, gamma, beta, expand, project, EPS)


def plain(z: Tensor, gamma: Tensor, beta: Tensor, expand: Tensor, project: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(F.layer_norm(z, gamma.shape, gamma, beta, EPS), expand)), project)


@pytest.mark.parametrize("candidate", ["jepa_fast", "eager", "compiled"])
@pytest.mark.parametrize("channels", [16, 32])
def bench_norm_mlp(benchmark, device: str, channels: int, candidate: str) -> None:
    benchmark.group = f"norm_mlp [{PIXELS}, {channels}]"
    generator = torch.Generator().manual_seed(0)
    shapes = [(PIXELS, channels), (channels,), (channels,), (4 * channels, channels), (channels, 4 * channels)]
    leaves = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    function = {"jepa_fast": ours, "eager": plain, "compiled": torch.compile(plain, dynamic=False)}[candidate]
    torch.testing.assert_close(function(*leaves), plain(*leaves), rtol=1e-4, atol=1e-3)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).sum().backward()

    benchmark.pedantic(step, rounds=3, warmup_rounds=1)
