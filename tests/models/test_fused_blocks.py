"""Encoders whose blocks are one op, against the plain ones.

With kernels "triton" on a CPU the op's compiled blocks or its own reference, on a GPU its kernels; with "fused" on a
CPU the chain of compiled blocks.
"""

import logging

import pytest
import torch

from jepa_fast.kernels import extension
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models import window_encoder
from jepa_fast.models.convnext import Encoder, _is_fused
from jepa_fast.models.sparse_encoder import SparseEncoder

KERNELS = ["triton", "fused"]


def make_pair(channels: int = 16, blocks: int = 2, kernels: str = "triton") -> tuple[Encoder, Encoder]:
    """Plain and fused, with the same weights."""
    torch.manual_seed(channels + blocks)
    plain = Encoder(channels, blocks, 32, 0.1)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    fused = Encoder(channels, blocks, 32, 0.1, kernels)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def states_and_gradients(batch_encoder, batch):
    encoder = batch_encoder.encoder
    encoder.zero_grad()
    states = batch_encoder(batch, new_clock(5))
    probe = torch.randn(states.shape, generator=torch.Generator().manual_seed(7)).to(states)
    (states * probe + states.square() * probe.roll(1)).sum().backward()
    return states.detach().double(), {name: weight.grad.double() for name, weight in encoder.named_parameters()}


def relative(got, expected, floor=0.0):
    return float((got - expected).norm() / max(float(expected.norm()), floor))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize(("channels", "blocks"), [(16, 1), (16, 2), (16, 3), (32, 2)])
def test_fused_blocks_give_the_plain_states_and_gradients(drawn, channels, blocks, mode, kernels):
    batch, spec, bases = drawn(blocks)
    plain, fused = (encoder.double() for encoder in make_pair(channels, blocks, kernels))
    expected, truth = states_and_gradients(SparseEncoder(plain, spec, bases, "off"), batch)
    got, gradients = states_and_gradients(SparseEncoder(fused, spec, bases, mode), batch)
    assert relative(got, expected) < 1e-10
    floor = 1e-3 * float(torch.stack([gradient.norm() for gradient in truth.values()]).norm())
    for name, gradient in gradients.items():
        assert relative(gradient, truth[name], floor) < 1e-10, name


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("size", "window"), [((34, 31), 1), ((28, 39), 28)])
def test_fused_windows_may_fill_an_axis(drawn, size, window, kernels):
    batch, spec, bases = drawn(3, frames=2, size=size, window=window)
    plain, fused = (encoder.double() for encoder in make_pair(kernels=kernels))
    expected, _ = states_and_gradients(SparseEncoder(plain, spec, bases, "off"), batch)
    got, _ = states_and_gradients(SparseEncoder(fused, spec, bases), batch)
    assert relative(got, expected) < 1e-10


@pytest.mark.parametrize("kernels", KERNELS)
def test_rounding_to_bf16_is_no_worse_than_the_plain_encoders_own(drawn, kernels):
    """The Triton op keeps the residual stream in bf16, the plain encoder in float32."""
    batch, spec, bases = drawn(1, trajectories=3, frames=3)
    plain, fused = make_pair(kernels=kernels)
    exact = Encoder(16, 2, 32, 0.1).double()
    exact.load_state_dict(plain.state_dict())
    truth, true_gradients = states_and_gradients(SparseEncoder(exact, spec, bases, "off"), batch)
    with torch.autocast("cpu", torch.bfloat16):
        dense, dense_gradients = states_and_gradients(SparseEncoder(plain, spec, bases, "off"), batch)
        ours, gradients = states_and_gradients(SparseEncoder(fused, spec, bases), batch)
    assert relative(ours, truth) <= 2 * relative(dense, truth)
    floor = 1e-3 * float(torch.stack([gradient.norm() for gradient in true_gradients.values()]).norm())
    errors, dense_errors = (
        torch.tensor([relative(found[name], true_gradients[name], floor) for name in true_gradients])
        for found in (gradients, dense_gradients)
    )
    assert errors.norm() <= 2 * dense_errors.norm()


def test_fused_blocks_have_the_plain_parameters():
    plain, fused = make_pair()
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert all(block.is_fused for branch in (fused.agent, fused.wall) for block in branch.blocks)
    assert not any(block.is_fused for branch in (plain.agent, plain.wall) for block in branch.blocks)


def test_channels_that_the_kernels_do_not_know_run_plain_and_the_log_says_so(caplog):
    _is_fused.cache_clear()
    with caplog.at_level(logging.WARNING):
        encoder = Encoder(24, 1, 32, 0.1, "triton")
    assert [record.getMessage() for record in caplog.records] == [
        "blocks run in plain PyTorch: model.channels is 24, the kernels take 16, 32, 64, 96, 128"
    ]
    assert not any(block.is_fused for block in encoder.agent.blocks)
    assert encoder(torch.rand(1, 2, 2, 9, 9), new_clock(0)).shape == (1, 2, 32)


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_compiled_fused_encoder_is_one_graph_and_equal(drawn, kernels):
    batch, spec, bases = drawn(2)
    _, fused = make_pair(kernels=kernels)
    encoder = SparseEncoder(fused, spec, bases)
    compiled = torch.compile(encoder.__call__, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(batch, new_clock(3)), encoder(batch, new_clock(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not extension.LIBRARY.exists(), reason="jepa_fast is installed without its compiled extension")
@pytest.mark.parametrize("trajectories", [2, 9])
def test_a_cpu_runs_windows_as_chains(drawn, trajectories, monkeypatch):
    batch, spec, bases = drawn(2, trajectories=trajectories)
    _, fused = make_pair(kernels="fused")
    calls = []
    chain = window_encoder.window_chain
    monkeypatch.setattr(window_encoder, "window_chain", lambda *args, **kw: calls.append(kw) or chain(*args, **kw))
    encoder = SparseEncoder(fused, spec, bases)
    encoder(batch, new_clock(5))
    # The agent's windows, and of nested walls the bases over what they share and the walls over these.
    kept = {"once": [], "nested": [True, False]}[encoder.plan(batch).groups[1]]
    assert [call["keep"] for call in calls] == [False, *kept]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_kernels_give_the_exact_states_and_gradients(drawn, mode):
    batch, spec, bases = drawn(2)
    plain, fused = make_pair()
    expected, truth = states_and_gradients(SparseEncoder(plain.double(), spec, bases, "off"), batch)
    encoder = SparseEncoder(fused.cuda(), spec, bases.cuda(), mode)
    encoder.encoder.zero_grad()
    states = encoder(batch.to(torch.device("cuda")), new_clock(5).cuda())
    probe = torch.randn(states.shape, generator=torch.Generator().manual_seed(7)).to(states)
    (states * probe + states.square() * probe.roll(1)).sum().backward()
    assert relative(states.detach().double().cpu(), expected) < 1e-4
    floor = 1e-3 * float(torch.stack([gradient.norm() for gradient in truth.values()]).norm())
    for name, weight in fused.named_parameters():
        assert relative(weight.grad.double().cpu(), truth[name], floor) < 1e-3, name
