import pytest
import torch

from jepa_fast.kernels import dwconv_norm as op
from jepa_fast.kernels.dwconv_norm import dwconv_norm_reference
from jepa_fast.kernels.triton.depthwise import taps_of
from jepa_fast.kernels.triton.dwconv_norm import dwconv_norm_backward, dwconv_norm_forward


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("shape", "padding"), [((2, 9, 8, 16), (3, 3)), ((1, 3, 2, 32), (6, 3)), ((1, 1, 2, 96), (3, 3))], ids=str
)
def test_values_and_gradients_match_float64(shape, padding, error):
    channels = shape[3]
    x, weight, gamma, beta = draw(*shape), draw(channels, 1, 7, 7), draw(channels) + 1.5, draw(channels + 1)[1:]
    wide = [leaf.double().requires_grad_() for leaf in (x, weight, gamma, beta)]
    truth = dwconv_norm_reference(*wide, padding=padding)
    y, z = dwconv_norm_forward(x, taps_of(weight), gamma, beta, padding, 1e-5)
    assert error(y, truth.detach()) < 2e-6
    dy = draw(*truth.shape)
    truth.backward(dy.double())
    dz, dgamma, dbeta = dwconv_norm_backward(dy, z, gamma, 1e-5)
    assert error(dgamma, wide[2].grad) < 2e-6
    assert error(dbeta, wide[3].grad) < 2e-6
    convolved = z.double().requires_grad_()
    torch.nn.functional.layer_norm(convolved, (channels,), gamma.double(), beta.double()).backward(dy.double())
    assert error(dz, convolved.grad) < 2e-6


def test_the_op_itself_takes_the_kernels(monkeypatch, error):
    """What stands between the public function and the launches: strides, order of gradients."""
    monkeypatch.setattr(op, "runs_in_triton", lambda *_: True)
    leaves = [draw(2, 5, 16, 4).permute(0, 1, 3, 2), draw(16, 1, 7, 7), draw(16) + 1.5, draw(17)[1:]]
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    truth = dwconv_norm_reference(*wide, padding=6)
    dy = draw(*truth.shape)
    truth.backward(dy.double())
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y = op.dwconv_norm(*leaves, padding=6)
    assert error(y.detach(), truth.detach()) < 2e-6
    y.backward(dy)
    for leaf, exact in zip(leaves, wide, strict=True):
        assert error(leaf.grad, exact.grad) < 1e-5
