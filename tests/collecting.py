"""The garbage collector at the worst moments: it finds abandoned batches while a lock is held that their thread wants.

    python -m tests.collecting DATA LOADER|training RUNS

DATA is a folder with a split "train", RUNS an empty one. Ends within two minutes: with status 0, or with the stacks of
all threads.
"""

import faulthandler
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from jepa_fast.config import LoopOptions
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine import loop
from jepa_fast.runs import create_run

LIMIT_S = 120
STRESS = 100  # abandoned iterators

Start = Callable[[Callable[[], Any]], Iterator[Any]]


def interrupted(orders: Iterable[np.ndarray], second: Callable[[], Any]) -> Iterator[np.ndarray]:
    """`orders`; `second` is called before the second of them, by whichever thread asks for it."""
    for number, indices in enumerate(orders):
        if number == 1:
            second()
        yield indices


def abandon(start: Start, second: Callable[[], Any]) -> None:
    """Leave an iterator under way to the collector: only a cycle still refers to it."""
    cycle: list[Any] = [start(second)]
    cycle.append(cycle)
    next(cycle[0])


def under_a_lock(start: Start, has_thread: bool) -> None:
    """The collector runs while this thread holds a lock that the loader's waits for."""
    lock, asked = threading.Lock(), SimpleQueue()

    def second() -> None:
        asked.put(None)
        with lock:
            pass

    with lock:
        abandon(start, second)
        if has_thread:
            asked.get()
        gc.collect()


def inside_a_wait(start: Start) -> None:
    """The collector runs inside `Event.wait`, under the event's own lock, and the loader's thread sets the event."""
    waiting: SimpleQueue[None] = SimpleQueue()

    class Collecting(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.put(None)
            gc.collect()
            return super().wait(timeout)

    event = threading.Event()
    event._cond = Collecting(threading.Lock())  # type: ignore[attr-defined]
    abandon(start, lambda: (waiting.get(), event.set()))
    assert event.wait(LIMIT_S)


def at_every_allocation(start: Start) -> None:
    """The collector runs all the time, in both threads."""
    gc.freeze()
    gc.set_threshold(1, 1, 1)
    for _ in range(STRESS):
        event = threading.Event()
        abandon(start, event.set)
        assert event.wait(LIMIT_S)
    gc.set_threshold(700, 10, 10)
    gc.collect()


def loader(data: Path, name: Any) -> Start:
    """Batches of the loader `name`."""
    split = open_split(data / "train")
    opened = open_loader(name, split, torch.device("cpu"))
    sampler = Sampler(split.count, 4, seed=0)
    return lambda second: opened.batches(interrupted(sampler.steps(0, 1000), second))


def training(data: Path, runs: Path) -> Start:
    """Steps of a run, in a new folder of `runs`, that reads by the host loader."""
    from tests.engine.test_train import configuration

    config = configuration(data, steps=1000)
    steps = Sampler.steps

    def start(second: Callable[[], Any]) -> Iterator[Any]:
        Sampler.steps = lambda self, first, stop: interrupted(steps(self, first, stop), second)  # type: ignore
        folder = runs / str(len(list(runs.iterdir())))
        create_run(folder, config)
        return loop.training(config, folder, LoopOptions())

    return start


def main(data: Path, name: str, runs: Path) -> None:
    """Every moment in turn; then the threads have ended."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    torch.set_num_threads(1)
    gc.disable()
    start = training(data, runs) if name == "training" else loader(data, name)
    has_thread = name in ("host", "training")
    under_a_lock(start, has_thread)
    if has_thread:
        inside_a_wait(start)
    if name == "host":
        gc.enable()
        at_every_allocation(start)
    while any(thread.name == "host-loader" for thread in threading.enumerate()):
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
