"""Tests here need Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`.

float32 only: the interpreter multiplies the bit patterns of bf16 in tl.dot.
"""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


def relative_error(ours, truth) -> float:
    """Norm of the error over the norm of the truth, float64."""
    return ((ours.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.fixture
def error():
    return relative_error
