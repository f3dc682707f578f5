"""The terms that make latents follow actions: their definitions, gradients, and one process against several."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import jepa_fast
import jepa_fast as jf
from jepa_fast.config import DynamicsConfig, GlimpseConfig, Recipe, Stage
from jepa_fast.errors import InputError
from jepa_fast.models.registry import build_model
from jepa_fast.objectives.dynamics import Dynamics
from jepa_fast.objectives.sigreg import directions, sigreg
from tests.forked import Command
from tests.objectives.dynamics_terms import CONFIG, bound, compute

ROOT = Path(jepa_fast.__file__).parents[1]


def draw(batch=8, steps=4, dim=5, actions=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(batch, steps, dim), 0.6 * normal(batch, steps + 1, dim) + 0.3, normal(batch, steps, actions)


def reference_sigreg(latents, projections):
    """The definition in NumPy: the trapezoidal rule from -3 to 3, one direction at a time."""
    knots = np.linspace(-3, 3, 33)
    values = []
    for direction in projections.T:
        phi = np.exp(1j * np.outer(latents @ direction, knots)).mean(axis=0)
        values.append(np.trapezoid(abs(phi - np.exp(-(knots**2) / 2)) ** 2 * np.exp(-(knots**2) / 2), knots))
    return np.mean(values)


def test_terms_are_those_of_the_definition():
    predicted, encoded, actions = draw()
    one = bound(5, 2)
    clock = torch.tensor([3, 5, 0])
    terms = one.terms(predicted, encoded, actions, clock)
    p, z, a = (side.numpy() for side in (predicted, encoded, actions))
    flat = z.reshape(-1, 5)
    cov = np.cov(flat.T)
    hidden, project = one.inverse.expand, one.inverse.project
    pairs = torch.cat([encoded[:, :-1], encoded[:, 1:]], dim=-1)
    read = project(torch.nn.functional.gelu(hidden(pairs))).detach().numpy()
    expected = {
        "invariance": ((p - z[:, 1:]) ** 2).mean(),
        "variance": np.maximum(0, 1 - np.sqrt(flat.var(axis=0, ddof=1) + 1e-4)).mean(),
        "covariance": (cov**2 - np.diag(np.diag(cov) ** 2)).sum() / 5,
        "sigreg": reference_sigreg(flat, directions(5, 8, clock).double().numpy()),
        "inverse": ((read - a) ** 2).mean(),
        "similarity": ((z[:, 1:] - z[:, :-1]) ** 2).mean(),
    }
    assert set(terms) == set(expected)
    for name, wanted in expected.items():
        assert terms[name].item() == pytest.approx(wanted, rel=1e-10), name


def test_gradients_are_those_of_finite_differences():
    predicted, encoded, actions = draw(3, 2, 3)
    one, clock = bound(3, 2), torch.tensor([0, 1, 0])
    torch.autograd.gradcheck(
        lambda *sides: tuple(one.terms(*sides, actions, clock).values()),
        (predicted.requires_grad_(), encoded.requires_grad_()),
    )


def test_sigreg_is_least_for_an_isotropic_gaussian_and_large_for_what_has_collapsed():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    across = directions(6, 64, torch.tensor([0, 0, 0]))
    least = sigreg(normal, across)
    assert least < 2e-3
    for worse in (0.5 * normal, normal * torch.tensor([1, 1, 1, 1, 1, 0.0]), torch.zeros_like(normal), normal.sign()):
        assert sigreg(worse, across) > 3 * least


def test_directions_are_even_of_length_1_and_change_with_every_step():
    clock = torch.tensor([7, 3, 0])
    found = directions(16, 4096, clock)
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=0), torch.ones(4096))
    torch.testing.assert_close(found @ found.T / 4096, torch.eye(16) / 16, atol=0.01, rtol=0)
    assert torch.equal(found, directions(16, 4096, torch.tensor([7, 3, 40])))
    assert not torch.equal(found, directions(16, 4096, torch.tensor([7, 4, 0])))


def test_two_and_four_processes_give_the_terms_and_the_gradients_of_one(tmp_path):
    torch.save(draw(), tmp_path / "job.pt")
    running = [Command("-m", "tests.objectives.dynamics_rank", tmp_path, rank) for rank in range(4)]
    for process in running:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    terms, *sides, weights = compute(*draw())
    for count in (2, 4):
        found = [torch.load(tmp_path / f"rank{rank}of{count}.pt") for rank in range(count)]
        for theirs, *_ in found:
            for name, term in terms.items():
                torch.testing.assert_close(theirs[name], term, rtol=1e-12, atol=0)
        for index, side in enumerate(sides, start=1):
            torch.testing.assert_close(torch.cat([rank[index] for rank in found]), side, rtol=1e-10, atol=1e-15)
        for name, gradient in weights.items():
            torch.testing.assert_close(sum(rank[3][name] for rank in found), gradient, rtol=1e-9, atol=1e-14)


def test_predictions_of_a_horizon_are_rollouts_from_every_so_manyth_frame():
    torch.manual_seed(0)
    built = build_model(GlimpseConfig(channels=4, blocks=1, dim=6, hidden=8)).eval()
    frames, actions = 0.09 * torch.rand(2, 9, 2, 65, 65), torch.randn(2, 8, 2)
    encoded = built.encode(frames)
    objective = Dynamics(DynamicsConfig(horizon=4))
    objective.attach(6, 2)
    predicted = objective.bind(built).predictions(encoded, actions)
    for start in (0, 4):
        alone = built.predict(built.frame(encoded, start), actions[:, start : start + 4])
        torch.testing.assert_close(predicted[:, start : start + 4], alone)


def test_it_trains_any_jepa_and_its_network_learns_with_it(tmp_path, two_rooms):
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 65 * 65, 8))
    model = jf.JEPA(encoder=encoder, predictor=jf.MLPPredictor(8, 2), objective=jf.Dynamics())
    before = model.objective.inverse.expand.weight.clone()
    run = jf.fit(model, two_rooms, steps=4, batch_size=8, device="cpu", out=tmp_path / "run")
    assert set(DynamicsConfig().terms(None)) <= set(run.metrics[-1])
    assert not torch.equal(before, model.objective.inverse.expand.weight)


def test_a_predictor_that_does_not_say_its_size_is_refused():
    with pytest.raises(InputError, match="predictor: got 'dim None, action_dim None'"):
        jf.JEPA(encoder=torch.nn.Flatten(), predictor=torch.nn.Identity(), objective=jf.Dynamics())


def test_settings_are_checked():
    with pytest.raises(InputError, match=r"objective\.sigreg: got 1\.0, expected 0 without"):
        DynamicsConfig(sigreg=1.0)
    with pytest.raises(InputError, match=r"objective\.sigreg"):
        Recipe(model=GlimpseConfig(), objective=DynamicsConfig(), stages=(Stage(1, {"sigreg": 1.0}),))
    assert replace(CONFIG, projections=4).terms(None) == DynamicsConfig.weighted
    with pytest.raises(InputError, match=r"objective\.kind: got 'vicreg', expected dynamics"):
        Recipe(model=GlimpseConfig())
