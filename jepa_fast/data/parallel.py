"""An ordered, bounded map over worker processes.

Each worker takes every W-th task and hands its results through a pipe of its own; the consumer reads the pipes in turn.
So results come in order, and a worker that is one task ahead waits until its last result is taken. There are no threads
and no locks to be interrupted in, and a worker whose consumer is gone, even killed, ends at its next result.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jepa_fast.platforms import ignore_interrupts, interrupts_blocked

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextmanager
def ordered_map(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Iterator[Result]]:
    """Inside the `with` statement: results of `work` in the order of `tasks`; leaving it ends the workers.

    One worker or one task runs in this process. Others are spawned, so `work` and the tasks must be picklable and a
    script that gets here needs the usual `if __name__ == "__main__"`.

    Raises:
        Exception: whatever `work` raised, in the place of its result.
        RuntimeError: a worker was killed.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    processes = []
    connections: list[Connection[Any, Any]] = []
    try:
        with _interrupts_deferred():
            for worker in range(workers):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(sender, work, tasks[worker::workers]), daemon=True)
                process.start()
                # Only the worker's copy is left, so that its death reads as the end of the pipe.
                sender.close()
                processes.append(process)
                connections.append(receiver)
        yield (_receive(connections[index % workers]) for index in range(len(tasks)))
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for connection in connections:
            connection.close()


@contextmanager
def one_ahead(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Iterator[Result]]:
    """As `ordered_map` on one thread of this process, for results that take longer to hand over than to make.

    The thread is one task ahead. Leaving the `with` statement waits for it.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:

        def results() -> Iterator[Result]:
            coming = thread.submit(work, tasks[0]) if tasks else None
            for task in [*tasks[1:], None]:
                if coming is None:
                    return
                result = coming.result()
                coming = None if task is None else thread.submit(work, task)
                yield result

        yield results()


def cut_by_bytes(sizes: NDArray[np.int64], most: int, rows: int) -> list[int]:
    """Where to cut things of these sizes in bytes, so that parts hold at most so many bytes and so many of them.

    From 0 to their number; what is larger by itself is a part by itself.
    """
    cuts, total = [0], 0
    for number, size in enumerate(sizes.tolist()):
        total += size
        if number > cuts[-1] and (total > most or number - cuts[-1] == rows):
            cuts.append(number)
            total = size
    return [*cuts, len(sizes)]


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Inside the `with` statement Ctrl-C waits, and processes that are started never see it.

    It must not fall between the start of a worker and its orders. The mask is what workers inherit: Ctrl-C reaches
    every process of a terminal, but it is for this one to handle. Here a handler is needed too, as a library's thread,
    whose mask is its own, would take the signal.
    """
    # Else the first worker's start would start it, and that leaves SIGINT unblocked.
    if os.name == "posix":
        resource_tracker.ensure_running()
    noted: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: noted.append(number)) if in_main else None
    try:
        with interrupts_blocked():
            yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
    if noted and callable(handler):
        handler(noted[0], None)


def _receive(connection: "Connection[Any, Any]") -> Any:
    try:
        result, error = connection.recv()
    except EOFError:
        raise RuntimeError("a worker process ended before its work was done; was it killed for memory?") from None
    if error is not None:
        raise error
    return result


def _serve(sender: "Connection[Any, Any]", work: Callable[[Task], Result], tasks: Sequence[Task]) -> None:
    """What a worker does."""
    ignore_interrupts()
    try:
        for task in tasks:
            try:
                result = work(task)
            # Not handled here, only handed on to the process that asked for the result.
            except Exception as error:
                error.add_note(traceback.format_exc())
                sender.send((None, error))
                return
            sender.send((result, None))
    except BrokenPipeError:
        # Nobody waits for results any more.
        return
