import threading

import numpy as np
import pytest
import torch

from jepa_fast.data.batches import expand_dots, expand_frames, expand_walls
from jepa_fast.data.host import HostLoader, evaluation_batches, gather
from jepa_fast.data.packing import pack
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split


@pytest.fixture(params=["window", "wall_once", "full"])
def packed(request, tmp_path, draw_source):
    """A source of 40 trajectories and its split in shards of 15, 15 and 10."""
    source = draw_source()
    pack(source, tmp_path, request.param, shard_rows=15)
    return source, open_split(tmp_path)


@pytest.fixture
def split(tmp_path, draw_source):
    pack(draw_source(), tmp_path, shard_rows=15)
    return open_split(tmp_path)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("host-loader")]


def assert_holds(batch, source, indices, spec):
    """Every pixel and number of the batch is the source's."""
    np.testing.assert_array_equal(batch.indices, indices)
    walls = np.broadcast_to(source.walls[:, None], source.dots.shape)[indices]
    np.testing.assert_array_equal(expand_dots(batch, spec), source.dots[indices])
    np.testing.assert_array_equal(expand_walls(batch), walls)
    frames = np.stack([source.dots[indices], walls], axis=2).astype(np.float32) * np.float32(source.scale)
    np.testing.assert_array_equal(expand_frames(batch, spec), frames)
    np.testing.assert_array_equal(batch.actions, source.actions[indices])
    assert all(field is None or field.is_contiguous() for field in batch)
    if spec.wall_window is not None:
        assert batch.wall_groups.dtype == torch.int32


@pytest.mark.parametrize("ranks", [1, 3])
def test_training_batches_are_the_samplers_rows_of_the_source(packed, ranks):
    source, split = packed
    for rank in range(ranks):
        sampler = Sampler(40, 4, seed=1, ranks=ranks, rank=rank)
        batches = list(HostLoader(split, sampler).batches(epoch=2))
        assert len(batches) == 40 // (4 * ranks)
        for batch, indices in zip(batches, sampler.batches(2), strict=True):
            assert_holds(batch, source, indices, split.spec)


def test_evaluation_batches_are_everything_in_order_with_the_tail(packed):
    source, split = packed
    batches = list(evaluation_batches(split, 16))
    assert [len(batch.indices) for batch in batches] == [16, 16, 8]
    for batch, first in zip(batches, (0, 16, 32), strict=True):
        assert_holds(batch, source, np.arange(first, first + len(batch.indices)), split.spec)


def test_an_epoch_resumes_at_any_batch(split):
    loader = HostLoader(split, Sampler(40, 7, seed=0))
    whole = list(loader.batches(3))
    for start in range(len(whole) + 1):
        rest = list(loader.batches(3, start))
        assert len(rest) == len(whole) - start
        for expected, found in zip(whole[start:], rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_batches_do_not_share_memory(split):
    batches = list(evaluation_batches(split, 10))
    fields = [field for batch in batches for field in batch]
    assert len({field.data_ptr() for field in fields}) == len(fields)


def test_an_abandoned_epoch_leaves_no_thread(split):
    loader = HostLoader(split, Sampler(40, 2, seed=0))
    closed = loader.batches(0)
    next(closed)
    assert loader_threads()
    closed.close()
    assert loader_threads() == []
    for _ in loader.batches(0):
        break
    assert loader_threads() == []
    assert len(list(loader.batches(0))) == 20
    assert loader_threads() == []


def test_batches_are_gathered_ahead_but_not_far(split, monkeypatch):
    gathered = []

    def count(split, indices):
        gathered.append(indices)
        return gather(split, indices)

    monkeypatch.setattr("jepa_fast.data.host.gather", count)
    batches = HostLoader(split, Sampler(40, 2, seed=0)).batches(0)
    for consumed in range(1, 6):
        next(batches)
        assert consumed <= len(gathered) <= consumed + 2
    batches.close()
    assert len(gathered) <= 7


def test_an_error_while_gathering_reaches_the_consumer(split, monkeypatch):
    def fail(split, indices):
        if indices[0] >= 20:
            raise OSError("the disk is gone")
        return gather(split, indices)

    monkeypatch.setattr("jepa_fast.data.host.gather", fail)
    batches = evaluation_batches(split, 10)
    assert [next(batches).indices[0], next(batches).indices[0]] == [0, 10]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert loader_threads() == []


def test_a_sampler_of_another_split_is_refused(split):
    with pytest.raises(ValueError, match="found 41 trajectories, expected the split's 40"):
        HostLoader(split, Sampler(41, 4, seed=0))
