"""Masks: a pure function of (seed, step, site, element), with the right statistics."""

import numpy as np
import pytest
import torch

from jepa_fast.config import JEPAConfig
from jepa_fast.kernels import dropout, extension
from jepa_fast.kernels.dropout import (
    SITE_FIRST_GROUP,
    SITE_PREDICTOR,
    SITE_SECOND_GROUP,
    dropout_mask,
    dropout_mask_reference,
)
from jepa_fast.models.jepa import build_jepa


def mask(seed=0, step=0, site=SITE_FIRST_GROUP, shape=(64, 1024), rate=0.1, first_row=0):
    return dropout_mask(shape, rate, torch.tensor([seed, step, first_row]), site)


def mix32(x):
    """The mixing step in uint32 arithmetic, as a kernel does it."""
    x = np.asarray(x, dtype=np.uint32)
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**63 - 1])
def test_mask_bits_equal_the_hash_in_uint32_arithmetic(seed):
    step, site, rate = 123_456, SITE_PREDICTOR, 0.1
    low, high = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
    with np.errstate(over="ignore"):
        key = mix32(mix32(low ^ mix32(high)) ^ mix32(np.uint32(step ^ (site << 24))))
        second = mix32(key ^ np.uint32(0x9E3779B9))
        bits = mix32(mix32(np.arange(5000, dtype=np.uint32) ^ key) + second)
    expected = np.where(bits >= np.uint32(int(rate * 2**32)), np.float32(1 / 0.9), np.float32(0))
    np.testing.assert_array_equal(mask(seed, step, site, (50, 100)).numpy().ravel(), expected)


def test_processes_draw_their_rows_of_the_mask_of_one():
    whole = mask(shape=(12, 5, 7), rate=0.5)
    for ranks in (1, 2, 3):
        rows = 12 // ranks
        parts = [mask(shape=(rows, 5, 7), rate=0.5, first_row=rank * rows) for rank in range(ranks)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_of_dropped_elements_is_the_rate(rate):
    dropped = (mask(rate=rate) == 0).double().mean().item()
    standard_error = (rate * (1 - rate) / (64 * 1024)) ** 0.5
    assert abs(dropped - rate) < 4 * standard_error


def test_kept_elements_are_scaled_so_that_the_mean_is_kept():
    values = mask(rate=0.25).unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75]))


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"step": 1}, {"site": SITE_SECOND_GROUP}, {"seed": 2**32}, {"step": 2**20}]
)
def test_masks_of_another_seed_step_or_site_are_uncorrelated(other):
    dropped = [(m == 0).double().flatten() for m in (mask(rate=0.5), mask(rate=0.5, **other))]
    assert abs(torch.corrcoef(torch.stack(dropped))[0, 1].item()) < 4 / len(dropped[0]) ** 0.5


def test_neighbours_are_uncorrelated():
    dropped = (mask(rate=0.5) == 0).double().flatten()
    for lag in (1, 2, 16, 128, 512, 1024):
        pair = torch.stack([dropped[:-lag], dropped[lag:]])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / len(dropped) ** 0.5


def test_training_forwards_draw_fresh_masks_and_a_reset_clock_repeats_them():
    model = build_jepa(JEPAConfig(channels=2, blocks=1, dim=8, dropout=0.5))
    frames, actions = torch.rand(2, 3, 2, 13, 13), torch.rand(2, 2, 2)
    first, second = model(frames, actions)[0], model(frames, actions)[0]
    assert model.dropout_clock.tolist() == [0, 2, 0]
    assert not torch.equal(first, second)
    model.dropout_clock[1] = 0
    assert torch.equal(model(frames, actions)[0], first)


def test_every_place_that_draws_has_a_number_of_its_own():
    sites = {name: number for name, number in vars(dropout).items() if name.startswith("SITE_")}
    assert len(sites) >= 5
    assert len(set(sites.values())) == len(sites)
    groups = [dropout.group_site(number) for number in range(16)]
    assert len(set(groups)) == len(groups)
    assert not {dropout.SITE_PREDICTOR, dropout.SITE_FLIPS, dropout.SITE_FUSION} & set(groups)


def test_evaluation_drops_nothing():
    model = build_jepa(JEPAConfig(channels=2, blocks=1, dim=8, dropout=0.5)).eval()
    frames, actions = torch.rand(2, 3, 2, 13, 13), torch.rand(2, 2, 2)
    assert torch.equal(model(frames, actions)[0], model(frames, actions)[0])
    assert model.dropout_clock.tolist() == [0, 0, 0]


def test_compiled_forward_draws_the_same_masks_as_eager():
    model = build_jepa(JEPAConfig(channels=2, blocks=1, dim=8, dropout=0.5))
    frames, actions = torch.rand(2, 3, 2, 13, 13), torch.rand(2, 2, 2)
    eager = model(frames, actions)
    model.dropout_clock[1] = 0
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(frames, actions)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_masks_are_those_of_plain_pytorch():
    for clock in ([0, 0, 0], [2**40 + 3, 123_456, 5], [2**63 - 1, 2**33 + 1, 1000]):
        for shape in ((3, 5, 7), (40, 1024), (0, 4)):
            arguments = shape, 0.3, torch.tensor(clock), SITE_SECOND_GROUP
            assert torch.equal(dropout_mask(*arguments), dropout_mask_reference(*arguments))


@pytest.mark.skipif(not extension.LIBRARY.exists(), reason="jepa_fast is installed without its compiled extension")
def test_operator_is_registered_soundly():
    arguments = [3, 5], 0.3, torch.tensor([1, 2, 3]), SITE_SECOND_GROUP
    torch.library.opcheck(torch.ops.jepa_fast.dropout_mask.default, arguments)
