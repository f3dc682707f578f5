"""The three loaders against the source and against each other: the same batches, bit for bit."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_fast.data.batches import expand_frames, expand_pixels
from jepa_fast.data.host import evaluation_batches, gather, group_bases
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.packing import pack
from jepa_fast.data.sampler import Sampler, evaluation_order
from jepa_fast.data.shards import open_split

CPU = torch.device("cpu")
WITHOUT_DALI = importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None
LOADERS = [
    "host",
    "resident",
    pytest.param("dali", marks=pytest.mark.skipif(WITHOUT_DALI, reason="DALI is not installed")),
]
ENCODINGS = ["window", "static", "dense"]


@pytest.fixture(
    scope="module",
    params=[
        "window",
        "window without base images",
        *ENCODINGS[1:],
        "moving wall",
        *(f"rgb {kind}" for kind in ("static", "static over images", "black", "one image", "images", "own", "dense")),
    ],
)
def packed(request, tmp_path_factory, draw_source, draw_kind):
    """A source of 40 trajectories and its split in shards of 15, 15 and 10, in every layout that a split can have."""
    if request.param.startswith("rgb "):
        source = draw_kind(request.param.removeprefix("rgb "), count=40)
        folder = tmp_path_factory.mktemp("split")
        pack(source, folder, shard_rows=15)
        return source, open_split(folder)
    source = draw_source()
    source.walls = np.broadcast_to(source.walls[:, None], source.dots.shape).copy()
    if request.param == "window without base images":
        source.walls[:] = np.random.default_rng(0).integers(0, 256, (40, 1, 20, 26))
    if request.param == "moving wall":
        source.walls[31, 3, 0, 0] ^= 1
        source.walls[31, 3, 0, -1] ^= 1
    folder = tmp_path_factory.mktemp("split")
    pack(source, folder, request.param if request.param in ENCODINGS else "window", shard_rows=15)
    return source, open_split(folder)


@pytest.fixture
def split(tmp_path, draw_source):
    pack(draw_source(), tmp_path, shard_rows=15)
    return open_split(tmp_path)


def assert_holds(batch, source, indices, split):
    """Every pixel and number of the batch is the source's."""
    spec, bases = split.spec, group_bases(split)
    np.testing.assert_array_equal(batch.indices, indices)
    groups = source.chunk(0, source.count).groups
    pixels = np.concatenate(groups, axis=2)[indices]
    np.testing.assert_array_equal(expand_pixels(batch, spec, bases), pixels)
    frames = pixels.astype(np.float32) * np.float32(source.scale)
    np.testing.assert_array_equal(expand_frames(batch, spec, bases), frames)
    np.testing.assert_array_equal(batch.actions, source.actions[indices])
    assert all(tensor is None or tensor.is_contiguous() for tensor in batch.tensors().values())


def assert_same(batch, expected):
    """Every field has the same type, shape and bits, or is missing in both."""
    found, wanted = batch.tensors(), expected.tensors()
    assert list(found) == list(wanted)
    for name, ours in found.items():
        theirs = wanted[name]
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.dtype == theirs.dtype, name
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_training_batches_are_the_samplers_rows_of_the_source(packed, name, ranks):
    source, split = packed
    loader = open_loader(name, split, CPU)
    for rank in range(ranks):
        sampler = Sampler(40, 4, seed=1, ranks=ranks, rank=rank)
        orders = list(sampler.batches(2))
        found = 0
        for batch, indices in zip(loader.batches(iter(orders)), orders, strict=True):
            assert_holds(batch, source, indices, split)
            assert_same(batch, gather(split, indices))
            found += 1
        assert found == 40 // (4 * ranks)


@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40), max_size=9), seed=st.integers(0, 99))
def test_batches_of_any_sizes_follow_each_other(packed, name, sizes, seed):
    split = packed[1]
    random = np.random.default_rng(seed)
    orders = [np.sort(random.choice(40, size, replace=False)) for size in sizes]
    for batch, indices in zip(open_loader(name, split, CPU).batches(orders), orders, strict=True):
        assert_same(batch, gather(split, indices))


@pytest.mark.parametrize("name", LOADERS)
def test_evaluation_is_everything_in_order_with_the_tail(packed, name):
    source, split = packed
    batches = open_loader(name, split, CPU).batches(evaluation_order(40, 16))
    sizes = []
    for batch, alone in zip(batches, evaluation_batches(split, 16), strict=True):
        assert_same(batch, alone)
        assert_holds(batch, source, np.arange(16 * len(sizes), min(16 * len(sizes) + 16, 40)), split)
        sizes.append(len(batch.indices))
    assert sizes == [16, 16, 8]


@pytest.mark.parametrize("name", LOADERS)
def test_a_batch_stays_valid_until_the_second_one_after_it_is_asked_for(split, name):
    sampler = Sampler(40, 8, seed=0)
    previous = None
    for batch in open_loader(name, split, CPU).batches(sampler.steps(0, 25)):
        if previous is not None:
            for held, copy in (previous, (batch, gather(split, batch.indices.numpy()))):
                assert_same(held, copy)
        previous = batch, gather(split, batch.indices.numpy())


@pytest.mark.parametrize("name", LOADERS)
def test_memory_is_used_again(split, name):
    batches = open_loader(name, split, CPU).batches(Sampler(40, 8, seed=0).steps(0, 40))
    assert len({batch.groups[0].pixels.data_ptr() for batch in batches}) <= 5
