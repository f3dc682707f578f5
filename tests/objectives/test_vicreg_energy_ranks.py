"""Two processes with half of the trajectories each have the energy and the gradients of one with all of them."""

from pathlib import Path

import pytest
import torch

import jepa_fast
from jepa_fast.config import GatedConvNeXtConfig, GatedFeaturesConfig, GatedPixelsConfig, InfoNCEConfig, VICRegConfig
from jepa_fast.models.gated import Encoded
from jepa_fast.models.registry import build_model
from tests.forked import Command
from tests.objective_terms import contrast, energy, mixture

ROOT = Path(jepa_fast.__file__).parents[1]
CASES = {
    "default": VICRegConfig(),
    "each, both": VICRegConfig(sides="both", steps="each"),
    "first, pairs": VICRegConfig(steps="first", covariance_divisor="pairs"),
    "first, stop-gradient": VICRegConfig(steps="first", sides="both", targets="stop_gradient"),
    "ema": VICRegConfig(targets="ema", sides="both"),
}
CONTRAST = InfoNCEConfig(temperature=0.5)
# The models of the one-step task, and what of a room their encodings carry.
ONE_STEP = {
    "features": (GatedFeaturesConfig(dim=4, wall_hidden=6), (2, 2, 2)),
    "pixels": (GatedPixelsConfig(dim=4, frame=9, lattice=3, hidden=6), (9, 9)),
    "apart": (GatedConvNeXtConfig(dim=4, frame=9, channels=3, hidden=6), (4,)),
}
WEIGHTS = torch.tensor([25.0, 15.0, 2.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def states():
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None, None]
    return 0.4 * torch.randn(3, 6, 4, 5, generator=generator, dtype=torch.float64) + drift


@pytest.fixture(scope="module")
def one_step():
    """By model: its configuration, encodings of 6 trajectories, actions, and the weights of the task."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = torch.tensor([2.0, 5.0, 3.0, 7.0], dtype=torch.float64)
    return {
        name: (config, Encoded(5 * draw(6, 5, 4), draw(6, *room)), draw(6, 4, 2), weights)
        for name, (config, room) in ONE_STEP.items()
    }


@pytest.fixture(scope="module")
def results(states, one_step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    job = {"states": states, "cases": CASES, "weights": WEIGHTS, "one_step": one_step}
    job["contrast"] = CONTRAST
    torch.save(job, folder / "job.pt")
    processes = [Command("-m", "tests.objectives.energy_rank", folder, rank) for rank in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["plain", "fused"])
def test_processes_give_the_energy_and_the_gradients_of_one(states, results, name, case):
    predicted, encoded, ema = (side.clone().requires_grad_() for side in states)
    config = CASES[case]
    terms = energy(predicted, encoded, WEIGHTS, config, ema.detach() if config.targets == "ema" else None)
    terms.total.backward()
    assert terms.variance > 0
    for theirs, _, _ in (rank[name, case] for rank in results):
        torch.testing.assert_close(theirs, torch.stack(terms).detach(), rtol=1e-12, atol=0)
    for side, index in ((predicted, 1), (encoded, 2)):
        parts = [rank[name, case][index] for rank in results]
        if side.grad is None:
            assert parts == [None, None]
        else:
            torch.testing.assert_close(torch.cat(parts), side.grad, rtol=1e-10, atol=1e-15)


def test_processes_give_the_contrast_and_the_gradients_of_one(states, results):
    sides = [side.clone().requires_grad_() for side in states[:2]]
    terms = contrast(*sides, WEIGHTS, CONTRAST)
    terms.total.backward()
    for theirs, _, _ in (rank["contrast"] for rank in results):
        torch.testing.assert_close(theirs, torch.stack(terms).detach(), rtol=1e-12, atol=0)
    for index, side in enumerate(sides, start=1):
        parts = [rank["contrast"][index] for rank in results]
        torch.testing.assert_close(torch.cat(parts), side.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ONE_STEP)
def test_processes_give_the_one_step_terms_and_gradients_of_one(one_step, results, name):
    config, encoded, actions, weights = one_step[name]
    torch.manual_seed(0)
    model = build_model(config).double()
    terms, _ = mixture(model)(encoded, actions, weights)
    terms.total.backward()
    ours = dict(model.named_parameters())
    for theirs, _ in (rank["one step", name] for rank in results):
        torch.testing.assert_close(theirs, torch.stack(terms).detach(), rtol=1e-10, atol=0)
    for key, parameter in ours.items():
        parts = [rank["one step", name][1][key] for rank in results]
        if parameter.grad is None:
            # The convolutions: here encodings come from nowhere.
            assert parts == [None, None]
        else:
            torch.testing.assert_close(sum(parts), parameter.grad, rtol=1e-9, atol=1e-12)
    assert ours["predictor.action.weight"].grad.abs().max() > 0
