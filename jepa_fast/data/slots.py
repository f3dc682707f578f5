"""Memory that batches are gathered into: allocated once, used again and again.

Fresh memory for every batch is what makes a loader slow: the system hands it out page by page, zeroed first.
"""

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.data.batches import Batch
from jepa_fast.data.manifest import Layout
from jepa_fast.data.sampler import Indices
from jepa_fast.data.shards import Split
from jepa_fast.errors import InputError

# Batches that stay valid: the one handed out last and the one before. A consumer may ask for the next one early.
HELD = 2

KINDS = {"|u1": torch.uint8, "<i4": torch.int32, "<f4": torch.float32}


def batch_fields(layout: Layout) -> dict[str, str]:
    """For each field of a Batch that `layout` fills, but `indices`: the name of the stored field."""
    windowed, grouped = layout.spec.window is not None, layout.spec.wall_window is not None
    names = {"dots": "window", "corners": "corner"} if windowed else {"dots": "dot"}
    names |= {"walls": "wall", "actions": "actions"}
    return names | {"wall_groups": "group", "wall_corners": "group_corner"} if grouped else names


def as_batch(tensors: dict[str, Tensor]) -> Batch:
    """A Batch of tensors by field; those that are missing are None."""
    return Batch(**{name: tensors.get(name) for name in Batch._fields})  # type: ignore[arg-type]


class Slot:
    """Tensors for a batch of up to `rows` trajectories."""

    def __init__(self, layout: Layout, rows: int, device: torch.device, pinned: bool = False):
        self.rows = rows
        stored = layout.fields()
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"indices": ((rows,), torch.int64)}
        for name, field in batch_fields(layout).items():
            shapes[name] = ((rows, *stored[field].shape), KINDS[stored[field].dtype])
        self.tensors = {
            name: torch.empty(shape, dtype=kind, device=device, pin_memory=pinned)
            for name, (shape, kind) in shapes.items()
        }
        # Views cost more than copying a small batch: those that are the same every time are made once.
        self._whole = as_batch(self.tensors)
        self._arrays = {} if device.type != "cpu" else {name: field.numpy() for name, field in self.tensors.items()}

    def arrays(self, rows: int) -> dict[str, NDArray[Any]]:
        """The first `rows` rows for NumPy; only on the CPU."""
        return {name: array[:rows] for name, array in self._arrays.items()}

    def batch(self, rows: int) -> Batch:
        """The first `rows` rows as a Batch."""
        if rows == self.rows:
            return self._whole
        return as_batch({name: tensor[:rows] for name, tensor in self.tensors.items()})


class Ring:
    """Slots on the CPU for a consumer that asks for one batch at a time."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._slots: deque[Slot] = deque()

    def next(self, rows: int) -> Slot:
        """The slot whose batch was handed out the longest ago; at least `rows` rows."""
        slot = self._slots.popleft() if len(self._slots) == HELD else None
        if slot is None or slot.rows < rows:
            slot = Slot(self._layout, rows, torch.device("cpu"))
        self._slots.append(slot)
        return slot


def gather_into(split: Split, indices: Indices, arrays: dict[str, NDArray[Any]]) -> None:
    """Copy the trajectories `indices` (ascending) out of the shards into `arrays`, by the Batch's names.

    NumPy alone: a loader's thread must not wake the threads that the training step computes with.

    Raises:
        IndexError: indices out of range or not ascending.
        InputError: an action is NaN or infinite.
    """
    pieces = split.pieces(indices)
    arrays["indices"][...] = indices
    for name, field in batch_fields(split.manifest.layout).items():
        split.copy(field, pieces, arrays[name])
    require_finite(split, indices, arrays["actions"])


def require_finite(split: Split, indices: Indices, actions: NDArray[np.float32]) -> None:
    """Raise InputError, naming trajectory and step, if an action is NaN or infinite."""
    finite = np.isfinite(actions)
    if not finite.all():
        row, step = np.argwhere(~finite)[0, :2]
        raise InputError(f"{split.folder}: trajectory {indices[row]}, step {step}: its action is not finite")
