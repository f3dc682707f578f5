"""The CUDA sources of vicreg, compiled for the CPU and run thread by thread: indices, order of sums and accuracy.

Tensor cores are emulated by their layout and with worse rounding than theirs. This says nothing about speed, and a GPU
has the last word: test_vicreg runs there too.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from jepa_fast.kernels.vicreg import vicreg_reference

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc"
VALUE_TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-5}
GRADIENT_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
WEIGHTS = torch.tensor([25.0, 15.0, 2.0])
# Tiles are 64 x 64, rows come 32 at a time: one, odd, below, at and above, several groups, splits and tiles.
SIZES = [(1, 2, 1), (3, 33, 5), (2, 64, 64), (1, 129, 65), (1, 97, 130)]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ not found")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    for name in ("vicreg.h", "scalar.h", "cuda/tensor_tile.cuh"):
        shutil.copy(SOURCES / name, folder)
    for path in (HERE / "cuda_on_cpu").iterdir():
        shutil.copy(path, folder)
    for name in ("vicreg", "vicreg_backward"):
        text = (SOURCES / "cuda" / f"{name}.cu").read_text()
        kernels = text.count("__global__")
        # kernel<<<grid, block, 0, stream>>>(arguments); becomes a call that runs it for every thread.
        text, launches = re.subn(
            r"(\w+(?:<[^<>]*>)?)<<<(.*?), 0, stream>>>\((.*?)\);",
            r"emulation::launch(\2, [=] { \1(\3); });",
            text,
            flags=re.DOTALL,
        )
        assert launches >= kernels > 0
        (folder / f"{name}.cpp").write_text(text)
    flags = (
        "-std=c++20 -O1 -ffp-contract=off -fno-strict-aliasing -shared -fPIC -I. -include cuda_runtime.h -D__CUDACC__"
    )
    command = ["g++", *flags.split(), "-o", "cuda.so"]
    sources = ["vicreg.cpp", "vicreg_backward.cpp", "driver.cpp"]
    done = subprocess.run([*command, *sources], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(folder / "cuda.so")


def states(groups, rows, dim, dtype, mean=0.0, scale=0.7):
    generator = torch.Generator().manual_seed(rows * 1000 + dim)
    pair = torch.randn(2, groups, rows, dim, generator=generator, dtype=torch.float64)
    mixing = torch.eye(dim) + torch.randn(dim, dim, generator=generator, dtype=torch.float64) / (2 * dim**0.5)
    return ((pair @ mixing) * scale + mean).to(dtype).unbind(0)


def run(library, x, target, gamma=1.0, eps=1e-4, split_rows=0, target_gradient=True):
    """Terms and gradients by the CUDA sources; results start out as NaN. split_rows = 0 leaves the cut to them."""
    groups, rows, dim = x.shape
    assert x.stride(2) == 1
    assert target is None or target.stride(2) == 1
    strides = (*x.stride()[:2], *((0, 0) if target is None else target.stride()[:2]))
    shape = (ctypes.c_int64 * 7)(groups, rows, dim, *strides)
    mean = torch.full((groups, dim), torch.nan, dtype=torch.float64)
    covariance = torch.full((groups, dim, dim), torch.nan)
    terms = torch.full((3,), torch.nan)
    dx = torch.full((groups, rows, dim), torch.nan, dtype=x.dtype)
    dtarget = torch.full_like(dx, torch.nan) if target is not None and target_gradient else None

    def pointer(tensor):
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

    inputs = (pointer(x), pointer(target), ctypes.c_bool(x.dtype == torch.bfloat16), shape)
    options = (ctypes.c_double(gamma), ctypes.c_double(eps), ctypes.c_double(dim))
    results = (pointer(mean), pointer(covariance), pointer(terms))
    assert library.vicreg_forward(*inputs, *options, ctypes.c_int64(split_rows), *results) == 0
    statistics = (pointer(mean), pointer(covariance))
    assert library.vicreg_backward(pointer(WEIGHTS), *inputs, *options, *statistics, pointer(dx), pointer(dtarget)) == 0
    torch.testing.assert_close(covariance, covariance.transpose(1, 2), rtol=0, atol=0, equal_nan=True)
    return terms, dx, dtarget


def assert_matches_float64(library, x, target, split_rows=0, **options):
    wide = [None if state is None else state.double().requires_grad_() for state in (x, target)]
    truth = vicreg_reference(*wide, **options)
    (truth * WEIGHTS.double()).sum().backward()
    terms, dx, dtarget = run(library, x, target, split_rows=split_rows, **options)
    torch.testing.assert_close(terms.double(), truth.detach(), rtol=VALUE_TOLERANCES[x.dtype], atol=0)
    for ours, exact in ((dx, wide[0].grad), (dtarget, None if target is None else wide[1].grad)):
        if ours is not None:
            assert (ours.double() - exact).norm() <= GRADIENT_TOLERANCES[x.dtype] * exact.norm()


@pytest.mark.parametrize("dtype", VALUE_TOLERANCES)
@pytest.mark.parametrize(("groups", "rows", "dim"), SIZES)
def test_terms_and_gradients_match_float64(library, groups, rows, dim, dtype):
    assert_matches_float64(library, *states(groups, rows, dim, dtype), gamma=1.5, eps=1e-3)


def test_terms_and_gradient_without_a_target_match_float64(library):
    assert_matches_float64(library, states(1, 100, 20, torch.float32)[0], None)


def test_a_mean_of_ten_thousand_costs_no_accuracy(library):
    assert_matches_float64(library, *states(1, 300, 40, torch.float32, mean=1e4, scale=1.0), gamma=2.0)


def test_long_sums_are_not_biased_by_truncation(library):
    x, target = states(1, 2048, 3, torch.float32)
    # All rows in one split: the longest float sum that there is.
    assert_matches_float64(library, x, target, gamma=2.0, split_rows=2048)


@pytest.mark.parametrize("dtype", VALUE_TOLERANCES)
def test_strides_of_groups_and_rows_are_followed(library, dtype):
    x, target = states(40, 3, 9, dtype)
    x, target = x.transpose(0, 1), target.transpose(0, 1).contiguous()
    assert_matches_float64(library, x, target, gamma=2.0)


def test_no_target_gradient_is_written_unless_asked_for(library):
    x, target = states(1, 40, 8, torch.float32)
    with_target, without = (run(library, x, target, target_gradient=wanted) for wanted in (True, False))
    assert without[2] is None
    assert torch.equal(with_target[1], without[1])


def test_a_value_that_is_not_finite_shows_in_every_term_and_in_the_gradient(library):
    x, target = states(1, 100, 70, torch.float32)
    x[0, 50, 66] = torch.inf
    terms, dx, _ = run(library, x, target)
    assert not torch.isfinite(terms).any()
    assert torch.isnan(dx[0, :, 66]).all()
