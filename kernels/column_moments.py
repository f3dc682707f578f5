"""Mean and unbiased variance of every column of a matrix: how far a batch of latents is from collapse.

    mean_j = sum_i x_ij / N        variance_j = sum_i (x_ij - mean_j)^2 / (N - 1)

x [N, D] float32, float64 or bfloat16, any strides, N >= 2 -> mean [D], variance [D]: float64 for float64, else float32.
Accumulation is in float64 whatever the input, so a mean of 1e4 costs the variance nothing: sums are taken over values
shifted by the first row of a chunk of rows, and chunks are merged by the pairwise update. A NaN or an infinity makes
the variance of its column NaN and leaves the other columns alone.

Deterministic: the same bits for any number of threads. No gradient: this is a monitor, the result is detached.
Bytes moved: N D s + 32 D N / 64 + 8 D for elements of s bytes. FLOPs: 4 N D, in float64.
Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.
"""

import functools
import logging
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_fast.kernels import extension

OPERATOR = "jepa_fast::column_moments"
SCHEMA = "(Tensor x) -> (Tensor mean, Tensor variance)"
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

logger = logging.getLogger(__name__)


class ColumnMoments(NamedTuple):
    """What `column_moments` gives, one value per column: float64 for float64 input, else float32."""

    mean: Tensor  # [D]
    variance: Tensor  # [D], unbiased


def column_moments_reference(x: Tensor) -> ColumnMoments:
    """The same in plain PyTorch, in float64: the truth the kernels are tested against, and the fallback."""
    variance, mean = torch.var_mean(x.detach().to(torch.float64), dim=0, correction=1)
    return ColumnMoments(mean.to(_result_dtype(x)), variance.to(_result_dtype(x)))


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(x: Tensor) -> None:
    """Raise ValueError unless `x` is a matrix that has column moments."""
    if x.dim() != 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected two dimensions [N, D]")
    if x.shape[0] < 2:
        raise ValueError(f"x: got N = {x.shape[0]} rows, expected at least 2")
    if x.dtype not in DTYPES:
        raise ValueError(f"x: got {x.dtype}, expected float32, float64 or bfloat16")


@functools.cache
def _announce_fallback(device_type: str) -> None:
    reason = extension.load() or f"the compiled extension has no {device_type} kernel for it"
    logger.warning("%s on %s runs in plain PyTorch: %s", OPERATOR, device_type, reason)


def _column_moments_fallback(x: Tensor) -> tuple[Tensor, Tensor]:
    _announce_fallback(x.device.type)
    return column_moments_reference(x)


def _column_moments_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    _check(x)
    return x.new_empty(x.shape[1], dtype=_result_dtype(x)), x.new_empty(x.shape[1], dtype=_result_dtype(x))


extension.load()
if not hasattr(torch.ops.jepa_fast, "column_moments"):
    torch.library.define(OPERATOR, SCHEMA)
# For every device: a kernel compiled for one device takes precedence there.
torch.library.register_kernel(OPERATOR, None, _column_moments_fallback)
torch.library.register_fake(OPERATOR, _column_moments_fake)


def column_moments(x: Tensor) -> ColumnMoments:
    """Mean and unbiased variance of every column of `x` [N, D], detached: no gradient flows through them.

    Raises:
        ValueError: x is not a matrix of at least two rows in float32, float64 or bfloat16.
    """
    _check(x)
    mean, variance = torch.ops.jepa_fast.column_moments(x.detach())
    return ColumnMoments(mean, variance)
