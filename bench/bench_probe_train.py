"""An epoch of the official probe on 2,048 trajectories: the compiled loop against PyTorch's Adam, eager."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jepa_fast.kernels.probe_train import join_probe, probe_train

COUNT, LENGTH, DIM, HIDDEN, BATCH, RATE = 2048, 17, 128, 256, 64, 5e-5


@pytest.mark.parametrize("candidate", ["jepa_fast", "eager"])
def bench_probe_train(benchmark, report_flops, candidate: str) -> None:
    benchmark.group = f"probe, {COUNT // BATCH} steps of {BATCH} trajectories"
    torch.manual_seed(0)
    latents, targets = torch.randn(COUNT, LENGTH, DIM), torch.randn(COUNT, LENGTH, 2)
    rows = torch.randperm(COUNT).view(-1, BATCH)

    def network() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))

    def eager() -> torch.Tensor:
        probe = network()
        optimizer = torch.optim.Adam(probe.parameters(), lr=RATE)
        for batch in rows:
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(probe(latents[batch]), targets[batch]).backward()
            optimizer.step()
        return join_probe(*(parameter.detach() for parameter in probe.parameters()))

    def compiled() -> torch.Tensor:
        parameters = join_probe(*(parameter.detach() for parameter in network().parameters()))
        state = torch.stack([parameters, torch.zeros_like(parameters), torch.zeros_like(parameters)])
        rates = torch.full((len(rows),), RATE, dtype=torch.float64)
        return probe_train(latents, targets, rows, None, rates, state, HIDDEN)[0]

    train = compiled if candidate == "jepa_fast" else eager
    torch.testing.assert_close(train(), eager(), rtol=1e-3, atol=1e-5)
    benchmark.pedantic(train, rounds=10 if candidate == "jepa_fast" else 3, warmup_rounds=1)
    if candidate == "jepa_fast":
        report_flops(COUNT * LENGTH * (4 * DIM + 12) * HIDDEN)
