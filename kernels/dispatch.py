"""Which backend an op runs on here, and why not another: the Triton kernels, the compiled extension, plain PyTorch."""

import functools
import importlib.util
import os
import shutil
from typing import Literal

import torch

from jepa_fast.kernels import extension

# bfloat16 on tensor cores begins here.
LEAST_CAPABILITY = (8, 0)
PLAIN = "plain PyTorch"


def why_no_extension(operator: str, device: Literal["cpu", "cuda"]) -> str | None:
    """Why the compiled `jepa_fast::operator` does not run on `device`, or None."""
    reason = extension.load()
    if reason is None and not extension.has_kernel(operator, device):
        reason = f"jepa_fast was compiled without {device} kernels"
    return reason


@functools.cache
def why_no_triton(device: Literal["cpu", "cuda"]) -> str | None:
    """Why the Triton kernels do not run, or None."""
    if device != "cuda":
        return "Triton kernels run on CUDA devices alone"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler (gcc, clang or CC) to build its launchers with"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        least = "sm_{}{}".format(*LEAST_CAPABILITY)
        return f"the device is sm_{capability[0]}{capability[1]}, Triton kernels need {least} or newer"
    return None
