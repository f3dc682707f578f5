"""The gates of a batch of 32, forward and backward: the op against its layers, eager and compiled."""

import pytest
import torch

from jepa_fast.kernels.feature_gate import GateWeights, feature_gate, feature_gate_reference

# Those of gated_features.
BATCH, STEPS, BORDER, WALL = 32, 16, 16, 64
CANDIDATES = {
    "jepa_fast": feature_gate,
    "eager": feature_gate_reference,
    "compiled": torch.compile(feature_gate_reference, dynamic=False),
}


@pytest.mark.parametrize("candidate", CANDIDATES)
# The compiler warns of its own deprecated calls.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def bench_feature_gate(benchmark, device: str, candidate: str) -> None:
    benchmark.group = f"feature_gate [{BATCH}, {STEPS}]"
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    positions, layout, actions = normal(BATCH, STEPS, 2), normal(BATCH, 2, 2, 2), 0.1 * normal(BATCH, STEPS, 2)
    weights = normal(BORDER, 3), normal(1, BORDER), normal(WALL, 5), 0.1 * normal(WALL, WALL), normal(1, WALL)
    leaves = [part.requires_grad_() for part in (positions, *weights)]
    function = CANDIDATES[candidate]

    def chances() -> tuple[torch.Tensor, torch.Tensor]:
        return function(leaves[0], layout, actions, GateWeights(*leaves[1:]), 4.0, 20.0)

    truth = feature_gate_reference(leaves[0], layout, actions, GateWeights(*leaves[1:]), 4.0, 20.0)
    for one, other in zip(chances(), truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)

    def step() -> None:
        stay, move = chances()
        torch.autograd.grad((stay + move).sum(), leaves)

    benchmark.pedantic(step, rounds=20, warmup_rounds=3)
