"""The encoder's fused path as a whole, every kernel of it: windows cut, convolved, subtracted from."""

import pytest
import torch

from jepa_fast.kernels import convnext_block, window
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.sparse_encoder import SparseEncoder
from tests.models.conftest import draw_batch


def states_and_gradients(encoder, batch, spec, bases, mode):
    states = SparseEncoder(encoder, spec, bases, mode)(batch, new_clock(5))
    states.square().sum().backward()
    return states.detach(), {name: weight.grad for name, weight in encoder.named_parameters()}


@pytest.mark.parametrize(
    ("options", "trajectories"), [({}, 1), ({"fusion": True, "head": "softargmax", "bias": False}, 2)]
)
def test_windows_match_the_plain_encoder_in_float64(monkeypatch, error, options, trajectories):
    batch, spec, bases = draw_batch(3, trajectories=trajectories, frames=2, size=(20, 25), window=3)
    torch.manual_seed(0)
    plain = Encoder(16, 1, 16, 0.1, **options).double()
    fused = Encoder(16, 1, 16, 0.1, "triton", **options)
    fused.load_state_dict(plain.state_dict())
    assert SparseEncoder(fused, spec, bases).plan(batch).groups == ("windows", "once")
    truth, exact = states_and_gradients(plain, batch, spec, bases, "off")
    for module in (convnext_block, window):
        monkeypatch.setattr(module, "runs_in_triton", lambda *_: True)
    states, gradients = states_and_gradients(fused, batch, spec, bases, "auto")
    assert error(states, truth) < 1e-5
    for name, gradient in gradients.items():
        assert error(gradient, exact[name]) < 1e-4, name
