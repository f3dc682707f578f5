"""The model model against an independent NumPy computation of the same formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from jepa_fast.config import JEPAConfig
from jepa_fast.errors import InputError
from jepa_fast.models.jepa import build_jepa
from tests.models.numpy_jepa import branch_states, predictor_step

SMALL = JEPAConfig(channels=3, blocks=2, dim=10, dropout=0.0)


def scrambled(config, seed=0):
    """A float64 model with every parameter random, so that no default of ones or zeros hides a mistake."""
    torch.manual_seed(seed)
    model = build_jepa(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def parameters_under(model, prefix):
    return {k.removeprefix(prefix): v.numpy() for k, v in model.state_dict().items() if k.startswith(prefix)}


@pytest.mark.parametrize("residual", ["sum", "state"])
@pytest.mark.parametrize("activation", ["after_norm", "before_norm"])
@pytest.mark.parametrize("size", [(13, 13), (12, 17)])
def test_forward_equals_the_formulas_in_numpy(residual, activation, size):
    model = scrambled(replace(SMALL, residual=residual, activation=activation))
    frames, actions = torch.rand(2, 3, 2, *size, dtype=torch.float64), torch.randn(2, 2, 2, dtype=torch.float64)
    predicted, encoded = model(frames, actions)

    agent, wall = parameters_under(model, "encoder.agent."), parameters_under(model, "encoder.wall.")
    predictor = parameters_under(model, "predictor.")
    for b in range(2):
        states = [branch_states(f[0], agent) + branch_states(f[1], wall) for f in frames[b].numpy()]
        np.testing.assert_allclose(encoded[b].detach().numpy(), states[1:], rtol=1e-10, atol=1e-10)
        state = states[0]
        for t in range(2):
            state = predictor_step(state, actions[b, t].numpy(), predictor, residual, activation)
            np.testing.assert_allclose(predicted[b, t].detach().numpy(), state, rtol=1e-10, atol=1e-10)


def test_default_world_has_293344_parameters():
    model = build_jepa()
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    assert sizes == {"encoder": 159_712, "predictor": 133_632, "objective": 0}
    assert sum(sizes.values()) == 293_344


def test_rollout_is_the_encoding_of_frame_0_followed_by_the_predictions():
    model = scrambled(SMALL)
    frames, actions = torch.rand(2, 4, 2, 13, 13).double(), torch.randn(2, 3, 2).double()
    states = model.rollout(frames[:, 0], actions)
    predicted, _ = model(frames, actions)
    torch.testing.assert_close(states[:, 1:], predicted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states[:, 0], model(frames.flip(1), actions)[1][:, -1])


def test_predictions_ignore_later_frames():
    model = scrambled(SMALL)
    frames, actions = torch.rand(2, 4, 2, 13, 13).double(), torch.randn(2, 3, 2).double()
    changed = frames.clone()
    changed[:, 1:] = torch.rand_like(changed[:, 1:])
    assert torch.equal(model(frames, actions)[0], model(changed, actions)[0])


def test_a_world_of_kernels_is_the_same_function_of_the_same_parameters():
    plain = scrambled(replace(SMALL, dropout=0.3)).train()
    fused = build_jepa(plain.config, kernels="triton").double()
    fused.load_state_dict(plain.state_dict())
    frames, actions = torch.rand(2, 4, 2, 13, 13).double(), torch.randn(2, 3, 2).double()
    for ours, theirs in zip(fused(frames, actions), plain(frames, actions), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_every_parameter_gets_a_gradient_through_rollout_and_targets():
    model = scrambled(SMALL)
    predicted, encoded = model(torch.rand(2, 3, 2, 13, 13).double(), torch.randn(2, 2, 2).double())
    (predicted * torch.randn_like(predicted) + encoded * torch.randn_like(encoded)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_batch_of_one_equals_its_row_in_a_larger_batch():
    model = scrambled(SMALL)
    frames, actions = torch.rand(3, 3, 2, 13, 13).double(), torch.randn(3, 2, 2).double()
    for together, alone in zip(model(frames, actions), model(frames[1:2], actions[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-12)


def test_no_permutation_copies_the_activations():
    """Channels last all the way: the only full-size copies are those that an operator makes for its own output."""
    copies = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.Tensor.contiguous, torch.Tensor.clone, torch.Tensor.copy_):
                copies.append(func)
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and func is torch.conv2d:
                assert out.is_contiguous(memory_format=torch.channels_last)
            return out

    with Watch():
        build_jepa()(torch.rand(1, 2, 2, 65, 65), torch.rand(1, 1, 2))
    assert copies == []


@pytest.mark.parametrize(
    ("frames", "actions", "message"),
    [
        ((2, 3, 13, 13), (2, 2, 2), r"frames: got shape \(2, 3, 13, 13\), expected \[B, T, 2, H, W\]"),
        ((2, 3, 3, 13, 13), (2, 2, 2), "frames: got shape"),
        ((2, 3, 2, 13, 13), (2, 3, 2), r"actions: got shape \(2, 3, 2\), expected \(2, 2, 2\)"),
        ((2, 1, 2, 13, 13), (2, 0, 2), "actions: got 0 steps, expected at least 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(frames, actions, message):
    with pytest.raises(ValueError, match=message):
        build_jepa(SMALL)(torch.zeros(frames), torch.zeros(actions))


def test_rollout_refuses_a_sequence_of_frames():
    with pytest.raises(ValueError, match="first_frames: got shape"):
        build_jepa(SMALL).rollout(torch.zeros(2, 3, 2, 13, 13), torch.zeros(2, 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"channels": 0}, "model.channels"), ({"dropout": 1.0}, "model.dropout"), ({"residual": "none"}, "residual")],
)
def test_impossible_models_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        JEPAConfig(**settings)
