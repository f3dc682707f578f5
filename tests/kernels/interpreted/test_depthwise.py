import pytest
import torch
import torch.nn.functional as F

from jepa_fast.kernels.triton import depthwise as module
from jepa_fast.kernels.triton.depthwise import depthwise, taps_of


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


@pytest.mark.parametrize("padding", [(3, 3), (6, 6), (3, 6), (6, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("size", [(1, 7, 7), (2, 9, 8), (3, 13, 7)], ids=str)
def test_convolution_matches_float64(size, padding, error):
    x, weight = draw(*size, 16), draw(16, 1, 7, 7)
    assert error(depthwise(x, taps_of(weight), padding), truth(x, weight, padding)) < 1e-6


@pytest.mark.parametrize("channels", [32, 96])
def test_every_block_of_channels_is_written(channels, error):
    x, weight = draw(2, 3, 5, channels), draw(channels, 1, 7, 7)
    assert error(depthwise(x, taps_of(weight), (3, 3)), truth(x, weight, (3, 3))) < 1e-6


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 3), (1, 5, 1)], ids=str)
def test_images_smaller_than_the_filter_are_convolved(size, error):
    x, weight = draw(*size, 16), draw(16, 1, 7, 7)
    assert error(depthwise(x, taps_of(weight), (3, 3)), truth(x, weight, (3, 3))) < 1e-6


@pytest.mark.parametrize("shift", [(0, 0), (-3, -3), (3, 2), (-1, 4)], ids=str)
def test_addend_is_shifted_and_zero_outside(shift, error):
    x, weight, addend = draw(2, 6, 7, 16), draw(16, 1, 7, 7), draw(2, 8, 9, 16)
    ours = depthwise(x, taps_of(weight), (3, 3), addend, shift)
    assert error(ours, truth(x, weight, (3, 3), addend, shift)) < 1e-6


def test_strips_of_rows_give_the_same_bits(monkeypatch):
    x, weight = draw(1, 19, 8, 16), draw(16, 1, 7, 7)
    whole = depthwise(x, taps_of(weight), (6, 3))
    monkeypatch.setattr(module, "strip_rows", lambda *_: 7)
    assert torch.equal(depthwise(x, taps_of(weight), (6, 3)), whole)


def test_turned_taps_give_the_input_gradient(error):
    x, weight = draw(2, 9, 8, 16).double().requires_grad_(), draw(16, 1, 7, 7)
    out = truth(x, weight, (6, 6))
    gradient = draw(*out.shape)
    out.backward(gradient.double())
    assert error(depthwise(gradient, taps_of(weight, flipped=True), (0, 0)), x.grad) < 1e-6


def test_no_images_give_no_pixels():
    assert depthwise(draw(0, 9, 8, 16), taps_of(draw(16, 1, 7, 7)), (3, 3)).shape == (0, 9, 8, 16)
