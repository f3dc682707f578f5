"""What is the host loader's own: its thread, how far it runs ahead, and errors that cross from it."""

import threading
import time

import pytest
import torch

from jepa_fast.data import host
from jepa_fast.data.host import AHEAD, HELD, HostLoader, gather
from jepa_fast.data.packing import pack
from jepa_fast.data.sampler import Sampler, evaluation_order
from jepa_fast.data.shards import open_split


@pytest.fixture
def split(tmp_path, draw_source):
    pack(draw_source(), tmp_path, shard_rows=15)
    return open_split(tmp_path)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "host-loader"]


def ended():
    """Whether the threads of batches that were abandoned, not closed, end by themselves."""
    deadline = time.monotonic() + 300
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.001)
    return loader_threads() == []


def settled(values, expected):
    """The length of a list that grows to `expected`, however busy the machine is, and a moment later."""
    deadline = time.monotonic() + 300
    while len(values) < expected and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    return len(values)


def test_batches_are_gathered_ahead_but_not_far(split, monkeypatch):
    gathered = []
    gather_into = host.gather_into

    def count(split, indices, arrays):
        gathered.append(indices)
        gather_into(split, indices, arrays)

    monkeypatch.setattr(host, "gather_into", count)
    batches = HostLoader(split).batches(Sampler(40, 2, seed=0).steps(0, 100))
    for consumed in range(1, 6):
        next(batches)
        expected = max(consumed, HELD) + AHEAD
        assert settled(gathered, expected) == expected
    batches.close()
    assert len(gathered) == 5 + AHEAD


def test_an_abandoned_epoch_leaves_no_thread(split):
    loader = HostLoader(split)
    batches = loader.batches(evaluation_order(40, 2))
    assert loader_threads() == []
    next(batches)
    assert len(loader_threads()) == 1
    batches.close()
    assert loader_threads() == []
    for _ in loader.batches(evaluation_order(40, 2)):
        break
    assert ended()
    assert len(list(loader.batches(evaluation_order(40, 2)))) == 20
    assert loader_threads() == []


def test_a_generator_in_a_cycle_that_its_own_thread_collects_does_not_wait_for_itself(split):
    collected = threading.Event()

    def orders():
        yield from evaluation_order(40, 20)
        import gc

        gc.collect()
        collected.set()
        yield from evaluation_order(40, 20)

    cycle = []
    batches = HostLoader(split).batches(orders())
    cycle.extend([batches, cycle])
    next(batches)
    del batches, cycle
    assert collected.wait(10)
    assert ended()


def test_batches_closed_while_another_thread_waits_for_one_are_at_their_end(split):
    going_on, waiting = threading.Event(), threading.Event()

    def orders():
        yield from evaluation_order(20, 20)
        waiting.set()
        going_on.wait(10)
        yield from evaluation_order(20, 20)

    batches, rest = HostLoader(split).batches(orders()), []
    next(batches)
    consumer = threading.Thread(target=lambda: rest.extend(batches))
    consumer.start()
    assert waiting.wait(10)
    closer = threading.Thread(target=batches.close)
    closer.start()
    while not batches._work._ended:
        time.sleep(0.001)
    going_on.set()
    for thread in (closer, consumer):
        thread.join(10)
        assert not thread.is_alive()
    assert rest == []
    assert loader_threads() == []
    assert list(batches) == []


def test_an_error_while_gathering_reaches_the_consumer(split, monkeypatch):
    gather_into = host.gather_into

    def fail(split, indices, arrays):
        if indices[0] >= 20:
            raise OSError("the disk is gone")
        gather_into(split, indices, arrays)

    monkeypatch.setattr(host, "gather_into", fail)
    batches = HostLoader(split).batches(evaluation_order(40, 10))
    assert [int(next(batches).indices[0]), int(next(batches).indices[0])] == [0, 10]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert loader_threads() == []


def test_an_error_in_the_order_reaches_the_consumer(split):
    def orders():
        yield from evaluation_order(20, 10)
        raise RuntimeError("no more order")

    batches = HostLoader(split).batches(orders())
    next(batches)
    next(batches)
    with pytest.raises(RuntimeError, match="no more order"):
        next(batches)


def test_gathered_batches_are_fresh(split):
    batches = [gather(split, indices) for indices in evaluation_order(40, 10)]
    fields = [field for batch in batches for field in batch if isinstance(field, torch.Tensor)]
    assert len({field.data_ptr() for field in fields}) == len(fields)
