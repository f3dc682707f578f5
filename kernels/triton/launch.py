"""What every launch of a Triton kernel shares; importable without Triton."""

import functools
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from jepa_fast.kernels.dispatch import PLAIN, why_no_triton

Grid = tuple[int, int, int]

# Triton's own default, by name: Inductor names another one in the middle of a run, and all kernels compile again.
_HOME = Path(os.environ.get("TRITON_HOME", "~")).expanduser()
os.environ.setdefault("TRITON_CACHE_DIR", str(_HOME / ".triton" / "cache"))

logger = logging.getLogger(__name__)


# Ops and devices whose log line is written.
_announced: set[tuple[str, str]] = set()


def runs_in_triton(operator: str, x: Tensor, otherwise: Callable[[Tensor], str] = lambda x: PLAIN) -> bool:
    """Whether an op on a tensor like `x` takes its Triton kernels; the log says once why not, and what it takes.

    `otherwise` is asked for that line alone.
    """
    device = x.device.type
    reason = why_no_triton("cuda" if device == "cuda" else "cpu")
    if reason is not None and (operator, device) not in _announced:
        _announced.add((operator, device))
        # On a CPU it is what was asked for.
        level = logging.WARNING if device == "cuda" else logging.INFO
        logger.log(level, "%s on %s runs in %s: %s", operator, device, otherwise(x), reason)
    return reason is None


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be that of the tensors. The interpreter has no device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def persistent_programs(x: Tensor, per_multiprocessor: int) -> int:
    """How many programs a persistent kernel starts. A fixed number per device: the order of sums depends on it."""
    return per_multiprocessor * _multiprocessors(x.device) if x.is_cuda else per_multiprocessor


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
