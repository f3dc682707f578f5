"""The compiled part of jepa_fast: whether it is there, and how it is loaded."""

import functools
import hashlib
import re
import struct
from pathlib import Path

import torch

# Not a Python module: a library of operators behind torch's stable C interface, the same for every Python.
LIBRARY = Path(__file__).parent.parent / "_C.abi3.so"
# All that csrc/bindings defines: a library of older sources lacks some.
OPERATORS = (
    "convnext_block_cpu", "convnext_block_cpu_backward", "cpu_instruction_set", "dropout_mask", "feature_gate",
    "feature_gate_backward", "gated_columns", "gated_columns_backward", "gated_likelihood",
    "gated_likelihood_backward", "locate", "locate_backward", "multiply_adds", "paste_windows",
    "paste_windows_backward", "probe_outputs", "probe_train", "read_centres", "read_layout", "rollout_cpu",
    "rollout_cpu_backward", "vicreg", "vicreg_backward", "window_chain", "window_chain_backward",
)  # fmt: skip
# What csrc/seal.cmake ends it with.
_SEAL = re.compile(rb"jepa_fast ([0-9a-f]{64}) (\d+)\n\Z")


@functools.cache
def load() -> str | None:
    """Load the operators of jepa_fast._C once. Returns None when they are there, else why not, in one line."""
    if not LIBRARY.exists():
        return "jepa_fast was installed without its compiled extension"
    content = LIBRARY.read_bytes()
    damage = find_damage(content)
    if damage is not None:
        return f"{LIBRARY.name} {damage}, reinstall jepa_fast"
    # Seen before it is loaded: what a library has registered, plain PyTorch cannot be registered for any more.
    missing = [name for name in OPERATORS if f"{name}(".encode() not in content]
    if content[:4] == b"\x7fELF" and missing:
        return f"{LIBRARY.name} was built from older sources, without {', '.join(missing)}, reinstall jepa_fast"
    try:
        torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
    except OSError as error:
        # torch wraps the loader's message, which names the symbol or library that is missing.
        reason = " ".join(str(error.__cause__ or error).split())
        return f"{LIBRARY.name} does not fit torch {torch.__version__}, reinstall jepa_fast ({reason})"
    return None


def find_damage(content: bytes) -> str | None:
    """What is wrong with a library's bytes, in a few words: loading one that was cut short would end the process.

    One that was built otherwise than by CMakeLists.txt, or earlier, has no checksum; its own tables then tell its size.
    """
    seal = _SEAL.search(content, max(0, len(content) - 200))
    if seal is not None:
        body = content[: seal.start()]
        right = len(body) == int(seal[2]) and hashlib.sha256(body).hexdigest().encode() == seal[1]
        return None if right else "is damaged: its content is not what its checksum was made of"
    if content[:6] != b"\x7fELF\x02\x01":
        return None
    whole = 64  # bytes of its header
    if len(content) >= whole:
        # Its last table is that of its sections: where it begins, the size of an entry and their number.
        (first,), (size, count) = struct.unpack_from("<Q", content, 40), struct.unpack_from("<HH", content, 58)
        whole = first + size * count
    return None if len(content) >= whole else f"is cut short: found {len(content)} bytes, expected {whole} or more"


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
