"""Rollouts that start from an encoding again every so many steps."""

import pytest
import torch

from jepa_fast.config import JEPAConfig, VICRegConfig
from jepa_fast.errors import InputError
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.jepa import build_jepa
from jepa_fast.objectives.vicreg import VICReg
from tests.objective_terms import VICREG, by_name, energy, flat

WEIGHTS = torch.tensor([25.0, 25.0, 1.0], dtype=torch.float64)


def drawn(dropout=0.0, batch=3, steps=6):
    torch.manual_seed(0)
    model = build_jepa(JEPAConfig(channels=2, blocks=1, dim=8, dropout=dropout)).double()
    return model, torch.randn(batch, steps + 1, 8).double(), torch.randn(batch, steps, 2).double()


def run(model, encoded, actions, clock=None, **options):
    objective = VICReg(VICRegConfig(**options)).bind(model)
    loss, predicted = objective(encoded, actions, new_clock() if clock is None else clock, by_name(VICREG, WEIGHTS))
    return flat(loss), predicted


@pytest.mark.parametrize("horizon", [1, 2, 3, 6])
def test_each_prediction_starts_from_the_encoding_before_its_rollout(horizon):
    model, encoded, actions = drawn()
    terms, predicted = run(model.eval(), encoded, actions, horizon=horizon)
    for b in range(3):
        for t in range(6):
            state = encoded[b : b + 1, t - t % horizon]
            for past in range(t - t % horizon, t + 1):
                state = model.predictor.step(state, actions[b : b + 1, past], None)
            torch.testing.assert_close(predicted[b, t], state[0].detach(), rtol=1e-12, atol=1e-12)
    expected = energy(predicted, encoded[:, 1:], WEIGHTS, VICRegConfig())
    torch.testing.assert_close(terms.total, expected.total, rtol=1e-12, atol=1e-12)


def test_the_longest_horizon_is_the_rollout_from_frame_0_dropout_included():
    model, encoded, actions = drawn(dropout=0.3)
    for ours, theirs in zip(run(model, encoded, actions, horizon=6), run(model, encoded, actions), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 3, None])
def test_a_process_draws_the_masks_of_its_rows(horizon):
    """The second half of a batch, on a process of its own, is predicted as in the whole batch."""
    model, encoded, actions = drawn(dropout=0.5, batch=4)
    whole = run(model, encoded, actions, torch.tensor([3, 5, 0]), horizon=horizon)[1]
    half = run(model, encoded[2:], actions[2:], torch.tensor([3, 5, 2]), horizon=horizon)[1]
    torch.testing.assert_close(half, whole[2:], rtol=1e-12, atol=1e-12)


def test_encodings_in_the_middle_learn_from_what_is_predicted_from_them():
    model, encoded, actions = drawn()
    encoded.requires_grad_()
    for horizon, learns in ((None, False), (2, True)):
        total = run(model.eval(), encoded, actions, horizon=horizon, targets="stop_gradient")[0].total
        (gradient,) = torch.autograd.grad(total, encoded)
        assert bool((gradient[:, 4].abs().sum(dim=1) > 0).all()) == learns
        assert (gradient[:, 0].abs().sum(dim=1) > 0).all()


def test_horizons_that_do_not_fit_are_refused():
    model, encoded, actions = drawn()
    with pytest.raises(ValueError, match=r"objective\.horizon: got 4, expected a divisor of 6 steps"):
        run(model, encoded, actions, horizon=4)
    with pytest.raises(InputError, match=r"objective\.horizon: got 0, expected at least 1 step, or None"):
        VICRegConfig(horizon=0)
