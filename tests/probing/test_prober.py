"""Probes: they find what is there, on the scale they promise, and no more."""

import math

import pytest
import torch

from jepa_fast.errors import InputError
from jepa_fast.probing import prober
from jepa_fast.probing.evaluation import constant_error
from jepa_fast.probing.prober import LOCATION_MEAN, LOCATION_STD, converged_probe, official_probe, warmup_cosine
from jepa_fast.probing.rollouts import Rollouts


def rollouts(count=512, steps=5, dim=12, scale=1.0, offset=0.0, seed=0):
    """Locations uniform in the room, latents a random linear lift of them."""
    generator = torch.Generator().manual_seed(seed)
    locations = 4 + 56 * torch.rand(count, steps, 2, generator=generator)
    normalised = (locations - torch.tensor(LOCATION_MEAN)) / torch.tensor(LOCATION_STD)
    lift = torch.randn(2, dim, generator=torch.Generator().manual_seed(9))
    return Rollouts(scale * (normalised @ lift) + offset, locations)


def test_converged_probe_reads_a_linear_code_at_any_scale_and_offset():
    for scale, offset in ((1.0, 0.0), (0.01, 30.0)):
        probe = converged_probe(rollouts(scale=scale, offset=offset), seed=0)
        assert probe.squared_errors(rollouts(scale=scale, offset=offset, seed=1)).mean() < 1.0


def test_official_probe_is_the_published_under_trained_one():
    """A linear code at unit scale is read, but far from exactly, and a faint one hardly at all."""
    errors = []
    for scale in (1.0, 0.01):
        probe = official_probe(rollouts(scale=scale), seed=0)
        errors.append(probe.squared_errors(rollouts(scale=scale, seed=1)).mean().item())
    floor = constant_error(rollouts().locations, rollouts(seed=1).locations)
    assert 1.0 < errors[0] < 0.8 * floor
    assert errors[1] > 0.95 * floor


def test_latents_without_information_score_no_better_than_the_constant():
    train, val = rollouts(), rollouts(seed=1)
    train, val = (r._replace(latents=torch.randn(r.latents.shape)) for r in (train, val))
    floor = constant_error(train.locations, val.locations)
    for probe in (official_probe(train, 0), converged_probe(train, 0)):
        assert probe.squared_errors(val).mean() > 0.97 * floor


def test_squared_errors_are_in_pixels_per_trajectory_and_step():
    val = rollouts(count=64)
    network = prober._network(12, seed=0)
    torch.nn.init.zeros_(network[2].weight)
    torch.nn.init.zeros_(network[2].bias)
    probe = prober.Probe(network, torch.zeros(12), torch.ones(12))
    expected = (val.locations - torch.tensor(LOCATION_MEAN)).square().mean(2)
    torch.testing.assert_close(probe.squared_errors(val), expected)


def test_rate_warms_up_over_a_tenth_and_falls_to_a_thousandth():
    factors = [warmup_cosine(step, 1000) for step in range(1001)]
    assert factors[0] == 0
    assert factors[50] == 0.5
    assert factors[100] == max(factors) == 1.0
    assert math.isclose(factors[550], 0.001 + 0.999 / 2)
    assert math.isclose(factors[1000], 0.001)


def recorded(monkeypatch):
    """The calls of `probe_train` from here on."""
    calls = []
    train = prober.probe_train
    monkeypatch.setattr(prober, "probe_train", lambda *args: calls.append(args) or train(*args))
    return calls


def test_official_training_takes_the_published_number_and_size_of_steps(monkeypatch):
    calls = recorded(monkeypatch)
    official_probe(rollouts(count=200, steps=40), seed=0)
    assert len(calls) == 20
    assert {tuple(rows.shape) for _, _, rows, *_ in calls} == {(200 // 64, 64)}
    assert {tuple(steps.shape) for _, _, _, steps, *_ in calls} == {(200 // 64, 64, 30)}
    assert max(float(rates.max()) for _, _, _, _, rates, *_ in calls) == 5e-5
    assert [first for *_, first in calls] == [1 + 3 * epoch for epoch in range(20)]


def test_long_trajectories_train_on_random_steps_without_repetition(monkeypatch):
    calls = recorded(monkeypatch)
    train = Rollouts(torch.randn(64, 40, 3), torch.zeros(64, 40, 2))
    generator = torch.Generator().manual_seed(0)
    for _ in prober._train(prober._network(3, 0), train, 2, 1e-3, prober.cosine, generator, "test"):
        pass
    seen = [steps[0] for _, _, _, steps, *_ in calls]
    assert all(len(row.unique()) == 30 for batch in seen for row in batch)
    assert not torch.equal(seen[0].sort(1).values, seen[1].sort(1).values)


@pytest.mark.parametrize("steps", [9, 40])
def test_the_official_probe_is_that_of_torchs_adam(steps):
    """The same seed, batches, time steps and rates, by a network, an optimiser and a loss of PyTorch."""
    train = rollouts(count=150, steps=steps)
    targets = (train.locations - torch.tensor(LOCATION_MEAN)) / torch.tensor(prober.LOCATION_STD)
    network, generator = prober._network(train.latents.shape[2], 3), torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(network.parameters())
    batches = 150 // 64
    for epoch in range(20):
        order = torch.randperm(150, generator=generator)
        for batch in range(batches):
            rows = order[batch * 64 : (batch + 1) * 64]
            latents, aims = train.latents[rows], targets[rows]
            if steps > 30:
                chosen = torch.rand(64, steps, generator=generator).argsort(dim=1)[:, :30, None]
                latents, aims = latents.take_along_dim(chosen, dim=1), aims.take_along_dim(chosen, dim=1)
            optimizer.param_groups[0]["lr"] = 5e-5 * warmup_cosine(epoch * batches + batch, 20 * batches)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(latents), aims).backward()
            optimizer.step()
    probe = official_probe(train, seed=3)
    for ours, theirs in zip(probe.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_same_seed_same_probe_and_torchs_generator_is_left_alone():
    before = torch.get_rng_state()
    first, second = (converged_probe(rollouts(count=100), seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_too_few_trajectories_for_one_batch_are_refused():
    with pytest.raises(InputError, match="probe set: got 63 trajectories to train a probe on, expected at least 64"):
        official_probe(rollouts(count=63), seed=0)
