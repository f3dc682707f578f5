"""An ordered, bounded map over worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered_map(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Generator[Result, None, None]:
    """Results of `work` in the order of `tasks`, at most a few ahead of the consumer; closing it ends the workers.

    One worker or one task runs in this process. Others are spawned, so `work` and the tasks must be picklable and a
    script that gets here needs the usual `if __name__ == "__main__"`.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(work, task))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle; a worker would only add its own traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent cannot tell its workers to end, and they would wait for work forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in worker processes only"
    wait([parent.sentinel])
    os._exit(1)
