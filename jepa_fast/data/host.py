"""The host loader: rows gathered from the memory-mapped shards by one background thread."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from jepa_fast.data.batches import Batch
from jepa_fast.data.sampler import Indices, Sampler, evaluation_order
from jepa_fast.data.shards import Split
from jepa_fast.errors import InputError

# Batches gathered ahead of the consumer.
PREFETCH = 2


class HostLoader:
    """Training batches of `split` in the order of `sampler`, as fresh CPU tensors."""

    def __init__(self, split: Split, sampler: Sampler):
        if sampler.count != split.count:
            raise ValueError(f"sampler: found {sampler.count} trajectories, expected the split's {split.count}")
        self.split = split
        self.sampler = sampler

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches `start` and later of an epoch; may be abandoned at any batch."""
        return _prefetched(self.split, self.sampler.batches(epoch, start))


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """All trajectories of `split` in order; the last batch may be smaller."""
    return _prefetched(split, evaluation_order(split.count, batch_size))


def gather(split: Split, indices: Indices) -> Batch:
    """The Batch of ascending `indices` int64 [B], copied out of the shards into fresh CPU tensors.

    Raises:
        InputError: an action is NaN or infinite.
    """
    layout = split.manifest.layout
    fields = layout.fields()

    def rows(field: str) -> Tensor:
        stored = fields[field]
        kind = {"|u1": torch.uint8, "<i4": torch.int32, "<f4": torch.float32}[stored.dtype]
        tensor = torch.empty((len(indices), *stored.shape), dtype=kind)
        split.take(field, indices, tensor.numpy())
        return tensor

    actions = rows("actions")
    if not bool(actions.isfinite().all()):
        row, step = (~actions.isfinite()).nonzero()[0, :2].tolist()
        raise InputError(f"{split.folder}: trajectory {indices[row]}, step {step}: its action is not finite")
    windowed, grouped = layout.spec.window is not None, layout.spec.wall_window is not None
    return Batch(
        indices=torch.from_numpy(indices.copy()),
        dots=rows("window" if windowed else "dot"),
        corners=rows("corner") if windowed else None,
        walls=rows("wall"),
        actions=actions,
        wall_groups=rows("group") if grouped else None,
        wall_corners=rows("group_corner") if grouped else None,
    )


def wall_bases(split: Split, device: torch.device) -> Tensor | None:
    """The split's wall base images uint8 [G, H, W] on `device`, or none."""
    return None if split.wall_bases is None else torch.from_numpy(split.wall_bases).to(device)


def _prefetched(split: Split, orders: Iterable[Indices]) -> Iterator[Batch]:
    """Gather batches up to PREFETCH ahead; leaving the generator, however that happens, ends its thread."""
    pending: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="host-loader")
    try:
        for indices in orders:
            pending.append(pool.submit(gather, split, indices))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
