"""Options that this machine lacks, and why; none is dropped without a line in the log."""

import logging
import platform
from dataclasses import replace
from typing import Literal

import torch

from jepa_fast.config import RunConfig

logger = logging.getLogger(__name__)


def without_what_is_missing(config: RunConfig, keep_amp: bool = False) -> RunConfig:
    """`config` with the options switched off that this machine lacks, one log line each.

    `keep_amp` is for a run that goes on: it must go on computing what it computed, however slowly.
    """
    if config.amp == "bf16" and not keep_amp and (reason := why_no_bf16(config.device)):
        logger.warning("amp: float32 in place of bf16: %s", reason)
        config = replace(config, amp="off")
    if config.compile and (reason := why_no_compile(config.device)):
        logger.warning("compile: off: %s", reason)
        config = replace(config, compile=False)
    if config.capture and (reason := why_no_capture(config.device)):
        logger.warning("capture: off: %s", reason)
        config = replace(config, capture=False)
    return config


def profile_here(
    kind: Literal["off", "torch", "nsys"], device: Literal["cpu", "cuda"]
) -> Literal["off", "torch", "nsys"]:
    """`kind`, or what stands in for it on this machine, with a log line."""
    if kind == "nsys" and device != "cuda":
        logger.warning("profile: torch in place of nsys: NVTX ranges need a CUDA device")
        return "torch"
    return kind


def why_no_bf16(device: Literal["cpu", "cuda"]) -> str | None:
    """Why bf16 would not pay, or None."""
    if device == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if has else "the GPU has no bf16 instructions (they begin with sm_80)"
    if platform.machine().lower() in ("x86_64", "amd64"):
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return None if has else "the processor has no bf16 instructions (avx512_bf16 or amx)"
    has = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return None if has else "the processor has no bf16 instructions"


def why_no_compile(device: Literal["cpu", "cuda"]) -> str | None:
    """Why torch.compile would fail, or None."""
    if device == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs triton and a GPU from sm_70 on"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile finds no C++ compiler (g++, clang++ or CXX)"
    return None


def why_no_capture(device: Literal["cpu", "cuda"]) -> str | None:
    """Why there is no CUDA graph, or None."""
    return None if device == "cuda" else "CUDA graphs need a CUDA device"
