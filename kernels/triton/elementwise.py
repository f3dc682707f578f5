"""Functions that the kernels here share; where an axis matters, of tiles [features, trajectories]."""

import triton
import triton.language as tl

from jepa_fast.kernels.dropout import SITE_PREDICTOR

EPS = tl.constexpr(1e-5)
SITE = tl.constexpr(SITE_PREDICTOR)


@triton.jit
def mix(bits):
    """Bijective mixing of uint32, the one of jepa_fast.kernels.dropout."""
    bits = bits ^ (bits >> 16)
    bits = bits * 0x7FEB352D
    bits = bits ^ (bits >> 15)
    bits = bits * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def dropout_keys(clock_ptr):
    """Both keys of the mask, uint32, and the first row of this process."""
    seed = tl.load(clock_ptr)
    step = tl.load(clock_ptr + 1).to(tl.uint32)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    first_key = mix(mix(low ^ mix(high)) ^ mix(step ^ (SITE << 24)))
    return first_key, mix(first_key ^ 0x9E3779B9), tl.load(clock_ptr + 2)


@triton.jit
def dropout_factor(elements, first_key, second_key, DROP_BELOW: tl.constexpr, KEPT: tl.constexpr):
    """0 or KEPT for elements uint32, counted through the mask."""
    bits = mix(mix(elements ^ first_key) + second_key)
    return tl.where(bits >= DROP_BELOW, KEPT, 0.0)


@triton.jit
def normal_tail(x):
    """Phi(-|x|), Phi the normal distribution function, off by less than 1e-7, and exp(-x^2 / 2).

    15 instructions, half of erf's, and the slope needs the second one too. Source: Abramowitz and Stegun, Handbook of
    Mathematical Functions, 7.1.26.
    """
    bell = tl.exp2(x * x * -0.7213475204444817)  # -log2(e) / 2
    d = tl.fma(tl.abs(x), 0.23164188542443267, 1.0)
    # 1 / d in two instructions; a division takes eight.
    t = tl.rsqrt(d * d)
    tail = tl.fma(t, 0.5307027145, -0.7265760135)
    tail = tl.fma(t, tail, 0.7107068705)
    tail = tl.fma(t, tail, -0.142248368)
    tail = tl.fma(t, tail, 0.127414796)
    return tail * t * bell, bell


@triton.jit
def gelu(x):
    """x Phi(x)."""
    return tl.fma(-tl.abs(x), normal_tail(x)[0], tl.maximum(x, 0.0))


@triton.jit
def gelu_slope(x):
    """Derivative of gelu."""
    tail, bell = normal_tail(x)
    return tl.fma(x * bell, 0.3989422804014327, tl.where(x < 0.0, tail, 1.0 - tail))  # 1 / sqrt(2 pi)


@triton.jit
def normalise(x, N: tl.constexpr):
    """x [N, ROWS] without its mean and in units of its standard deviation; the mean, and one over the other [ROWS]."""
    mean = tl.sum(x, 0) / N
    x -= mean[None, :]
    scale = tl.rsqrt(tl.sum(x * x, 0) / N + EPS)
    return x * scale[None, :], mean, scale


@triton.jit
def normalise_backward(gradient, normalised, scale, N: tl.constexpr):
    """Gradient of what was normalised."""
    mean = tl.sum(gradient, 0) / N
    along = tl.sum(gradient * normalised, 0) / N
    return scale[None, :] * (gradient - mean[None, :] - normalised * along[None, :])


@triton.jit
def load_column(pointer, index):
    """A vector of parameters as a column [N, 1]."""
    return tl.load(pointer + index)[:, None]
