"""What every launch of a Triton kernel shares."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be that of the tensors. The interpreter has no device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def resident_programs(x: Tensor) -> int:
    """How many programs a persistent kernel starts: three per multiprocessor, what 160 registers leave room for."""
    return 3 * _multiprocessors(x.device) if x.is_cuda else 3


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
