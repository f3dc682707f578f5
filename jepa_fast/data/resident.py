"""The resident loader: the whole packed split lies in the device's memory, and batches are gathered there."""

import logging
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.data.batches import Batch
from jepa_fast.data.clips import Clips
from jepa_fast.data.manifest import Unit
from jepa_fast.data.sampler import Indices
from jepa_fast.data.shards import Split
from jepa_fast.data.slots import KINDS, Ring, as_batch, batch_fields, require_finite
from jepa_fast.errors import InputError

# Read and sent in pieces, so that loading needs no second copy of a shard.
CHUNK_BYTES = 64_000_000

logger = logging.getLogger(__name__)


def resident_bytes(split: Split) -> int:
    """Bytes that the fields of a Batch take up for the whole split."""
    return sum(array.nbytes for name in batch_fields(split.spec) for array in split.arrays[name])


class ResidentLoader:
    """Batches of `split` on `device`, gathered from a copy of the whole split there.

    Raises:
        InputError: an action is NaN or infinite.
    """

    def __init__(self, split: Split, device: torch.device):
        self.split = split
        self.device = device
        # By field [N, ...]; for clips what there is of frames and actions lies end to end.
        self.tensors = {name: self._load(name) for name in batch_fields(split.spec)}
        self.clips = None if split.drawn is None else ResidentClips(split.drawn, device)

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
        spec = self.split.spec
        where = {} if self.clips is None else self.clips.rows(indices)
        rows = {name: _rows(tensor, where.get(spec.unit(name), indices)) for name, tensor in self.tensors.items()}
        if where:
            fields = spec.fields()
            rows = {name: tensor.view(len(indices), *fields[name].shape) for name, tensor in rows.items()}
        return as_batch({"indices": indices} | rows, spec)

    def _copied(self, orders: Iterable[Indices]) -> Generator[Batch]:
        """Batches on the CPU, in slots that are used again: NumPy copies rows faster than torch selects them."""
        arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        spec, drawn = self.split.spec, self.split.drawn
        units = {name: spec.unit(name) for name in arrays}
        ring = Ring(spec)
        for indices in orders:
            self.split.require_indices(indices)
            slot = ring.next(len(indices))
            where: dict[Unit, Indices] = {}
            if drawn is not None:
                trajectories, frames, actions = drawn.rows(indices)
                where = {"trajectory": trajectories, "frame": frames.ravel(), "action": actions.ravel()}
            for name, out in slot.arrays(len(indices)).items():
                if name == "indices":
                    out[...] = indices
                else:
                    rows, array = where.get(units[name], indices), arrays[name]
                    array.take(rows, axis=0, out=out.reshape(len(rows), *array.shape[1:]), mode="clip")
            yield slot.batch(len(indices))

    def _load(self, field: str) -> Tensor:
        """All rows of a stored field on the device."""
        arrays = self.split.arrays[field]
        count, shape = sum(map(len, arrays)), arrays[0].shape[1:]
        tensor = _allocate((count, *shape), KINDS[arrays[0].dtype.str], self.device)
        rows = max(1, CHUNK_BYTES // max(1, arrays[0][:1].nbytes))
        first = 0
        for array in arrays:
            for low in range(0, len(array), rows):
                # Copied, as torch wants memory that could be written.
                chunk: NDArray[Any] = np.array(array[low : low + rows])
                if field == "actions":
                    self._require_finite(first, chunk)
                tensor[first : first + len(chunk)].copy_(torch.from_numpy(chunk))
                first += len(chunk)
        return tensor

    def _require_finite(self, first: int, actions: NDArray[np.float32]) -> None:
        """Raise InputError if an action of the rows from `first` on is NaN or infinite."""
        if self.split.drawn is None:
            require_finite(self.split, np.arange(first, first + len(actions)), actions)
        elif not np.isfinite(actions).all():
            offsets = self.split.drawn.offsets - np.arange(len(self.split.drawn.offsets))
            place = first + int(np.argwhere(~np.isfinite(actions))[0, 0])
            trajectory = int(np.searchsorted(offsets, place, side="right")) - 1
            step = place - int(offsets[trajectory])
            raise InputError(f"{self.split.folder}: trajectory {trajectory}, step {step}: its action is not finite")


class ResidentClips:
    """Where clips lie, found on the device: as `Clips.rows` does, in torch."""

    def __init__(self, clips: Clips, device: torch.device):
        self._first = torch.from_numpy(clips.first).to(device)
        self._offsets = torch.from_numpy(clips.offsets).to(device)
        self._frames = clips.skip * torch.arange(clips.frames, device=device)
        self._actions = torch.arange((clips.frames - 1) * clips.skip, device=device)
        self._every = clips.every

    def rows(self, indices: Tensor) -> dict[Unit, Tensor]:
        """Where clips int64 [n] lie: rows of trajectories [n], of frames [n T] and of actions [n (T - 1) skip]."""
        trajectories = torch.searchsorted(self._first, indices, right=True) - 1
        starts = self._offsets[trajectories] + (indices - self._first[trajectories]) * self._every
        frames, actions = starts[:, None] + self._frames, (starts - trajectories)[:, None] + self._actions
        return {"trajectory": trajectories, "frame": frames.flatten(), "action": actions.flatten()}


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
