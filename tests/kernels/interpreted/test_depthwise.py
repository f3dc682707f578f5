import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels.triton import depthwise as module
from jepa_fast.kernels.triton.depthwise import depthwise, depthwise_weight_gradient, taps_of


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def truth(x, weight, padding, addend=None, shift=(0, 0)):
    out = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), padding=padding, groups=x.shape[3])
    out = out.permute(0, 2, 3, 1).contiguous()
    if addend is not None:
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                a, b = i + shift[0], j + shift[1]
                if 0 <= a < addend.shape[1] and 0 <= b < addend.shape[2]:
                    out[:, i, j] += addend[:, a, b].double()
    return out


@pytest.mark.parametrize(
    ("size", "padding"),
    [((3, 9, 7), (3, 3)), ((2, 7, 8), (6, 6)), ((1, 8, 7), (3, 6)), ((2, 8, 9), (6, 3)), ((1, 7, 9), (0, 0))],
    ids=str,
)
def test_convolution_matches_float64(size, padding, error):
    x, weight = draw(*size, 16), draw(16, 1, 7, 7)
    assert error(depthwise(x, taps_of(weight), padding), truth(x, weight, padding)) < 1e-6


@pytest.mark.parametrize("channels", [96])
def test_every_block_of_channels_is_written(channels, error):
    x, weight = draw(1, 2, 3, channels), draw(channels, 1, 7, 7)
    assert error(depthwise(x, taps_of(weight), (3, 3)), truth(x, weight, (3, 3))) < 1e-6


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 3)], ids=str)
def test_images_smaller_than_the_filter_are_convolved(size, error):
    x, weight = draw(*size, 16), draw(16, 1, 7, 7)
    assert error(depthwise(x, taps_of(weight), (3, 3)), truth(x, weight, (3, 3))) < 1e-6


@pytest.mark.parametrize("shift", [(-3, -2), (1, 4)], ids=str)
def test_addend_is_shifted_and_zero_outside(shift, error):
    x, weight, addend = draw(2, 4, 7, 16), draw(16, 1, 7, 7), draw(2, 5, 9, 16)
    ours = depthwise(x, taps_of(weight), (3, 3), addend, shift)
    assert error(ours, truth(x, weight, (3, 3), addend, shift)) < 1e-6


def test_strips_of_rows_give_the_same_bits(monkeypatch):
    x, weight = draw(1, 12, 8, 16), draw(16, 1, 7, 7)
    whole = depthwise(x, taps_of(weight), (6, 3))
    monkeypatch.setattr(module, "strip_rows", lambda *_: 7)
    assert torch.equal(depthwise(x, taps_of(weight), (6, 3)), whole)


def test_turned_taps_give_the_input_gradient(error):
    x, weight = draw(2, 5, 8, 16).double().requires_grad_(), draw(16, 1, 7, 7)
    out = truth(x, weight, (6, 6))
    gradient = draw(*out.shape)
    out.backward(gradient.double())
    assert error(depthwise(gradient, taps_of(weight, flipped=True), (0, 0)), x.grad) < 1e-6


def test_no_images_give_no_pixels():
    assert depthwise(draw(0, 9, 8, 16), taps_of(draw(16, 1, 7, 7)), (3, 3)).shape == (0, 9, 8, 16)


@pytest.mark.parametrize(("padding", "rows"), [((3, 3), None), ((6, 3), 4)], ids=str)
def test_weight_gradient_matches_float64(padding, rows, error, monkeypatch):
    if rows is not None:
        monkeypatch.setattr(module, "strip_rows", lambda *_: rows)
    x, weight = draw(3, 6, 8, 16), draw(16, 1, 7, 7).double().requires_grad_()
    out = truth(x, weight, padding)
    gradient = draw(*out.shape)
    out.backward(gradient.double())
    assert error(depthwise_weight_gradient(x, gradient, padding), weight.grad) < 1e-6
