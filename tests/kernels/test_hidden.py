"""The MLP in pieces that stay in cache against the layers it stands for, piece borders included."""

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels import hidden
from jepa_fast.kernels.hidden import hidden_pool, norm_mlp

EPS = 1e-5


def gradcheck(function, inputs) -> bool:
    # One random direction of all inputs and outputs: each is checked, in a second instead of half a minute.
    return torch.autograd.gradcheck(function, inputs, fast_mode=True)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def layers(channels: int) -> list[torch.Tensor]:
    """gamma, beta, W1, W2."""
    return [draw(channels), draw(channels), draw(4 * channels, channels), draw(channels, 4 * channels)]


def gelu_of(z, gamma, beta, expand):
    return F.gelu(F.layer_norm(z, gamma.shape, gamma, beta, EPS) @ expand.T)


@pytest.mark.parametrize("pixels", [1, 7, 8, 9, 30])
def test_norm_mlp_equals_its_layers_whatever_the_pieces(monkeypatch, pixels):
    monkeypatch.setattr(hidden, "PIECE", 8)
    z, weights = draw(pixels, 3), layers(3)
    assert torch.allclose(norm_mlp(z, *weights, EPS), gelu_of(z, *weights[:3]) @ weights[3].T, rtol=1e-12)
    assert gradcheck(lambda *inputs: norm_mlp(*inputs, EPS), [z, *weights])


@pytest.mark.parametrize("piece", [1, 40, 1000])
def test_hidden_pool_equals_its_layers_whatever_the_pieces(monkeypatch, piece):
    monkeypatch.setattr(hidden, "PIECE", piece)
    z, weights = draw(5, 4, 3, 2), layers(2)[:3]
    rows, columns = draw(5, 6, 4).detach(), draw(5, 6, 3).detach()
    expected = torch.einsum("nri,nijc,nsj->nrsc", rows, gelu_of(z, *weights), columns)
    assert torch.allclose(hidden_pool(z, *weights, rows, columns, EPS), expected, rtol=1e-12)
    assert gradcheck(lambda *inputs: hidden_pool(*inputs, rows, columns, EPS), [z, *weights])


def test_norm_mlp_takes_no_pixels_and_strided_ones():
    weights = layers(3)
    assert norm_mlp(draw(0, 3), *weights, EPS).shape == (0, 3)
    z = draw(4, 3, 5).transpose(1, 2)
    assert torch.allclose(norm_mlp(z, *weights, EPS), norm_mlp(z.contiguous(), *weights, EPS), rtol=1e-12)


def test_registrations_are_sound():
    z, weights = draw(2, 4, 3, 2), layers(2)
    ops = torch.ops.jepa_fast
    torch.library.opcheck(ops.norm_mlp, (z, *weights, EPS, torch.float64))
    rows, columns = draw(2, 6, 4).detach(), draw(2, 6, 3).detach()
    torch.library.opcheck(ops.hidden_pool, (z, *weights[:3], rows, columns, EPS, torch.float64))
