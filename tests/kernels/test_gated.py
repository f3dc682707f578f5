"""The lift's columns and the likelihood of two outcomes as ops, against the formulas."""

import pytest
import torch

from jepa_fast.kernels.gated import (
    gated_columns,
    gated_columns_reference,
    gated_likelihood,
    gated_likelihood_reference,
    why_not_compiled,
)
from tests.compiled import needs_library

SPREAD = 20.0


def draw(batch=5, steps=7, dim=19, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch + dim)
    shapes = (batch, steps + 1, dim), (batch, steps, dim), (batch, steps)
    latents, step, gate = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    stay, move = torch.nn.functional.logsigmoid(-gate), torch.nn.functional.logsigmoid(gate)
    return [part.to(dtype).requires_grad_() for part in (latents, step, stay, move)], torch.tensor(1.3).to(dtype)


def plain(latents, step, stay, move, sigma):
    return gated_likelihood_reference(latents[:, :-1], step, stay, move, latents[:, 1:], sigma)


def results(function, leaves, sigma):
    """Parts, expected latents, and the gradients of nll."""
    parts, expected = function(*leaves, sigma)
    assert not expected.requires_grad
    return parts, expected, *torch.autograd.grad(3 * parts[0], leaves)


@pytest.mark.parametrize("sizes", [{}, {"batch": 1, "steps": 1, "dim": 1}, {"batch": 33, "steps": 3, "dim": 128}])
def test_likelihood_and_gradients_are_those_of_the_formulas(sizes):
    leaves, sigma = draw(**sizes)
    ours, theirs = (results(function, leaves, sigma) for function in (gated_likelihood, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 128])
def test_columns_and_their_gradient_are_those_of_the_formulas(dim):
    weight = torch.randn(dim, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(dim)).requires_grad_()
    mix = torch.linspace(-1, 2, 2 * dim, dtype=torch.float64).view(dim, 2)
    ours, theirs = gated_columns(weight, SPREAD), gated_columns_reference(weight, SPREAD)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.T @ ours, SPREAD**2 * torch.eye(2, dtype=torch.float64))
    gradients = [torch.autograd.grad((mix * found).sum(), weight)[0] for found in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_float32_is_as_close_to_float64_as_the_formulas_are():
    leaves, sigma = draw(32, 16, 128)
    truth = results(plain, leaves, sigma)
    narrow = [leaf.detach().float().requires_grad_() for leaf in leaves]
    ours, theirs = (results(f, narrow, sigma.float()) for f in (gated_likelihood, plain))
    for one, other, exact in zip(ours, theirs, truth, strict=True):
        floor = 1e-6 * exact.abs().max()
        assert (one - exact).abs().max() <= 2 * (other - exact).abs().max() + floor


@needs_library
def test_gradcheck():
    leaves, sigma = draw(2, 3, 4)
    assert why_not_compiled(leaves[0]) is None
    assert torch.autograd.gradcheck(lambda *w: gated_likelihood(*w, sigma).parts[0], leaves, fast_mode=True)
    weight = torch.randn(5, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: gated_columns(w, SPREAD), weight, fast_mode=True)


@needs_library
def test_opcheck_and_a_compiled_graph_without_breaks():
    leaves, sigma = draw(2, 3, 4, torch.float32)
    torch.library.opcheck(torch.ops.jepa_fast.gated_likelihood.default, (*leaves, sigma))
    weight = torch.randn(5, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.jepa_fast.gated_columns.default, (weight, SPREAD))
    compiled = torch.compile(lambda w, *rest: (gated_columns(w, SPREAD), *gated_likelihood(*rest)), fullgraph=True)
    for one, other in zip(
        compiled(weight, *leaves, sigma),
        (gated_columns(weight, SPREAD), *gated_likelihood(*leaves, sigma)),
        strict=True,
    ):
        assert torch.equal(one, other)


@needs_library
def test_any_number_of_threads_gives_the_same_bits():
    leaves, sigma = draw(50, 3, 16, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(results(gated_likelihood, leaves, sigma))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_strides():
    leaves, sigma = draw()
    strided = [leaf.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for leaf in leaves]
    for one, other in zip(
        results(gated_likelihood, strided, sigma), results(gated_likelihood, leaves, sigma), strict=True
    ):
        assert torch.equal(one, other)
