"""What every launch of a Triton kernel shares; importable without Triton."""

import functools
import importlib.util
import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

Grid = tuple[int, int, int]

logger = logging.getLogger(__name__)


def runs_in_triton(operator: str, x: Tensor) -> bool:
    """Whether an op on a tensor like `x` takes its Triton kernels; the log says so once per op and kind of device."""
    return _announce(operator, x.device.type)


@functools.cache
def _announce(operator: str, device_type: str) -> bool:
    if device_type != "cuda":
        logger.info("%s on %s runs in plain PyTorch: its Triton kernels are for CUDA", operator, device_type)
        return False
    if importlib.util.find_spec("triton") is None:
        logger.warning("%s on cuda runs in plain PyTorch: triton is not installed", operator)
        return False
    import triton

    logger.info("%s on cuda runs in Triton %s", operator, triton.__version__)
    return True


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be that of the tensors. The interpreter has no device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def resident_programs(x: Tensor) -> int:
    """How many programs a persistent kernel starts: three per multiprocessor, what 160 registers leave room for."""
    return 3 * _multiprocessors(x.device) if x.is_cuda else 3


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
