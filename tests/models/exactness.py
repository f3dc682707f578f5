"""Whether an encoder with shortcuts is the function that it is without."""

import torch
from torch import Tensor

from jepa_fast.data.batches import Batch
from jepa_fast.data.shards import FrameSpec
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder


def states_and_gradients(
    encoder: Encoder, batch_encoder: SparseEncoder, batch: Batch, clock: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    states = batch_encoder(batch, clock)
    probe = torch.randn(states.shape, generator=torch.Generator().manual_seed(7)).to(states.dtype)
    (states * probe + states.square() * probe.roll(1)).sum().backward()
    return states.detach(), {name: weight.grad.clone() for name, weight in encoder.named_parameters()}


def relative(got: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    return float((got - expected).norm() / max(float(expected.norm()), floor))


def assert_equal_to_plain(encoder: Encoder, batch: Batch, spec: FrameSpec, bases: Tensor, rewrites: Rewrites) -> None:
    """States to 1e-10, every gradient to 1e-10 of itself or of a thousandth of all gradients, in float64."""
    clock = new_clock(5)
    encoder.double()
    expected, truth = states_and_gradients(encoder, SparseEncoder(encoder, spec, bases, "off"), batch, clock)
    got, gradients = states_and_gradients(encoder, SparseEncoder(encoder, spec, bases, "auto", rewrites), batch, clock)
    assert relative(got, expected) < 1e-10
    floor = 1e-3 * float(torch.stack([gradient.norm() for gradient in truth.values()]).norm())
    assert floor > 0
    for name, gradient in gradients.items():
        assert relative(gradient, truth[name], floor) < 1e-10, name
