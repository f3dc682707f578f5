"""The host loader: rows gathered from the memory-mapped shards by one background thread.

The thread runs AHEAD batches ahead. On the CPU a batch is handed out in the slot that it was gathered into. For a GPU
the slot is pinned and the thread also starts the copy, on a stream of its own, so that it runs beside the step.
"""

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from queue import SimpleQueue

import torch

from jepa_fast.data.batches import Batch, GroupBases
from jepa_fast.data.manifest import FrameSpec
from jepa_fast.data.sampler import Indices, evaluation_order
from jepa_fast.data.shards import Split
from jepa_fast.data.slots import HELD, Slot, gather_into

# Batches gathered while the consumer works on another.
AHEAD = 2

CPU = torch.device("cpu")


class HostLoader:
    """Batches of `split` on `device`, gathered from the shards."""

    def __init__(self, split: Split, device: torch.device = CPU):
        self.split = split
        self.device = device

    def batches(self, orders: Iterable[Indices]) -> "HostBatches":
        """The batch of each of `orders`, in turn."""
        return HostBatches(self.split, orders, self.device)


class HostBatches(Iterator[Batch]):
    """The batch of each of `orders`, in turn. The thread starts with the first one that is asked for.

    After the last batch, an error or `close` the thread has ended. Abandoned, it ends by itself a little later: the
    garbage collector may run in any thread and under any lock, so nothing here waits when it is collected.
    """

    def __init__(self, split: Split, orders: Iterable[Indices], device: torch.device):
        self._work: _Work | None = None
        self._closed = False
        self._split, self._orders, self._device = split, orders, device
        self._held: deque[Stage] = deque()

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        try:
            if self._work is None:
                kind = CudaStage if self._device.type == "cuda" else Stage
                stages = [kind(self._split.spec, self._device) for _ in range(AHEAD + HELD)]
                self._work = _Work(self._split, self._orders, stages)
            stage = self._work.next()
            if stage is None:
                raise StopIteration
            if len(self._held) == HELD:
                oldest = self._held.popleft()
                oldest.take_back()
                self._work.free.put(oldest)
            self._held.append(stage)
            return stage.hand_out()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the thread, and wait for it to finish the batch that it is at."""
        self._closed = True
        self._held.clear()
        if self._work is not None:
            self._work.end()
            self._work.thread.join()

    def __del__(self) -> None:
        if self._work is not None:
            self._work.end()


class Stage:
    """One batch on its way from the shards to the consumer; on the CPU, the slot that it is gathered into."""

    def __init__(self, spec: FrameSpec, device: torch.device):
        self.spec = spec
        self.device = device
        self.rows = 0
        self.slot: Slot | None = None

    def fill(self, split: Split, indices: Indices) -> None:
        """Gather a batch; in the loader's thread."""
        self.rows = len(indices)
        if self.slot is None or self.slot.rows < self.rows:
            self.slot = Slot(self.spec, self.rows, CPU, pinned=self.device.type == "cuda")
        gather_into(split, indices, self.slot.arrays(self.rows))

    def hand_out(self) -> Batch:
        """The gathered batch; in the consumer's thread."""
        assert self.slot is not None
        return self.slot.batch(self.rows)

    def take_back(self) -> None:
        """Note that the consumer is done with the batch; in the consumer's thread."""


class CudaStage(Stage):
    """A pinned slot and one on the device, which a copy connects.

    Two orders have to hold: the pinned slot is filled again only after the copy out of it has run (`copied`), and the
    device's only after what the consumer's stream does with it (`released`). A step captured as a CUDA graph has
    to be captured with capture_error_mode="thread_local": this thread goes on calling CUDA meanwhile.
    """

    def __init__(self, spec: FrameSpec, device: torch.device):
        super().__init__(spec, device)
        self.target: Slot | None = None
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.released = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def fill(self, split: Split, indices: Indices) -> None:
        """Gather a batch and start its copy."""
        self.copied.synchronize()
        super().fill(split, indices)
        assert self.slot is not None
        with torch.cuda.stream(self.stream):
            # Before a slot is replaced by a larger one, too: its memory belongs to this stream.
            self.stream.wait_event(self.released)
            if self.target is None or self.target.rows < self.rows:
                self.target = Slot(self.spec, self.slot.rows, self.device)
            for name, tensor in self.target.tensors.items():
                tensor[: self.rows].copy_(self.slot.tensors[name][: self.rows], non_blocking=True)
            self.copied.record(self.stream)

    def hand_out(self) -> Batch:
        """The copied batch, for the consumer's current stream."""
        assert self.target is not None
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(self.copied)
        for tensor in self.target.tensors.values():
            # Given back, at the end, the memory waits for what this stream still does with it.
            tensor.record_stream(consumer)
        return self.target.batch(self.rows)

    def take_back(self) -> None:
        """Whatever the consumer's current stream was given so far may read the batch; nothing later does."""
        self.released.record(torch.cuda.current_stream(self.device))


class _Work:
    """A thread that fills stages as they come free. It refers to nobody who asks for them, so it keeps nobody alive."""

    def __init__(self, split: Split, orders: Iterable[Indices], stages: list[Stage]):
        self.free: SimpleQueue[Stage | None] = SimpleQueue()
        self._ready: SimpleQueue[Stage | BaseException | None] = SimpleQueue()
        for stage in stages:
            self.free.put(stage)
        self._ended = False
        # A daemon does not keep the process of an iterator that nobody closed alive.
        self.thread = threading.Thread(target=self._run, args=(split, orders), name="host-loader", daemon=True)
        self.thread.start()
        for thread in list(_at_work):
            if not thread.is_alive():
                _at_work.pop(thread, None)
        _at_work[self.thread] = weakref.ref(self)

    def next(self) -> Stage | None:
        """The next filled stage, or None after the last one.

        Raises:
            BaseException: whatever gathering it raised.
        """
        outcome = self._ready.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def end(self) -> None:
        """Tell the thread to end before its next batch. Takes no lock: SimpleQueue.put may be called by finalizers."""
        self._ended = True
        self.free.put(None)

    def _run(self, split: Split, orders: Iterable[Indices]) -> None:
        try:
            for indices in orders:
                stage = self.free.get()
                if stage is None or self._ended:
                    break
                stage.fill(split, indices)
                self._ready.put(stage)
        # Not handled here, only handed on to the thread that asked for the batch.
        except BaseException as error:
            self._ready.put(error)
        else:
            self._ready.put(None)


# Threads that may still run. Not threading.enumerate: a thread leaves that a moment before its end.
_at_work: dict[threading.Thread, weakref.ref[_Work]] = {}


@atexit.register
def _end_all() -> None:
    """End the threads before the interpreter: torn down in the middle of a call, one would abort the process."""
    for thread, reference in list(_at_work.items()):
        work = reference()
        if work is not None:
            work.end()
        thread.join()


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """All trajectories of `split` in order, on the CPU; the last batch may be smaller."""
    return HostLoader(split).batches(evaluation_order(split.count, batch_size))


def gather(split: Split, indices: Indices) -> Batch:
    """The Batch of ascending `indices` int64 [B] in fresh CPU tensors.

    Raises:
        InputError: an action is NaN or infinite.
    """
    slot = Slot(split.spec, len(indices), CPU)
    gather_into(split, indices, slot.arrays(len(indices)))
    return slot.batch(len(indices))


def group_bases(split: Split, device: torch.device = CPU) -> GroupBases:
    """Per group of channels the split's base images uint8 [G, c, H, W] on `device`, or None where it has none."""
    return tuple(None if images is None else torch.from_numpy(images).to(device) for images in split.bases)
