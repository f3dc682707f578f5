"""The cache-sized ops against the layers they stand for, piece borders included."""

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.model import hidden_ops
from jepa_fast.model.hidden_ops import hidden_pool, norm_mlp
from jepa_fast.model.window_heads import pooling_matrix
from jepa_fast.model.window_ops import crop, depthwise, difference, pool

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
    monkeypatch.setattr(hidden_ops, "PIECE", 8)
    z, weights = draw(pixels, 3), layers(3)
    assert torch.allclose(norm_mlp(z, *weights, EPS), gelu_of(z, *weights[:3]) @ weights[3].T, rtol=1e-12)
    assert gradcheck(lambda *inputs: norm_mlp(*inputs, EPS), [z, *weights])


@pytest.mark.parametrize("piece", [1, 40, 1000])
def test_hidden_pool_equals_its_layers_whatever_the_pieces(monkeypatch, piece):
    monkeypatch.setattr(hidden_ops, "PIECE", piece)
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


@pytest.mark.parametrize("padding", [(3, 3), (6, 6), (3, 6)])
def test_depthwise_equals_the_convolution(padding):
    x, weight = draw(2, 4, 5, 3), draw(3, 1, 7, 7)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding, groups=3).permute(0, 2, 3, 1)
    addend = torch.randn_like(expected, requires_grad=True)
    assert torch.allclose(depthwise(x, weight, padding, addend), expected + addend, rtol=1e-12)
    assert gradcheck(lambda x, w, a: depthwise(x, w, padding, a), [x, weight, addend])


def test_crop_reads_each_window_and_its_gradient_adds_where_windows_overlap():
    base = draw(2, 5, 6, 2)
    corners, groups = torch.tensor([[0, 0], [3, 4], [1, 2], [1, 2]]), torch.tensor([0, 1, 1, 1])
    windows = crop(base, corners, groups, (1, 2), (4, 6))
    padded = F.pad(base, (0, 0, 2, 2, 1, 1))
    for window, (row, column), group in zip(windows, corners.tolist(), groups.tolist(), strict=True):
        assert torch.equal(window, padded[group, row : row + 4, column : column + 6])
    assert gradcheck(lambda base: crop(base, corners, groups, (1, 2), (4, 6)), [base])


def test_pool_is_adaptive_average_pooling():
    for height, width in [(65, 65), (6, 7), (13, 40)]:
        x = draw(2, height, width, 3)
        got = pool(x, pooling_matrix(height, x), pooling_matrix(width, x))
        expected = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 6).permute(0, 2, 3, 1)
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_a_difference_is_that_to_the_crop_and_zero_off_the_image():
    base, values = draw(2, 5, 6, 3).detach().requires_grad_(), draw(4, 4, 6, 3).detach().requires_grad_()
    corners, groups = torch.tensor([[0, 0], [3, 1], [2, 4], [3, 4]]), torch.tensor([1, 0, 0, 1])
    ours = difference(values, base, corners, groups, (1, 2))
    inside = crop(torch.ones_like(base), corners, groups, (1, 2), (4, 6))
    torch.testing.assert_close(ours, (values - crop(base, corners, groups, (1, 2), (4, 6))) * inside)
    assert 0 < inside.mean() < 1
    assert gradcheck(lambda *leaves: difference(*leaves, corners, groups, (1, 2)), [values, base])


def test_registrations_are_sound():
    z, weights = draw(2, 4, 3, 2), layers(2)
    ops = torch.ops.jepa_fast
    torch.library.opcheck(ops.norm_mlp, (z, *weights, EPS, torch.float64))
    rows, columns = draw(2, 6, 4).detach(), draw(2, 6, 3).detach()
    torch.library.opcheck(ops.hidden_pool, (z, *weights[:3], rows, columns, EPS, torch.float64))
    torch.library.opcheck(ops.depthwise, (z, draw(2, 1, 7, 7), [3, 6], None))
    corners, groups = torch.tensor([[0, 0], [3, 1]]), torch.tensor([1, 0])
    torch.library.opcheck(ops.crop, (draw(2, 5, 6, 2), corners, groups, [1, 2], [4, 6], False))
    torch.library.opcheck(ops.window_difference, (draw(2, 4, 6, 2), draw(2, 5, 6, 2), corners, groups, [1, 2], False))
