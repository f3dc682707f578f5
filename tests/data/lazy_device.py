"""A device that does everything as late as it may: streams and events on the CPU, for tests of what waits for what.

Work is run when an event after it is waited for, and not before. So whoever overwrites memory that pending work still
reads, or reads what pending work was to write, gets wrong bytes, every time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from jepa_fast.data.slots import Slot, as_batch


class LazyStream:
    """Work in order, run when it is needed."""

    def __init__(self, device: "LazyDevice"):
        self.device = device
        self.work: list[Callable[[], Any]] = []
        self.done = 0

    def wait_event(self, event: "LazyEvent") -> None:
        with self.device.lock:
            self.work.append(event.now())

    def give(self, work: Callable[[], Any]) -> None:
        with self.device.lock:
            self.work.append(work)

    def run(self, until: int) -> None:
        with self.device.lock:
            while self.done < until:
                self.done += 1
                self.work[self.done - 1]()


class LazyEvent:
    """A place in a stream; waiting for one that was never recorded returns at once."""

    def __init__(self, device: "LazyDevice"):
        self.device = device
        self.place: tuple[LazyStream, int] | None = None

    def record(self, stream: LazyStream) -> None:
        with self.device.lock:
            self.place = stream, len(stream.work)

    def now(self) -> Callable[[], Any]:
        """Waiting for the place that is recorded at this moment."""
        place = self.place
        return lambda: place[0].run(place[1]) if place is not None else None

    def synchronize(self) -> None:
        self.now()()


class LazyTensor:
    """Memory of the device: written by its streams."""

    def __init__(self, device: "LazyDevice", memory: torch.Tensor):
        self.device, self.memory = device, memory

    def __getitem__(self, rows: slice) -> "LazyTensor":
        return LazyTensor(self.device, self.memory[rows])

    def record_stream(self, stream: LazyStream) -> None:
        """Nothing: this memory is never given back."""

    def copy_(self, source: torch.Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self.device.current_stream().give(partial(self.memory.copy_, source))


class LazySlot:
    """A Slot on the device."""

    def __init__(self, device: "LazyDevice", slot: Slot):
        self.rows, self.spec = slot.rows, slot.spec
        self.memory = slot.tensors
        self.tensors = {name: LazyTensor(device, tensor) for name, tensor in slot.tensors.items()}

    def batch(self, rows: int):
        return as_batch({name: tensor[:rows] for name, tensor in self.memory.items()}, self.spec)


class LazyDevice:
    """Stands in for torch.cuda and for slots that are pinned or on a device."""

    def __init__(self):
        self.lock = threading.RLock()
        self.consumer = LazyStream(self)
        self._current = threading.local()

    def Stream(self, device) -> LazyStream:
        return LazyStream(self)

    def Event(self) -> LazyEvent:
        return LazyEvent(self)

    @contextmanager
    def stream(self, stream: LazyStream) -> Iterator[None]:
        self._current.stream = stream
        yield
        del self._current.stream

    def current_stream(self, device=None) -> LazyStream:
        return getattr(self._current, "stream", self.consumer)

    def Slot(self, spec, rows, device, pinned=False):
        slot = Slot(spec, rows, torch.device("cpu"))
        return slot if device.type == "cpu" else LazySlot(self, slot)
