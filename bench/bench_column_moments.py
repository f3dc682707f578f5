import pytest
import torch
from torch import Tensor

from jepa_fast.kernels import extension
from jepa_fast.kernels.column_moments import column_moments, column_moments_reference

# One batch of predictions (128 trajectories of 16 steps), one of a larger model, and a whole probing set.
SHAPES = [(2048, 128), (2048, 512), (131072, 128)]
DTYPES = [torch.float32, torch.bfloat16]


def eager(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=0)
    return mean, variance


CANDIDATES = {"jepa_fast": column_moments, "eager": eager, "compiled": torch.compile(eager)}


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_column_moments(
    benchmark, report, device: str, shape: tuple[int, int], dtype: torch.dtype, candidate: str
) -> None:
    benchmark.group = f"column_moments {shape} {dtype}"
    if candidate == "jepa_fast" and not extension.has_kernel("column_moments", device):
        pytest.skip(f"no compiled kernel for {device}")
    x = torch.randn(shape, device=device).to(dtype)
    function = CANDIDATES[candidate]
    truth = column_moments_reference(x)
    # Statistics in bfloat16, as the two baselines give them for bfloat16 input, carry eight bits.
    tolerance = 1e-5 if candidate == "jepa_fast" or dtype == torch.float32 else 1e-2
    mean, variance = function(x)
    assert torch.allclose(mean.float(), truth.mean, rtol=tolerance, atol=tolerance)
    assert torch.allclose(variance.float(), truth.variance, rtol=tolerance, atol=tolerance)
    benchmark(function, x)
    rows, columns = shape
    report(rows * columns * x.element_size() + 8 * columns)
