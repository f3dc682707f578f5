"""The resident loader: the whole packed split lies in the device's memory, and batches are gathered there."""

import logging
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.data.batches import Batch
from jepa_fast.data.sampler import Indices
from jepa_fast.data.shards import Split
from jepa_fast.data.slots import KINDS, Ring, as_batch, batch_fields, require_finite

# Read and sent in pieces, so that loading needs no second copy of a shard.
CHUNK_BYTES = 64_000_000

logger = logging.getLogger(__name__)


def resident_bytes(split: Split) -> int:
    """Bytes that the fields of a Batch take up for the whole split."""
    fields = split.spec.fields()
    return sum(_row_bytes(fields[name].dtype, fields[name].shape) for name in batch_fields(split.spec)) * split.count


class ResidentLoader:
    """Batches of `split` on `device`, gathered from a copy of the whole split there.

    Raises:
        InputError: an action is NaN or infinite.
    """

    def __init__(self, split: Split, device: torch.device):
        self.split = split
        self.device = device
        self.tensors = {name: self._load(name) for name in batch_fields(split.spec)}  # by field, [N, ...]

    def batches(self, orders: Iterable[Indices]) -> Generator[Batch]:
        """The batch of each of `orders`, in turn."""
        if self.device.type == "cpu":
            yield from self._copied(orders)
            return
        for indices in orders:
            self.split.require_indices(indices)
            # The pinned copy is kept by its allocator until the device has read it.
            yield self.take(torch.from_numpy(indices).pin_memory().to(self.device, non_blocking=True))

    def take(self, indices: Tensor) -> Batch:
        """The Batch of `indices` int64 [B], ascending and in range, on the device.

        Reads nothing back and its shapes follow from B: a CUDA graph can hold it, fed with indices alone.
        """
        rows = {name: _rows(tensor, indices) for name, tensor in self.tensors.items()}
        return as_batch({"indices": indices} | rows, self.split.spec)

    def _copied(self, orders: Iterable[Indices]) -> Generator[Batch]:
        """Batches on the CPU, in slots that are used again: NumPy copies rows faster than torch selects them."""
        arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        ring = Ring(self.split.spec)
        for indices in orders:
            self.split.require_indices(indices)
            slot = ring.next(len(indices))
            for name, out in slot.arrays(len(indices)).items():
                if name == "indices":
                    out[...] = indices
                else:
                    arrays[name].take(indices, axis=0, out=out, mode="clip")
            yield slot.batch(len(indices))

    def _load(self, field: str) -> Tensor:
        """All rows of a stored field on the device."""
        stored = self.split.spec.fields()[field]
        shape = (self.split.count, *stored.shape)
        tensor = _allocate(shape, KINDS[stored.dtype], self.device)
        rows = max(1, CHUNK_BYTES // _row_bytes(stored.dtype, stored.shape))
        for first, array in zip(self.split.starts, self.split.arrays[field], strict=False):
            for low in range(0, len(array), rows):
                # Copied, as torch wants memory that could be written.
                chunk: NDArray[Any] = np.array(array[low : low + rows])
                if field == "actions":
                    require_finite(self.split, np.arange(first + low, first + low + len(chunk)), chunk)
                tensor[first + low : first + low + len(chunk)].copy_(torch.from_numpy(chunk))
        return tensor


def _allocate(shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        # NumPy asks for huge pages, which random rows need far fewer address translations in.
        return torch.from_numpy(np.empty(shape, torch.empty((), dtype=kind).numpy().dtype))
    return torch.empty(shape, dtype=kind, device=device)


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` of a contiguous tensor [N, ...], moved in the widest words that rows are made of."""
    flat = tensor.view(len(tensor), -1)
    row_bytes = flat.shape[1] * flat.element_size()
    word = next(kind for kind in (torch.int64, torch.int32, torch.int16, torch.uint8) if row_bytes % kind.itemsize == 0)
    taken = flat.view(word).index_select(0, indices)
    return taken.view(tensor.dtype).view(len(indices), *tensor.shape[1:])


def _row_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * int(np.prod(shape))
