"""The gates of a step as one op, against their layers."""

import pytest
import torch

from jepa_fast.kernels.feature_gate import GateWeights, feature_gate, feature_gate_reference, why_not_compiled
from tests.compiled import needs_library

REACH, SUREST = 4.0, 20.0


def draw(batch=5, steps=13, border=16, wall=32, dtype=torch.float64):
    """Positions, layouts with lines within reach and beyond, actions with one that stands still, and weights."""
    generator = torch.Generator().manual_seed(batch + steps)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions, actions = 0.5 * normal(batch, steps, 2), 0.1 * normal(batch, steps, 2)
    layout = normal(batch, 2, 2, 2).sort(dim=-1).values
    actions[:1, :1] = 0
    weights = normal(border, 3), normal(1, border), normal(wall, 5), 0.3 * normal(wall, wall), normal(1, wall)
    return (
        positions.to(dtype).requires_grad_(),
        layout.to(dtype),
        actions.to(dtype),
        GateWeights(*(0.7 * part.to(dtype) for part in weights)),
    )


def with_gradients(function, positions, layout, actions, weights):
    """Both logarithms, and the gradients of positions and weights."""
    leaves = [part.detach().requires_grad_() for part in (positions, *weights)]
    stay, move = function(leaves[0], layout, actions, GateWeights(*leaves[1:]), REACH, SUREST)
    mixed = (stay * torch.linspace(-1, 1, stay.numel()).view(stay.shape).to(stay)).sum() + (move * move).sum()
    return stay, move, *torch.autograd.grad(mixed, leaves)


@pytest.mark.parametrize("sizes", [{}, {"batch": 1, "steps": 1}, {"batch": 3, "steps": 67}, {"border": 32, "wall": 48}])
def test_chances_and_gradients_are_those_of_the_layers(sizes):
    arguments = draw(**sizes)
    ours, theirs = (with_gradients(function, *arguments) for function in (feature_gate, feature_gate_reference))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_probabilities_add_up_to_one():
    positions, layout, actions, weights = draw()
    stay, move = feature_gate(positions, layout, actions, weights, REACH, SUREST)
    torch.testing.assert_close(stay.exp() + move.exp(), torch.ones_like(stay), rtol=0, atol=1e-12)


def test_float32_is_as_close_to_float64_as_the_layers_are():
    arguments = draw(32, 16, wall=64)
    truth = with_gradients(feature_gate_reference, *arguments)
    narrow = [part.float() for part in arguments[:3]]
    weights = GateWeights(*(part.float() for part in arguments[3]))
    ours, theirs = (with_gradients(function, *narrow, weights) for function in (feature_gate, feature_gate_reference))
    for one, other, exact in zip(ours, theirs, truth, strict=True):
        # A ReLU that tips over at a rounding moves a gradient as a whole: means, not the worst.
        error, allowed = ((part - exact).abs().mean() for part in (one, other))
        assert error <= 2 * allowed + 1e-7 * exact.abs().mean()


@needs_library
def test_gradcheck():
    positions, layout, actions, weights = draw(2, 3, 16, 16)
    assert why_not_compiled(positions, layout, actions, (16, 16)) is None
    leaves = [part.detach().requires_grad_() for part in weights]

    def chances(at, *parts):
        return feature_gate(at, layout, actions + 0.02, GateWeights(*parts), REACH, SUREST)

    assert torch.autograd.gradcheck(chances, (positions, *leaves), fast_mode=True)


@needs_library
def test_opcheck_and_a_compiled_graph_without_breaks():
    positions, layout, actions, weights = draw(2, 3, 16, 16, torch.float32)
    arguments = positions, layout, actions, *(part.requires_grad_() for part in weights), REACH, SUREST
    torch.library.opcheck(torch.ops.jepa_fast.feature_gate.default, arguments)
    compiled = torch.compile(feature_gate, fullgraph=True)
    for one, other in zip(
        compiled(positions, layout, actions, weights, REACH, SUREST),
        feature_gate(positions, layout, actions, weights, REACH, SUREST),
        strict=True,
    ):
        assert torch.equal(one, other)


@needs_library
def test_any_number_of_threads_gives_the_same_bits():
    arguments = draw(20, 33, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(with_gradients(feature_gate, *arguments))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_no_steps_and_strides():
    positions, layout, actions, weights = draw()
    empty = with_gradients(feature_gate, positions[:0], layout[:0], actions[:0], weights)
    assert empty[0].shape == (0, 13)
    assert not any(part.any() for part in empty[2:])
    strided = [part.detach().transpose(0, 1).contiguous().transpose(0, 1) for part in (positions, layout, actions)]
    for one, other in zip(
        with_gradients(feature_gate, *strided, weights),
        with_gradients(feature_gate, positions, layout, actions, weights),
        strict=True,
    ):
        assert torch.equal(one, other)


@needs_library
def test_what_the_op_does_not_take_runs_in_plain_pytorch():
    positions, layout, actions, weights = draw(border=9)
    assert "multiples of 16" in (why_not_compiled(positions, layout, actions, (9, 32)) or "")
    ours, theirs = (
        with_gradients(function, positions, layout, actions, weights)
        for function in (feature_gate, feature_gate_reference)
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert "dimensions" in (why_not_compiled(positions[0], layout, actions[0], (16, 32)) or "")
    with pytest.raises(RuntimeError, match="multiples of 16"):
        torch.ops.jepa_fast.feature_gate(positions, layout, actions, *weights, REACH, SUREST)
