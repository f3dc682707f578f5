"""A probe's training loop as one op, against Adam and autograd of PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jepa_fast.kernels.probe_train import (
    join_probe,
    probe_outputs,
    probe_outputs_reference,
    probe_train,
    probe_train_reference,
    split_probe,
)
from tests.compiled import needs_library

DIM, HIDDEN = 19, 32


def draw(count=40, length=7, kept=None, batch=8, steps=25):
    generator = torch.Generator().manual_seed(count + length)
    latents = torch.randn(count, length, DIM, generator=generator)
    targets = torch.randn(count, length, 2, generator=generator)
    rows = torch.randint(0, count, (steps, batch), generator=generator)
    times = None
    if kept is not None:
        times = torch.rand(steps, batch, length, generator=generator).argsort(dim=2)[..., :kept]
    parameters = 0.2 * torch.randn(DIM * HIDDEN + 3 * HIDDEN + 2, generator=generator)
    state = torch.stack([parameters, torch.zeros_like(parameters), torch.zeros_like(parameters)])
    return latents, targets, rows, times, torch.linspace(1e-2, 1e-3, steps, dtype=torch.float64), state, HIDDEN


@pytest.mark.parametrize("kept", [None, 3])
@pytest.mark.parametrize(("count", "length", "batch"), [(40, 7, 8), (3, 1, 1), (70, 30, 64)])
def test_steps_are_those_of_plain_pytorch(count, length, batch, kept):
    arguments = draw(count, length, None if kept is None else min(kept, length), batch)
    exact = [part.double() if torch.is_tensor(part) and part.dtype == torch.float32 else part for part in arguments]
    truth = probe_train_reference(*exact, 1)
    got = probe_train(*arguments)
    torch.testing.assert_close(got.double(), truth, rtol=1e-3, atol=1e-4)
    assert not torch.equal(got, arguments[5])


def test_the_reference_is_torchs_adam():
    latents, targets, rows, times, rates, state, hidden = draw(kept=3)
    network = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
    with torch.no_grad():
        for own, part in zip(network.parameters(), split_probe(state[0], DIM, HIDDEN), strict=True):
            own.copy_(part)
    optimizer = torch.optim.Adam(network.parameters())
    for chosen, when, rate in zip(rows, times, rates, strict=True):
        x, aims = (part[chosen].take_along_dim(when[..., None], dim=1) for part in (latents, targets))
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        F.mse_loss(network(x), aims).backward()
        optimizer.step()
    got = probe_train_reference(latents, targets, rows, times, rates, state, hidden, 1)
    torch.testing.assert_close(got[0], join_probe(*network.parameters()), rtol=1e-3, atol=1e-5)


def test_a_loop_may_be_cut_anywhere():
    latents, targets, rows, times, rates, state, hidden = draw(kept=3)
    whole = probe_train(latents, targets, rows, times, rates, state, hidden)
    first = probe_train(latents, targets, rows[:9], times[:9], rates[:9], state, hidden)
    assert torch.equal(probe_train(latents, targets, rows[9:], times[9:], rates[9:], first, hidden, 10), whole)


@pytest.mark.parametrize("hidden", [16, 48, 256])
@pytest.mark.parametrize("count", [0, 1, 5, 1100])
def test_outputs_are_those_of_plain_pytorch(count, hidden):
    generator = torch.Generator().manual_seed(count)
    latents = torch.randn(count, 2 * DIM, generator=generator)[:, ::2]
    parameters = 0.2 * torch.randn(DIM * hidden + 3 * hidden + 2, generator=generator)
    truth = probe_outputs_reference(latents.double(), parameters.double(), hidden)
    torch.testing.assert_close(probe_outputs(latents, parameters, hidden).double(), truth, rtol=1e-5, atol=1e-5)


@needs_library
def test_number_of_threads_does_not_change_a_bit():
    arguments, threads, runs = draw(70, 30, None, 64, 5), torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            runs.append(probe_train(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(runs[1], runs[0])
    assert torch.equal(runs[2], runs[0])


@needs_library
def test_operator_is_registered_soundly_and_follows_no_index_out_of_range():
    arguments = [*draw(kept=3), 1]
    torch.library.opcheck(torch.ops.jepa_fast.probe_train.default, tuple(arguments))
    arguments[2] = arguments[2] + 40
    with pytest.raises(RuntimeError, match="expected less than 40"):
        torch.ops.jepa_fast.probe_train(*arguments)
    outputs = torch.ops.jepa_fast.probe_outputs
    torch.library.opcheck(outputs.default, (arguments[0][0], arguments[5][0], HIDDEN))
    with pytest.raises(RuntimeError, match="do not fit together"):
        outputs(arguments[0][0], arguments[5][0], HIDDEN + 16)
