import pytest
import torch

from jepa_fast.kernels import rollout as op
from jepa_fast.kernels.triton import rollout as forward_module
from jepa_fast.kernels.triton import rollout_backward as backward_module
from jepa_fast.kernels.triton.rollout import rollout_forward
from jepa_fast.kernels.triton.rollout_backward import rollout_backward
from tests.kernels.rollout_cases import FORMS, draw

TOLERANCE = 2e-6


def run(forward, backward, case, dropout, state_residual, gelu_first):
    """Everything that an implementation of the op gives, forward and backward."""
    weights = list(case.weights)
    kept = forward(case.first, case.actions, case.clock, weights, dropout, state_residual, gelu_first, False, True)
    gradients = backward(
        case.gradient, case.first, case.actions, case.clock, weights, *kept, dropout, state_residual, gelu_first, True
    )
    return [*kept, *gradients]


def check(case, error, dropout=0.3, residual="sum", activation="after_norm"):
    options = dropout, residual == "state", activation == "before_norm"
    with torch.no_grad():
        ours = run(rollout_forward, rollout_backward, case, *options)
        exact = run(op._rollout_plain, op._rollout_backward_plain, case.to(torch.float64), *options)
    assert max(error(one, other) for one, other in zip(ours, exact, strict=True)) < TOLERANCE
    return ours


@pytest.fixture
def resident(monkeypatch):
    """The form for Hopper: the first matrix of a kernel stays for all steps."""
    plain = forward_module.configuration
    for module in (forward_module, backward_module):
        monkeypatch.setattr(module, "configuration", lambda *_: {**plain(*_), "RESIDENT": True, "CHUNK": 32})


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.7])
@pytest.mark.parametrize(("residual", "activation"), FORMS)
def test_all_forms_match_float64(residual, activation, dropout, error):
    check(draw(32, 3, 2), error, dropout, residual, activation)


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (17, 5), (8, 2)])
def test_odd_numbers_of_trajectories_and_steps_match_float64(batch, steps, error):
    check(draw(16, batch, steps), error)


@pytest.mark.parametrize(("residual", "activation"), FORMS)
def test_a_resident_matrix_matches_float64(resident, residual, activation, error):
    check(draw(32, 9, 2), error, 0.3, residual, activation)


def test_several_blocks_of_rows_per_program_match_float64(monkeypatch, error):
    monkeypatch.setattr(backward_module, "MOST_SUM_PROGRAMS", 2)
    check(draw(16, 13, 3), error)


def test_states_are_the_same_when_nothing_is_kept():
    case = draw(32, 9, 3)
    with torch.no_grad():
        arguments = (case.first, case.actions, case.clock, list(case.weights), 0.3, False, False, False)
        kept, lean = rollout_forward(*arguments, True), rollout_forward(*arguments, False)
    assert torch.equal(kept[0], lean[0])
    assert [tensor.numel() for tensor in lean[1:]] == [0, 0, 0]


@pytest.mark.parametrize("seed", [0, 2**40 + 3, 2**63 - 1])
@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_masks_are_those_of_the_dropout_module_bit_for_bit(seed, dropout):
    """A norm of weight zero and bias one leaves nothing but the mask in the input of the second matrix."""
    case = draw(16, 11, 3)
    weights = list(case.weights._replace(norm_weight=torch.zeros(64), norm_bias=torch.ones(64)))
    clock = torch.tensor([seed, 123_456, 2**31 - 5])
    with torch.no_grad():
        dropped = rollout_forward(case.first, case.actions, clock, weights, dropout, False, True, False, True)[2]
    assert torch.equal(dropped, op.dropout_mask((11, 3, 64), dropout, clock, op.SITE_PREDICTOR))


def test_no_trajectories_give_no_states_and_gradients_of_zero():
    with torch.no_grad():
        ours = run(rollout_forward, rollout_backward, draw(16, 0, 3), 0.3, False, False)
    assert ours[0].shape == (0, 3, 16)
    assert all(not tensor.any() for tensor in ours)
