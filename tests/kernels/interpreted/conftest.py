"""Tests here need Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`."""

import os

import numpy as np
import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


def relative_error(ours, truth) -> float:
    """Norm of the error over the norm of the truth, float64."""
    return ((ours.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.fixture
def error():
    return relative_error


def widened(bits):
    """float32 of bfloat16 as the interpreter holds it, in uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values):
    """bfloat16 of float32, to the nearest and of two to the even one, as a device rounds."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


@pytest.fixture
def bfloat16(monkeypatch):
    """Has the interpreter round to bfloat16 and multiply it: by itself it cuts off, and multiplies the bit patterns."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self, source, kind):
        pair = source.dtype.scalar, kind.scalar
        if pair == (tl.float32, tl.bfloat16):
            return TensorHandle(rounded(source.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(source.data), tl.float32)
        return cast(self, source, kind)

    def create_dot(self, a, b, *others):
        a, b = (TensorHandle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(
        InterpreterBuilder, "create_fp_to_fp", lambda self, source, kind, _: cast_impl(self, source, kind)
    )
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
