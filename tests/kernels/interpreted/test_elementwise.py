import math

import torch
import triton
import triton.language as tl

from jepa_fast.kernels.triton.elementwise import gelu, gelu_slope


@triton.jit
def _gelu_kernel(x_ptr, gelu_ptr, slope_ptr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    x = tl.load(x_ptr + place)
    tl.store(gelu_ptr + place, gelu(x))
    tl.store(slope_ptr + place, gelu_slope(x))


def test_gelu_and_its_slope_are_exact_to_a_few_roundings_of_float32():
    x = torch.linspace(-12, 12, 8192)
    value, slope = torch.empty_like(x), torch.empty_like(x)
    _gelu_kernel[(1,)](x, value, slope, COUNT=len(x))
    wide = x.double()
    below = 0.5 * torch.special.erfc(-wide / math.sqrt(2))
    assert ((value.double() - wide * below).abs() / (1 + wide.abs())).max() < 2e-7
    steepness = below + wide * torch.exp(-wide.square() / 2) / math.sqrt(2 * math.pi)
    # 1e-7 of the polynomial, and two roundings of values up to 1.13.
    assert (slope.double() - steepness).abs().max() < 3.4e-7
