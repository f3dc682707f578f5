"""Memory that batches are gathered into: allocated once, used again and again.

Fresh memory for every batch is what makes a loader slow: the system hands it out page by page, zeroed first.
"""

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.data.batches import Batch, GroupBatch
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.sampler import Indices
from jepa_fast.data.shards import Split
from jepa_fast.errors import InputError

# Batches that stay valid: the one handed out last and the one before. A consumer may ask for the next one early.
HELD = 2

KINDS = {"|u1": torch.uint8, "<i2": torch.int16, "<i4": torch.int32, "<f4": torch.float32}
# Stored fields and the parts of a GroupBatch that they fill.
PARTS = {"pixels": "pixels", "corner": "corners", "base_index": "base_index", "background": "background"}


def batch_fields(spec: FrameSpec) -> list[str]:
    """Names of the stored fields that a Batch holds rows of."""
    return [name for name in spec.fields() if name.partition(".")[2] in PARTS or name == "actions"]


def as_batch(tensors: dict[str, Tensor], spec: FrameSpec) -> Batch:
    """A Batch of tensors by the names of their fields, and "indices"."""
    groups = []
    for group in spec.groups:
        named = {part: tensors.get(f"{group.name}.{field}") for field, part in PARTS.items()}
        groups.append(GroupBatch(**named))  # type: ignore[arg-type]
    return Batch(tensors["indices"], tuple(groups), tensors["actions"])


class Slot:
    """Tensors for a batch of up to `rows` trajectories.

    Raises:
        InputError: trajectories of different lengths, of which there is no batch.
    """

    def __init__(self, spec: FrameSpec, rows: int, device: torch.device, pinned: bool = False):
        if spec.shortest is not None:
            raise InputError(
                f"trajectories have {spec.shortest} to {spec.frames} frames: a batch needs clips of them, Split.clips"
            )
        self.rows = rows
        self.spec = spec
        stored = spec.fields()
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"indices": ((rows,), torch.int64)}
        for name in batch_fields(spec):
            shapes[name] = ((rows, *stored[name].shape), KINDS[stored[name].dtype])
        self.tensors = {
            name: torch.empty(shape, dtype=kind, device=device, pin_memory=pinned)
            for name, (shape, kind) in shapes.items()
        }
        # Views cost more than copying a small batch: those that are the same every time are made once.
        self._whole = as_batch(self.tensors, spec)
        self._arrays = {} if device.type != "cpu" else {name: field.numpy() for name, field in self.tensors.items()}

    def arrays(self, rows: int) -> dict[str, NDArray[Any]]:
        """The first `rows` rows for NumPy; only on the CPU."""
        return {name: array[:rows] for name, array in self._arrays.items()}

    def batch(self, rows: int) -> Batch:
        """The first `rows` rows as a Batch."""
        if rows == self.rows:
            return self._whole
        return as_batch({name: tensor[:rows] for name, tensor in self.tensors.items()}, self.spec)


class Ring:
    """Slots on the CPU for a consumer that asks for one batch at a time."""

    def __init__(self, spec: FrameSpec):
        self._spec = spec
        self._slots: deque[Slot] = deque()

    def next(self, rows: int) -> Slot:
        """The slot whose batch was handed out the longest ago; at least `rows` rows."""
        slot = self._slots.popleft() if len(self._slots) == HELD else None
        if slot is None or slot.rows < rows:
            slot = Slot(self._spec, rows, torch.device("cpu"))
        self._slots.append(slot)
        return slot


def gather_into(split: Split, indices: Indices, arrays: dict[str, NDArray[Any]]) -> None:
    """Copy the trajectories `indices` (ascending) out of the shards into `arrays`, by the names of fields.

    NumPy alone: a loader's thread must not wake the threads that the training step computes with.

    Raises:
        IndexError: indices out of range or not ascending.
        InputError: an action is NaN or infinite.
    """
    pieces = split.pieces(indices)
    arrays["indices"][...] = indices
    for name, out in arrays.items():
        if name != "indices":
            split.copy(name, pieces, out)
    require_finite(split, indices, arrays["actions"])


def require_finite(split: Split, indices: Indices, actions: NDArray[np.float32]) -> None:
    """Raise InputError, naming trajectory or clip and step, if an action is NaN or infinite."""
    finite = np.isfinite(actions)
    if not finite.all():
        row, step = np.argwhere(~finite)[0, :2]
        what = "trajectory" if split.drawn is None else "clip"
        raise InputError(f"{split.folder}: {what} {indices[row]}, step {step}: its action is not finite")
