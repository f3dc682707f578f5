import multiprocessing
import operator
import os
import signal
import threading
import time
from functools import partial

import pytest

from jepa_fast.data.parallel import one_ahead, ordered_map

# Functions of the standard library: workers import them by name.
square = partial(pow, exp=2)


@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_results_come_in_order(workers):
    tasks = list(range(7))
    with ordered_map(square, tasks, workers) as results:
        assert list(results) == [0, 1, 4, 9, 16, 25, 36]
    assert multiprocessing.active_children() == []


def test_a_thread_is_one_task_ahead_in_order_and_ends_when_abandoned():
    begun = []

    def work(task):
        begun.append(task)
        return threading.get_ident(), 10 // task

    with one_ahead(work, []) as results:
        assert list(results) == []
    with one_ahead(work, [1, 2, 5, 0, 7]) as results:
        first, second = next(results), next(results)
        assert (first[1], second[1]) == (10, 5)
        assert first[0] == second[0] != threading.get_ident()
        assert begun in ([1, 2], [1, 2, 5])
    with one_ahead(work, [1, 2, 5, 0, 7]) as results:
        assert [value for _, value in (next(results), next(results), next(results))] == [10, 5, 2]
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_workers_run_elsewhere_and_end_when_abandoned():
    with ordered_map(eval, ["__import__('os').getpid()"] * 1000, 2) as results:
        first, second, third = (next(results) for _ in range(3))
    assert len({os.getpid(), first, second}) == 3
    assert first == third
    assert multiprocessing.active_children() == []


def test_an_error_takes_the_place_of_its_result():
    with ordered_map(partial(operator.truediv, 12), [3, 4, 0, 6], 2) as results:
        assert [next(results), next(results)] == [4, 3]
        with pytest.raises(ZeroDivisionError) as raised:
            next(results)
    assert "in _serve" in raised.value.__notes__[0]
    assert multiprocessing.active_children() == []


@pytest.mark.posix
def test_a_killed_worker_is_told():
    with ordered_map(time.sleep, [0, 0, 60, 60], 2) as results:
        next(results)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a worker process ended before its work was done"):
            list(results)
    assert multiprocessing.active_children() == []
