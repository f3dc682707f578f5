"""The compiled part of jepa_fast: whether it is there, and how it is loaded."""

import functools
from pathlib import Path

import torch

# Not a Python module: a library of operators behind torch's stable C interface, the same for every Python.
LIBRARY = Path(__file__).parent.parent / "_C.abi3.so"


@functools.cache
def load() -> str | None:
    """Load the operators of jepa_fast._C once. Returns None when they are there, else why not, in one line."""
    if not LIBRARY.exists():
        return "jepa_fast was installed without its compiled extension"
    try:
        torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
    except OSError as error:
        # torch wraps the loader's message, which names the symbol or library that is missing.
        reason = " ".join(str(error.__cause__ or error).split())
        return f"{LIBRARY.name} does not fit torch {torch.__version__}, reinstall jepa_fast ({reason})"
    return None


def has_kernel(operator: str, device_type: str) -> bool:
    """Whether the library is loaded and has a kernel of `jepa_fast::operator` for "cpu" or "cuda"."""
    if load() is not None or not hasattr(torch.ops.jepa_fast, operator):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"jepa_fast::{operator}", device_type.upper())


def instruction_set() -> str:
    """What the compiled CPU kernels were chosen for, "avx512", "avx2", "baseline" or "neon"; empty: there are none.

    JEPA_FAST_CPU_ISA names another one than the processor's best.
    """
    if load() is not None:
        return ""
    name: str = torch.ops.jepa_fast.cpu_instruction_set()
    return name
