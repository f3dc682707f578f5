"""Loaders on a GPU; and, on a device that works as late as it may, what the host loader has to wait for."""

import importlib.util

import numpy as np
import pytest
import torch

from jepa_fast.data import host
from jepa_fast.data.batches import Batch
from jepa_fast.data.host import CudaStage, HostLoader, gather
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.packing import pack
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from tests.data.lazy_device import LazyDevice

on_gpu = pytest.mark.gpu
WITHOUT_DALI = importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None
LOADERS = [
    "host",
    "resident",
    pytest.param("dali", marks=pytest.mark.skipif(WITHOUT_DALI, reason="DALI is not installed")),
]


@pytest.fixture(params=["window", "dense"])
def split(request, tmp_path, draw_source):
    pack(draw_source(), tmp_path, request.param, shard_rows=15)
    return open_split(tmp_path)


def assert_same(batch, expected):
    wanted = expected.tensors()
    for name, ours in batch.tensors().items():
        theirs = wanted[name]
        assert (ours is None) == (theirs is None), name
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs)), name


class NeverWaitsForCopies(CudaStage):
    """Fills the pinned slot again while the copy out of it may be pending."""

    def fill(self, split, indices):
        self.copied.synchronize = lambda: None
        super().fill(split, indices)


class NeverWaitsForTheConsumer(CudaStage):
    """Copies into the device's slot while the consumer's work on it may be pending."""

    def take_back(self):
        pass


class HandsOutTooEarly(CudaStage):
    """Lets the consumer's work begin while the copy may be pending."""

    def hand_out(self):
        return self.target.batch(self.rows)


@pytest.fixture
def lazy(monkeypatch):
    device = LazyDevice()
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(device, name))
    monkeypatch.setattr(host, "Slot", device.Slot)
    return device


def copied(batch):
    """A batch's tensors by name, in memory of their own."""
    return {name: None if field is None else field.clone() for name, field in batch.tensors().items()}


def wrong_batches(split, lazy):
    """How many batches a consumer, whose work runs late, sees with wrong bytes."""
    seen = []

    def look(batch, rows):
        seen.append((rows, copied(batch)))

    random = np.random.default_rng(0)
    orders = [np.sort(random.choice(40, size, replace=False)) for size in random.integers(1, 12, 40)]
    for batch, rows in zip(HostLoader(split, torch.device("cuda", 0)).batches(orders), orders, strict=True):
        lazy.consumer.give(lambda batch=batch, rows=rows: look(batch, rows))
    lazy.consumer.run(len(lazy.consumer.work))
    assert len(seen) == len(orders)
    wrong = 0
    for rows, fields in seen:
        wanted = gather(split, rows).tensors()
        wrong += not all(ours is None or torch.equal(ours, wanted[name]) for name, ours in fields.items())
    return wrong


def test_on_a_device_that_works_late_every_batch_is_right(split, lazy):
    assert wrong_batches(split, lazy) == 0


@pytest.mark.parametrize("careless", [NeverWaitsForCopies, NeverWaitsForTheConsumer, HandsOutTooEarly])
def test_a_device_that_works_late_shows_what_is_not_waited_for(split, lazy, monkeypatch, careless):
    monkeypatch.setattr(host, "CudaStage", careless)
    assert wrong_batches(split, lazy) > 0


@on_gpu
@pytest.mark.parametrize("name", LOADERS)
def test_a_gpus_batches_are_those_of_the_cpu_however_late_they_are_read(split, name):
    device = torch.device("cuda", 0)
    sampler = Sampler(40, 8, seed=0)
    previous, copies = None, []
    for batch in open_loader(name, split, device).batches(sampler.steps(0, 30)):
        assert all(field is None or field.device == device for field in batch.tensors().values())
        torch.cuda._sleep(3_000_000)
        if previous is not None:
            copies.append(copied(previous))
        previous = batch
    for fields, indices in zip(copies, sampler.steps(0, 29), strict=True):
        assert_same(Batch.of(fields), gather(split, indices))


@on_gpu
def test_a_graph_holds_the_resident_gather(split):
    device = torch.device("cuda", 0)
    loader = open_loader("resident", split, device)
    indices = torch.arange(8, device=device)
    loader.take(indices)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = loader.take(indices)
    for rows in Sampler(40, 8, seed=0).steps(0, 6):
        indices.copy_(torch.from_numpy(rows))
        graph.replay()
        assert_same(batch, gather(split, rows))


@on_gpu
def test_the_host_loader_goes_on_while_a_graph_is_captured(split):
    device = torch.device("cuda", 0)
    sampler = Sampler(40, 8, seed=0)
    batches = open_loader("host", split, device).batches(sampler.steps(0, 30))
    next(batches)
    static = torch.zeros(1000, device=device)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(100):
            static += 1
    for batch, rows in zip(batches, sampler.steps(1, 30), strict=True):
        graph.replay()
        assert_same(batch, gather(split, rows))


def test_rows_are_selected_by_index_in_every_word_width(tmp_path, draw_source):
    """The gather that a GPU runs, on the CPU: rows of odd, even and word-sized numbers of bytes."""
    for height, width in ((20, 26), (7, 9), (16, 16), (10, 21)):
        folder = tmp_path / f"{height}x{width}"
        pack(draw_source(height=max(height, 5), width=max(width, 17)), folder, "dense", shard_rows=15)
        split = open_split(folder)
        loader = open_loader("resident", split, torch.device("cpu"))
        for rows in ([], [39], [0, 14, 15, 29, 30], range(40)):
            indices = np.array(rows, np.int64)
            assert_same(loader.take(torch.from_numpy(indices)), gather(split, indices))
