"""The predictor's dropout masks of a batch of 32: the compiled hash against the same in PyTorch, and torch.compile."""

import pytest
import torch

from jepa_fast.kernels.dropout import SITE_PREDICTOR, dropout_mask, dropout_mask_reference

SHAPE, RATE = (32, 16, 512), 0.1
CANDIDATES = {
    "jepa_fast": dropout_mask,
    "eager": dropout_mask_reference,
    "compiled": torch.compile(dropout_mask_reference, dynamic=False),
}


@pytest.mark.parametrize("candidate", CANDIDATES)
# The compiler warns of its own deprecated calls.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def bench_dropout(benchmark, device: str, candidate: str) -> None:
    benchmark.group = f"dropout mask {SHAPE}"
    clock = torch.tensor([3, 5, 0], device=device)
    draw = CANDIDATES[candidate]
    assert torch.equal(
        draw(SHAPE, RATE, clock, SITE_PREDICTOR), dropout_mask_reference(SHAPE, RATE, clock, SITE_PREDICTOR)
    )
    benchmark(draw, SHAPE, RATE, clock, SITE_PREDICTOR)
