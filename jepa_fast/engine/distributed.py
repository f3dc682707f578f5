"""Several processes, one run: `torchrun --nproc-per-node 4 -m jepa_fast.train --preset baseline --data data/full`.

Every process has the whole model and takes its rows of each batch. Gradients are averaged by DistributedDataParallel,
decisions are taken together, and rank 0 alone writes.
"""

import contextlib
import gc
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jepa_fast.errors import RunError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# A process that waits longer than this for another one gives up.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; `ALONE` where it is the only one."""

    count: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and logs."""
        return self.rank == 0

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether any process raised it. All processes call it at the same step."""
        if self.group is None:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self.group)
        return tuple(bool(flag) for flag in raised.tolist())

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.agree(False)

    def ending(self, reason: str) -> BaseException:
        """What every process raises when all agree that the run cannot go on; rank 0 says why."""
        self.barrier()
        return RunError(reason) if self.leads else SystemExit(1)

    def share(self, prepare: Callable[[], Result]) -> Result:
        """What `prepare` gives on rank 0, on every process; where it fails, rank 0 tells why and the others leave."""
        if self.group is None:
            return prepare()
        if not self.leads:
            box: list[Result | None] = [None]
            dist.broadcast_object_list(box, src=0, group=self.group, device=torch.device("cpu"))
            if box[0] is None:
                sys.exit(1)
            return box[0]
        result: Result | None = None
        try:
            result = prepare()
        finally:
            dist.broadcast_object_list([result], src=0, group=self.group, device=torch.device("cpu"))
        return result


ALONE = Ranks()


def averaging(module: nn.Module, group: dist.ProcessGroup) -> nn.Module:
    """`module`, whose backward averages gradients over the processes of `group`."""
    # A convolution's gradient has strides of its own along an axis of length 1, which changes nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Buffers differ on purpose: each process's clock counts from its own first row. torch 2.13 renamed the option.
    options = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    alike: dict[str, Any] = {sync: False}
    # A capture wants it made on a stream that is not the default one.
    on_cuda = next(module.parameters()).is_cuda
    aside = torch.cuda.Stream() if on_cuda else None  # type: ignore[no-untyped-call]
    with torch.cuda.stream(aside) if on_cuda else contextlib.nullcontext():
        return DistributedDataParallel(module, process_group=group, gradient_as_bucket_view=True, **alike)


@contextlib.contextmanager
def joined(device: Literal["cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the processes that torchrun started; a process started by itself is alone.

    Raises:
        RunError: another process of the run is gone.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    rank = int(os.environ["RANK"])
    if rank > 0:
        logging.getLogger().setLevel(logging.WARNING)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Decisions and checkpoints go over gloo, gradients over the device's own library.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    logger.info("%d processes, gradients over %s", count, "nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(count, rank, dist.group.WORLD)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise RunError(
            f"rank {rank} of {count}: another process of the run is gone ({reason}); what it said stands above, "
            f"and --resume goes on from the last checkpoint"
        ) from error
    # Not after an error: it would wait for processes that are gone. Cycles that still hold the group are collected
    # first: its thread may let go of tensors late, and must not meet the end of the interpreter.
    gc.collect()
    dist.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "Connection closed by peer" in text
