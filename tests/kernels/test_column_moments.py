import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_fast.kernels import column_moments as module
from jepa_fast.kernels import extension
from jepa_fast.kernels.column_moments import ColumnMoments, column_moments, column_moments_reference

# Relative error against extended precision: float32 results are off by half a unit in the last place.
TOLERANCES = {torch.float32: 1e-7, torch.bfloat16: 1e-7, torch.float64: 1e-11}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# One chunk of rows is 64, one block of columns 16 (CPU) or 32 (CUDA): sizes below, at and above, odd, prime, one.
SIZES = [(2, 1), (3, 5), (17, 16), (63, 17), (64, 32), (65, 33), (128, 128), (1009, 37), (4097, 3), (70001, 2)]

needs_library = pytest.mark.skipif(
    not extension.LIBRARY.exists(), reason="jepa_fast is installed without its compiled extension"
)


def exact_moments(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Two passes in extended precision."""
    wide = x.detach().cpu().to(torch.float64).numpy().astype(np.longdouble)
    return wide.mean(axis=0), wide.var(axis=0, ddof=1)


def assert_exact(moments: ColumnMoments, x: torch.Tensor) -> None:
    mean, variance = exact_moments(x)
    tolerance = TOLERANCES[x.dtype]
    assert moments.mean.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert moments.variance.dtype == moments.mean.dtype
    # A mean near zero is exact relative to the spread of its column, not to itself.
    mean_scale = np.maximum(np.abs(mean), np.sqrt(variance))
    assert np.all(np.abs(moments.mean.cpu().numpy() - mean) <= tolerance * mean_scale)
    assert np.all(np.abs(moments.variance.cpu().numpy() - variance) <= tolerance * variance)


def random_matrix(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, mean: float = 0.0, device: str = "cpu"
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) + mean).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_matches_extended_precision(rows: int, columns: int, dtype: torch.dtype, device: str) -> None:
    x = random_matrix(rows, columns, dtype, device=device)
    assert_exact(column_moments(x), x)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_reference_matches_extended_precision(dtype: torch.dtype) -> None:
    x = random_matrix(1009, 37, dtype, mean=3.0)
    assert_exact(column_moments_reference(x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_mean_costs_no_accuracy(dtype: torch.dtype, device: str) -> None:
    x = random_matrix(5003, 19, dtype, mean=1e4, device=device)
    assert_exact(column_moments(x), x)


@pytest.mark.parametrize("device", DEVICES)
def test_outlier_in_the_first_row_costs_no_accuracy(device: str) -> None:
    x = random_matrix(130, 18, torch.float64, device=device)
    x[0] = 1e9
    assert_exact(column_moments(x), x)


@pytest.mark.parametrize("device", DEVICES)
def test_constant_column_has_variance_zero(device: str) -> None:
    x = torch.full((1000, 20), 0.1, device=device)
    moments = column_moments(x)
    assert torch.equal(moments.variance, torch.zeros(20, device=device))
    assert torch.equal(moments.mean, x[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[::3, 1::2],
        lambda x: x[5:, 3:40],
        lambda x: x[:, :1].expand(-1, 5),
        lambda x: x[:1].expand(7, -1) + torch.arange(7, device=x.device)[:, None],
        lambda x: x[:, 0].unfold(0, 9, 1),
    ],
    ids=["transposed", "strided", "sliced", "expanded columns", "row sums", "overlapping"],
)
def test_any_strides_give_the_moments_of_the_values(view, device: str) -> None:
    x = view(random_matrix(101, 53, device=device))
    assert_exact(column_moments(x), x)


@given(
    rows=st.integers(2, 200),
    columns=st.integers(1, 70),
    row_step=st.integers(1, 3),
    column_step=st.integers(1, 3),
    mean=st.sampled_from([0.0, -7.0, 1e4]),
    dtype=st.sampled_from(list(TOLERANCES)),
)
def test_any_shape_and_step_matches_extended_precision(
    rows: int, columns: int, row_step: int, column_step: int, mean: float, dtype: torch.dtype
) -> None:
    x = random_matrix(rows * row_step, columns * column_step, dtype, mean)[::row_step, ::column_step]
    assert_exact(column_moments(x), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("implementation", [column_moments, column_moments_reference])
@pytest.mark.parametrize("row", [0, 1, 64, 129])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_value_spoils_its_column_alone(implementation, row: int, value: float, device: str) -> None:
    x = random_matrix(130, 35, device=device)
    clean = implementation(x)
    x[row, 20] = value
    spoilt = implementation(x)
    others = torch.arange(35, device=device) != 20
    assert torch.isnan(spoilt.variance[20])
    assert not torch.isfinite(spoilt.mean[20])
    assert torch.equal(spoilt.mean[others], clean.mean[others])
    assert torch.equal(spoilt.variance[others], clean.variance[others])


def test_no_columns_give_empty_moments() -> None:
    moments = column_moments(torch.zeros(4, 0))
    assert moments.mean.shape == moments.variance.shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_two_runs_give_the_same_bits(dtype: torch.dtype, device: str) -> None:
    x = random_matrix(20011, 131, dtype, device=device)
    first, second = column_moments(x), column_moments(x)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.variance, second.variance)


@needs_library
def test_number_of_threads_does_not_change_a_bit() -> None:
    x = random_matrix(20011, 131)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(column_moments(x))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result.mean, results[0].mean)
        assert torch.equal(result.variance, results[0].variance)


def test_no_gradient_flows() -> None:
    x = random_matrix(10, 3).requires_grad_()
    moments = column_moments(x)
    assert not moments.mean.requires_grad
    assert not moments.variance.requires_grad


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), r"x: got shape \(4,\), expected two dimensions \[N, D\]"),
        (torch.zeros(2, 3, 4), r"x: got shape \(2, 3, 4\), expected two dimensions"),
        (torch.zeros(1, 4), r"x: got N = 1 rows, expected at least 2"),
        (torch.zeros(0, 4), r"x: got N = 0 rows, expected at least 2"),
        (torch.zeros(3, 4, dtype=torch.float16), r"x: got torch.float16, expected float32, float64 or bfloat16"),
        (torch.zeros(3, 4, dtype=torch.int64), r"x: got torch.int64, expected"),
    ],
)
def test_bad_input_is_named(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        column_moments(x)


@needs_library
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), "x: got 1 dimensions, expected 2"),
        (torch.zeros(1, 4), "x: got N = 1 rows, expected at least 2"),
        (torch.zeros(3, 4, dtype=torch.float16), "x: got dtype Half, expected float32, float64 or bfloat16"),
    ],
)
def test_compiled_kernel_checks_its_input_itself(x: torch.Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.jepa_fast.column_moments(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_operator_is_registered_soundly(dtype: torch.dtype, device: str) -> None:
    x = random_matrix(33, 7, dtype, device=device)
    torch.library.opcheck(torch.ops.jepa_fast.column_moments.default, (x,))
    torch.library.opcheck(torch.ops.jepa_fast.column_moments.default, (x.T,))


def test_schema_is_the_same_with_and_without_the_library() -> None:
    assert str(torch.ops.jepa_fast.column_moments.default._schema) == module.OPERATOR + module.SCHEMA


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_graph_equals_eager(device: str) -> None:
    def spread(x: torch.Tensor) -> torch.Tensor:
        return column_moments(x * 2).variance.sqrt().min()

    x = random_matrix(65, 9, device=device)
    assert torch.equal(torch.compile(spread, fullgraph=True)(x), spread(x))


@needs_library
def test_library_serves_the_cpu() -> None:
    assert extension.load() is None
    assert extension.has_kernel("column_moments", "cpu")


def test_fallback_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "load", lambda: "no library here")
    module._announce_fallback.cache_clear()
    x = random_matrix(9, 4)
    with caplog.at_level(logging.WARNING):
        mean, variance = module._column_moments_fallback(x)
        module._column_moments_fallback(x)
    module._announce_fallback.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "jepa_fast::column_moments on cpu runs in plain PyTorch: no library here"
    ]
    assert_exact(ColumnMoments(mean, variance), x)
