"""The energy against its definition in NumPy, with every option."""

import numpy as np
import pytest
import torch

from jepa_fast.config import VICRegConfig
from tests.objective_terms import energy, fused_energy

WEIGHTS = torch.tensor([25.0, 15.0, 2.0], dtype=torch.float64)


def definition(x, gamma=1.0, eps=1e-4, pairs=False):
    """Variance and covariance term of rows x [N, D]."""
    covariance = np.cov(x, rowvar=False, ddof=1)
    hinge = np.maximum(0, gamma - np.sqrt(np.diag(covariance) + eps)).mean()
    dim = x.shape[1]
    off = sum(covariance[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j)
    return hinge, off / (dim * (dim - 1) if pairs else dim)


def states(batch=6, steps=4, dim=5, dtype=torch.float64, scale=0.7):
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, batch, steps, dim, generator=generator, dtype=torch.float64)
    pair = pair @ torch.randn(dim, dim, generator=generator, dtype=torch.float64) * scale / dim**0.5
    return pair.to(dtype).unbind(0)


def rows(x):
    return x.reshape(-1, x.shape[-1]).numpy()


def expected_regularisers(x, config):
    options = {"gamma": config.gamma, "eps": config.eps, "pairs": config.covariance_divisor == "pairs"}
    if config.steps == "all":
        return definition(rows(x), **options)
    if config.steps == "first":
        return definition(x[:, 0].numpy(), **options)
    return tuple(np.mean([definition(x[:, t].numpy(), **options) for t in range(x.shape[1])], axis=0))


@pytest.mark.parametrize("sides", ["predicted", "both"])
@pytest.mark.parametrize("steps", ["all", "each", "first"])
@pytest.mark.parametrize("divisor", ["dim", "pairs"])
def test_terms_equal_their_definition(sides, steps, divisor):
    config = VICRegConfig(sides=sides, steps=steps, covariance_divisor=divisor, gamma=1.2, eps=1e-3)
    predicted, encoded = states()
    got = energy(predicted, encoded, WEIGHTS, config)
    variance, covariance = expected_regularisers(predicted, config)
    if sides == "both":
        other = expected_regularisers(encoded, config)
        variance, covariance = (variance + other[0]) / 2, (covariance + other[1]) / 2
    invariance = ((predicted - encoded) ** 2).mean().item()
    terms = np.array([invariance, variance, covariance])
    np.testing.assert_allclose([got.invariance, got.variance, got.covariance], terms, rtol=1e-12)
    np.testing.assert_allclose(got.total, terms @ WEIGHTS.numpy(), rtol=1e-12)
    assert variance > 0


@pytest.mark.parametrize("steps", ["all", "each", "first"])
@pytest.mark.parametrize("sides", ["predicted", "both"])
def test_gradients_pass_gradcheck(steps, sides):
    config = VICRegConfig(sides=sides, steps=steps)
    pair = [x.clone().requires_grad_() for x in states(batch=4, steps=2, dim=3)]
    assert torch.autograd.gradcheck(lambda p, e: energy(p, e, WEIGHTS, config).total, pair)


def test_stopped_targets_get_no_gradient_from_the_invariance():
    predicted, encoded = (x.clone().requires_grad_() for x in states())
    energy(predicted, encoded, WEIGHTS, VICRegConfig(targets="stop_gradient")).total.backward()
    assert encoded.grad is None
    assert predicted.grad.abs().sum() > 0


def test_stopped_targets_are_still_regularised_on_both_sides():
    predicted, encoded = (x.clone().requires_grad_() for x in states())
    energy(predicted, encoded, WEIGHTS, VICRegConfig(targets="stop_gradient", sides="both")).total.backward()
    assert encoded.grad.abs().sum() > 0


def test_ema_targets_replace_the_encodings_in_the_invariance_alone():
    predicted, encoded = states()
    targets = encoded + 1.0
    config = VICRegConfig(targets="ema", sides="both")
    got = energy(predicted, encoded, WEIGHTS, config, targets=targets)
    plain = energy(predicted, encoded, WEIGHTS, VICRegConfig(sides="both"))
    np.testing.assert_allclose(got.invariance, ((predicted - targets) ** 2).mean(), rtol=1e-12)
    assert (got.variance, got.covariance) == (plain.variance, plain.covariance)


@pytest.mark.parametrize(("targets", "given"), [("ema", False), ("shared", True)])
def test_ema_targets_without_the_option_or_the_option_without_them_are_refused(targets, given):
    predicted, encoded = states()
    with pytest.raises(ValueError, match=r"targets: expected with targets=.ema. and only then"):
        energy(predicted, encoded, WEIGHTS, VICRegConfig(targets=targets), encoded if given else None)


def test_bf16_states_under_autocast_are_summed_in_float32():
    predicted, encoded = states(batch=64, steps=16, dim=32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got = energy(predicted, encoded, WEIGHTS.float(), VICRegConfig())
    exact = energy(predicted.double(), encoded.double(), WEIGHTS, VICRegConfig())
    for ours, truth in zip(got, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=0)


def test_collapsed_states_cost_the_whole_hinge_and_no_covariance():
    constant = torch.ones(4, 3, 5, dtype=torch.float64)
    got = energy(constant, constant, WEIGHTS, VICRegConfig())
    np.testing.assert_allclose(got.variance, 1 - 1e-4**0.5, rtol=1e-12)
    assert got.covariance == 0
    assert got.invariance == 0


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((1, 1, 5), VICRegConfig(), r"got 1 row\(s\)"),
        ((1, 4, 5), VICRegConfig(steps="each"), r"got 1 row\(s\)"),
        ((4, 5), VICRegConfig(), "expected .B, T-1, D. twice"),
    ],
)
def test_states_without_a_covariance_are_refused(shape, config, message):
    with pytest.raises(ValueError, match=message):
        energy(torch.zeros(shape), torch.zeros(shape), WEIGHTS, config)


def test_non_contiguous_states_give_the_same_energy():
    predicted, encoded = states()
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (predicted, encoded)]
    assert not strided[0].is_contiguous()
    for a, b in zip(
        energy(*strided, WEIGHTS, VICRegConfig()), energy(predicted, encoded, WEIGHTS, VICRegConfig()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


@pytest.mark.parametrize("sides", ["predicted", "both"])
@pytest.mark.parametrize("steps", ["all", "each", "first"])
@pytest.mark.parametrize("targets", ["shared", "stop_gradient", "ema"])
@pytest.mark.parametrize("divisor", ["dim", "pairs"])
def test_fused_energy_equals_the_readable_one(sides, steps, targets, divisor):
    config = VICRegConfig(sides=sides, steps=steps, targets=targets, covariance_divisor=divisor, gamma=1.2, eps=1e-3)
    results = []
    for function in (energy, fused_energy):
        predicted, encoded = (x.clone().requires_grad_() for x in states())
        terms = function(predicted, encoded, WEIGHTS, config, states()[1] + 1 if targets == "ema" else None)
        terms.total.backward()
        results.append((*terms, predicted.grad, encoded.grad))
    for ours, truth in zip(results[1], results[0], strict=True):
        if truth is None:
            assert ours is None or ours.abs().sum() == 0
        else:
            torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-13)


def test_fused_energy_of_bf16_states_is_summed_in_float32():
    predicted, encoded = (x.requires_grad_() for x in states(batch=64, steps=16, dim=32, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        got = fused_energy(predicted, encoded, WEIGHTS.float(), VICRegConfig(sides="both"))
    got.total.backward()
    exact = energy(predicted.double(), encoded.double(), WEIGHTS, VICRegConfig(sides="both"))
    for ours, truth in zip(got, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=0)
    assert predicted.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("shape", "config"), [((1, 1, 5), VICRegConfig()), ((1, 4, 5), VICRegConfig(steps="first"))])
def test_fused_energy_refuses_states_without_a_covariance(shape, config):
    with pytest.raises(ValueError, match=r"got 1 row\(s\)"):
        fused_energy(torch.zeros(shape), torch.zeros(shape), WEIGHTS, config)
