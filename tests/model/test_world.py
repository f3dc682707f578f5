"""The world model against an independent NumPy computation of the same formulas."""

import math

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from jepa_fast.config import ModelConfig
from jepa_fast.errors import InputError
from jepa_fast.model.world import World

SMALL = ModelConfig(channels=3, blocks=2, dim=10, dropout=0.0)


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def branch_states(image, weights):
    """One image [H, W] through one branch, in plain loops over taps and cells."""
    height, width = image.shape
    x = image[..., None] * weights["stem.weight"].reshape(-1)  # [H, W, C]
    for block in range(SMALL.blocks):
        prefix = f"blocks.{block}."
        padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
        kernel = weights[prefix + "dwconv.weight"][:, 0]  # [C, 7, 7]
        z = sum(padded[i : i + height, j : j + width] * kernel[:, i, j] for i in range(7) for j in range(7))
        u = layer_norm(z, weights[prefix + "norm.weight"], weights[prefix + "norm.bias"])
        x = x + gelu(u @ weights[prefix + "expand.weight"].T) @ weights[prefix + "project.weight"].T
    pooled = np.empty((SMALL.channels, 6, 6))
    for i in range(6):
        for j in range(6):
            rows = slice(i * height // 6, -(-(i + 1) * height // 6))
            columns = slice(j * width // 6, -(-(j + 1) * width // 6))
            pooled[:, i, j] = x[rows, columns].mean((0, 1))
    out = weights["fc.weight"] @ pooled.reshape(-1) + weights["fc.bias"]
    return layer_norm(out, weights["norm.weight"], weights["norm.bias"])


def predictor_step(state, action, weights, residual):
    normed = layer_norm(state, weights["state_norm.weight"], weights["state_norm.bias"])
    moved = layer_norm(
        weights["action.weight"] @ action + weights["action.bias"],
        weights["action_norm.weight"],
        weights["action_norm.bias"],
    )
    r = normed + moved
    hidden = layer_norm(
        weights["expand.weight"] @ r + weights["expand.bias"], weights["norm.weight"], weights["norm.bias"]
    )
    update = weights["project.weight"] @ gelu(hidden) + weights["project.bias"]
    return (r if residual == "sum" else normed) + update


def scrambled(config, seed=0):
    """A float64 world with every parameter random, so that no default of ones or zeros hides a mistake."""
    torch.manual_seed(seed)
    world = World(config).double()
    with torch.no_grad():
        for parameter in world.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return world.eval()


def parameters_under(world, prefix):
    return {k.removeprefix(prefix): v.numpy() for k, v in world.state_dict().items() if k.startswith(prefix)}


@pytest.mark.parametrize("residual", ["sum", "state"])
@pytest.mark.parametrize("size", [(13, 13), (12, 17)])
def test_forward_equals_the_formulas_in_numpy(residual, size):
    world = scrambled(ModelConfig(**{**SMALL.__dict__, "residual": residual}))
    frames, actions = torch.rand(2, 3, 2, *size, dtype=torch.float64), torch.randn(2, 2, 2, dtype=torch.float64)
    predicted, encoded = world(frames, actions)

    agent, wall = parameters_under(world, "encoder.agent."), parameters_under(world, "encoder.wall.")
    predictor = parameters_under(world, "predictor.")
    for b in range(2):
        states = [branch_states(f[0], agent) + branch_states(f[1], wall) for f in frames[b].numpy()]
        np.testing.assert_allclose(encoded[b].detach().numpy(), states[1:], rtol=1e-10, atol=1e-10)
        state = states[0]
        for t in range(2):
            state = predictor_step(state, actions[b, t].numpy(), predictor, residual)
            np.testing.assert_allclose(predicted[b, t].detach().numpy(), state, rtol=1e-10, atol=1e-10)


def test_default_world_has_293344_parameters():
    world = World()
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in world.named_children()}
    assert sizes == {"encoder": 159_712, "predictor": 133_632}
    assert sum(sizes.values()) == 293_344


def test_rollout_is_the_encoding_of_frame_0_followed_by_the_predictions():
    world = scrambled(SMALL)
    frames, actions = torch.rand(2, 4, 2, 13, 13).double(), torch.randn(2, 3, 2).double()
    states = world.rollout(frames[:, 0], actions)
    predicted, _ = world(frames, actions)
    torch.testing.assert_close(states[:, 1:], predicted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states[:, 0], world(frames.flip(1), actions)[1][:, -1])


def test_predictions_ignore_later_frames():
    world = scrambled(SMALL)
    frames, actions = torch.rand(2, 4, 2, 13, 13).double(), torch.randn(2, 3, 2).double()
    changed = frames.clone()
    changed[:, 1:] = torch.rand_like(changed[:, 1:])
    assert torch.equal(world(frames, actions)[0], world(changed, actions)[0])


def test_every_parameter_gets_a_gradient_through_rollout_and_targets():
    world = scrambled(SMALL)
    predicted, encoded = world(torch.rand(2, 3, 2, 13, 13).double(), torch.randn(2, 2, 2).double())
    (predicted * torch.randn_like(predicted) + encoded * torch.randn_like(encoded)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in world.parameters())


def test_batch_of_one_equals_its_row_in_a_larger_batch():
    world = scrambled(SMALL)
    frames, actions = torch.rand(3, 3, 2, 13, 13).double(), torch.randn(3, 2, 2).double()
    for together, alone in zip(world(frames, actions), world(frames[1:2], actions[1:2]), strict=True):
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
        World()(torch.rand(1, 2, 2, 65, 65), torch.rand(1, 1, 2))
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
        World(SMALL)(torch.zeros(frames), torch.zeros(actions))


def test_rollout_refuses_a_sequence_of_frames():
    with pytest.raises(ValueError, match="first_frames: got shape"):
        World(SMALL).rollout(torch.zeros(2, 3, 2, 13, 13), torch.zeros(2, 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"channels": 0}, "model.channels"), ({"dropout": 1.0}, "model.dropout"), ({"residual": "none"}, "residual")],
)
def test_impossible_models_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(**settings)
