"""What every launch of a Triton kernel shares."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be that of the tensors. The interpreter has no device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
