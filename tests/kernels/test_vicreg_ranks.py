from pathlib import Path

import pytest
import torch

from jepa_fast.kernels.vicreg import vicreg
from tests.forked import Command

ROWS = 101
CASES = [
    {"dtype": dtype, "target": target, "divisor": divisor}
    for dtype, target, divisor in [
        (torch.float64, True, "dim"),
        (torch.float64, False, "pairs"),
        (torch.float32, True, "dim"),
    ]
]
CUTS = {2: [0, 70, ROWS], 4: [0, 2, 40, 77, ROWS]}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}


@pytest.fixture(scope="module")
def job():
    generator = torch.Generator().manual_seed(0)
    # Rows that drift: processes have means of their own.
    drift = torch.linspace(-3, 3, ROWS, dtype=torch.float64)[:, None]
    pair = torch.randn(2, 3, ROWS, 7, generator=generator, dtype=torch.float64) * 0.5 + drift
    pair = pair * torch.linspace(0.1, 1, 7, dtype=torch.float64)
    return {
        torch.float64: pair, torch.float32: pair.float(), "cuts": CUTS, "cases": CASES,
        "weights": torch.tensor([25.0, 15.0, 2.0]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def results(job, tmp_path_factory):
    """What each of four processes computed, in groups of two and four."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(job, folder / "job.pt")
    program = Path(__file__).with_name("vicreg_rank.py")
    processes = [Command(program, folder, rank, 4) for rank in range(4)]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(4)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("name", "ranks"), [("pair", 2), ("all", 4)])
def test_processes_give_the_energy_and_the_gradients_of_one(job, results, name, ranks, case):
    x, target = (state.clone().requires_grad_() for state in job[case["dtype"]])
    terms = vicreg(x, target if case["target"] else None, divisor=case["divisor"])
    (terms * job["weights"]).sum().backward()
    assert terms[1] > 0
    tolerance = TOLERANCES[case["dtype"]]
    of_ranks = [results[rank][name, str(case)] for rank in range(ranks)]
    for theirs, _, _ in of_ranks:
        assert torch.equal(theirs, of_ranks[0][0])
        torch.testing.assert_close(theirs, terms.detach(), rtol=tolerance, atol=0)
    gradients = torch.cat([gradient for _, gradient, _ in of_ranks], dim=1)
    assert (gradients - x.grad).norm() <= 10 * tolerance * x.grad.norm()
    if case["target"]:
        gradients = torch.cat([gradient for _, _, gradient in of_ranks], dim=1)
        assert (gradients - target.grad).norm() <= 10 * tolerance * target.grad.norm()
