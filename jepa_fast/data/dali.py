"""The DALI loader: the same gathering, fed to an NVIDIA DALI pipeline, which copies to the device.

A whole batch is one sample to DALI: what it does for every sample then happens once. One definition runs in two ways.
With a GPU, asynchronously: the pipeline prefetches, and its outputs become torch tensors without a copy. Without one,
step by step in the consumer's thread: handing batches between threads costs more there than the work.
"""

from collections.abc import Callable, Generator, Iterable
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from jepa_fast.data.batches import Batch
from jepa_fast.data.sampler import Indices
from jepa_fast.data.shards import Split
from jepa_fast.data.slots import Ring, Slot, as_batch, gather_into
from jepa_fast.errors import InputError

# Batches that a GPU pipeline has under way.
DEPTH = 2
# Pinned slots: those batches, the one handed out, and the one being filled.
RING = DEPTH + 2

INSTALL = "pip install --constraint constraints.txt 'jepa_fast[dali]'"


def require_dali() -> None:
    """Import DALI.

    Raises:
        InputError: it is not installed, or does not load.
    """
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        raise InputError(
            f"--data.loader: got 'dali', expected auto, resident or host: DALI does not load ({error}); {INSTALL}"
        ) from None


class DaliLoader:
    """Batches of `split` on `device`, through a DALI pipeline.

    Raises:
        InputError: DALI is not installed.
    """

    def __init__(self, split: Split, device: torch.device):
        require_dali()
        self.split = split
        self.device = device

    def batches(self, orders: Iterable[Indices]) -> Generator[Batch]:
        """The batch of each of `orders`, in turn; closing the generator, at any batch, ends the pipeline.

        With a GPU an error in gathering arrives up to DEPTH batches early.
        """
        names = _names(self.split)
        if self.device.type == "cuda":
            yield from self._on_gpu(orders, names)
            return
        pipeline = _pipeline(self.split, self._feed(orders, {}), self.device)
        ring = Ring(self.split.spec)
        while (outputs := _outputs(pipeline.run)) is not None:
            # These are written over in the next step.
            arrays = [np.asarray(output.as_tensor())[0] for output in outputs]
            slot = ring.next(len(arrays[0]))
            for target, array in zip(slot.arrays(len(arrays[0])).values(), arrays, strict=True):
                np.copyto(target, array)
            yield slot.batch(len(arrays[0]))

    def _on_gpu(self, orders: Iterable[Indices], names: list[str]) -> Generator[Batch]:
        copied: dict[int, torch.cuda.Event] = {}
        pipeline = _pipeline(self.split, self._feed(orders, copied), self.device)
        for number in count():
            # Bound to the consumer's stream, memory that torch gives back is used again only after its work.
            stream = torch.cuda.current_stream(self.device)
            outputs = _outputs(partial(pipeline.run, stream))
            if outputs is None:
                return
            tensors = [from_dlpack(output.as_tensor())[0] for output in outputs]
            # The stream waits for the copy, the host does not: this tells when the pinned slot may be filled again.
            copied[number + RING] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied[number + RING].record(stream)
            yield as_batch(dict(zip(names, tensors, strict=True)), self.split.spec)

    def _feed(
        self, orders: Iterable[Indices], copied: dict[int, torch.cuda.Event]
    ) -> Generator[list[list[NDArray[Any]]]]:
        """What the pipeline asks for: field by field a list of one sample, in memory that it reads itself."""
        cuda = self.device.type == "cuda"
        slots: list[Slot | None] = [None] * (RING if cuda else 1)
        for number, indices in enumerate(orders):
            if number in copied:
                copied.pop(number).synchronize()
            slot = slots[number % len(slots)]
            if slot is None or slot.rows < len(indices):
                slot = Slot(self.split.spec, len(indices), torch.device("cpu"), pinned=cuda)
                slots[number % len(slots)] = slot
            arrays = slot.arrays(len(indices))
            gather_into(self.split, indices, arrays)
            yield [[array] for array in arrays.values()]


def _outputs(run: Callable[[], Any]) -> Any:
    """What the pipeline gives next, or None after the last batch."""
    try:
        return run()
    except StopIteration:
        return None


def _names(split: Split) -> list[str]:
    """The fields of a batch in the order of the pipeline's outputs."""
    return list(Slot(split.spec, 0, torch.device("cpu")).tensors)


def _pipeline(split: Split, feed: Generator[list[list[NDArray[Any]]]], device: torch.device) -> Any:
    """The built pipeline: a source of whole batches and, for a GPU, the copy."""
    from nvidia.dali import Pipeline, fn, types

    cuda = device.type == "cuda"
    kinds = {
        torch.uint8: types.UINT8,
        torch.int16: types.INT16,
        torch.int32: types.INT32,
        torch.int64: types.INT64,
        torch.float32: types.FLOAT,
    }
    fields = Slot(split.spec, 0, torch.device("cpu")).tensors.values()
    pipeline = Pipeline(
        batch_size=1,
        num_threads=1,
        device_id=(torch.cuda.current_device() if device.index is None else device.index) if cuda else None,
        prefetch_queue_depth=DEPTH if cuda else 1,
        exec_async=cuda,
        exec_pipelined=cuda,
    )
    with pipeline:
        outputs = fn.external_source(
            source=feed,
            num_outputs=len(fields),
            batch=True,
            no_copy=True,
            dtype=[kinds[field.dtype] for field in fields],
            ndim=[field.dim() for field in fields],
        )
        pipeline.set_outputs(*(output.gpu() if cuda else output for output in outputs))
    pipeline.build()
    return pipeline
