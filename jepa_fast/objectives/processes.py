"""What several processes that share an objective exchange; gradients are those of each process's own rows."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Rows of all processes, in the order of their ranks; the gradient is that of this process's own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, rows.contiguous(), group=group)
        ctx.own = slice(group.rank() * len(rows), (group.rank() + 1) * len(rows))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own], None


def gathered(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rows [N, ...] of all processes, in the order of their ranks; its gradient is that of this process's own rows."""
    whole: Tensor = _Gather.apply(rows, group)  # type: ignore[no-untyped-call]
    return whole


def mean_over_processes(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The mean over all processes of values [N] that each has; its gradient on each is exact for the process's own."""
    return gathered(values[None], group).mean(dim=0)
