"""Columns and likelihood of a batch of 32, forward and backward: the ops against the formulas, eager and compiled."""

import pytest
import torch
from torch import Tensor

from jepa_fast.kernels import gated

BATCH, STEPS, DIM, SPREAD = 32, 16, 128, 20.0


def both(columns, likelihood):
    def function(weight: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        return columns(weight, SPREAD), likelihood(*arguments).parts

    return function


def plain_likelihood(
    latents: Tensor, step: Tensor, log_stay: Tensor, log_move: Tensor, sigma: Tensor
) -> gated.Likelihood:
    return gated.gated_likelihood_reference(latents[:, :-1], step, log_stay, log_move, latents[:, 1:], sigma)


plain = both(gated.gated_columns_reference, plain_likelihood)
CANDIDATES = {
    "jepa_fast": both(gated.gated_columns, gated.gated_likelihood),
    "eager": plain,
    "compiled": torch.compile(plain, dynamic=False),
}


@pytest.mark.parametrize("candidate", CANDIDATES)
# The compiler warns of its own deprecated calls.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def bench_gated(benchmark, device: str, candidate: str) -> None:
    benchmark.group = f"gated [{BATCH}, {STEPS}, {DIM}]"
    generator = torch.Generator().manual_seed(0)
    shapes = (DIM, 2), (BATCH, STEPS + 1, DIM), (BATCH, STEPS, DIM), (BATCH, STEPS), (BATCH, STEPS)
    leaves = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    sigma = torch.tensor(10.0, device=device)
    function = CANDIDATES[candidate]
    for one, other in zip(function(*leaves, sigma), plain(*leaves, sigma), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def step() -> None:
        columns, parts = function(*leaves, sigma)
        torch.autograd.grad(columns.sum() + parts[0], leaves)

    benchmark.pedantic(step, rounds=20, warmup_rounds=3)
