"""Which backend an op runs on here, and why not another: the Triton kernels, the compiled extension, plain PyTorch."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from jepa_fast.kernels import extension

# bfloat16 on tensor cores begins here.
LEAST_CAPABILITY = (8, 0)
PLAIN = "plain PyTorch"
# Of the compiled blocks.
CHANNEL_STEP, MOST_CHANNELS = 8, 128

Function = TypeVar("Function", bound=Callable[..., object])


def constant_when_compiled(function: Function) -> Function:
    """Have torch.compile take what `function` returns for a constant, and not look inside.

    torch.compiler.assume_constant_result does nothing else, but imports torch._dynamo for it, which takes longer than
    torch: 1.4 s of CPU time in every command, also in those that compile nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def why_no_extension(operator: str, device: Literal["cpu", "cuda"]) -> str | None:
    """Why the compiled `jepa_fast::operator` does not run on `device`, or None."""
    reason = extension.load()
    if reason is None and not extension.has_kernel(operator, device):
        reason = f"jepa_fast was compiled without {device} kernels"
    return reason


def why_no_compiled_blocks(channels: int, like: Tensor) -> str | None:
    """Why the compiled ConvNeXt blocks do not run on so many channels with the device and dtype of `like`, or None."""
    if like.dtype not in (torch.float32, torch.float64):
        return f"compiled blocks are of float32 and float64, not of {like.dtype}"
    return _constant_reason(channels, like.device.type)


@constant_when_compiled
def _constant_reason(channels: int, device: str) -> str | None:
    return _why_no_compiled_blocks(channels, device)


@functools.cache
def _why_no_compiled_blocks(channels: int, device: str) -> str | None:
    if device != "cpu":
        return "the compiled blocks run on a CPU alone"
    reason = why_no_extension("window_chain", "cpu") or why_no_instruction_set()
    if reason is None and (channels % CHANNEL_STEP != 0 or not CHANNEL_STEP <= channels <= MOST_CHANNELS):
        reason = f"{channels} channels, the compiled blocks take multiples of {CHANNEL_STEP} up to {MOST_CHANNELS}"
    return reason


@functools.cache
def why_no_compiled_rollout() -> str | None:
    """Why the compiled rollout does not run on a CPU, or None."""
    return why_no_extension("rollout_cpu", "cpu") or why_no_instruction_set()


# torch.compile does not look inside.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_no_compiled_op(operator: str) -> str | None:
    """Why the compiled `jepa_fast::operator`, does not run on a CPU, or None."""
    return _why_no_compiled_op(operator)


@functools.cache
def _why_no_compiled_op(operator: str) -> str | None:
    return why_no_extension(operator, "cpu") or why_no_instruction_set()


def why_no_instruction_set() -> str | None:
    """Why the compiled CPU kernels, which are there, have no instruction set to run on, or None."""
    if extension.instruction_set():
        return None
    return f"JEPA_FAST_CPU_ISA is {os.environ['JEPA_FAST_CPU_ISA']}, which this processor or build does not have"


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
