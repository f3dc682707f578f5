"""Loaders, sampler and run together: any number of ranks, any loader, any interruption give the same bits."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_fast.config import JEPAConfig, Recipe, RunConfig
from jepa_fast.data.host import gather
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.packing import pack
from jepa_fast.data.sampler import Position, Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.engine.loop import train
from jepa_fast.runs import create_run

CPU = torch.device("cpu")
WITHOUT_DALI = importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None
LOADERS = [
    "host",
    "resident",
    pytest.param("dali", marks=pytest.mark.skipif(WITHOUT_DALI, reason="DALI is not installed")),
]


@pytest.fixture(scope="module")
def split(tmp_path_factory, draw_source):
    folder = tmp_path_factory.mktemp("split")
    pack(draw_source(count=53), folder, shard_rows=20)
    return open_split(folder)


def present(batch):
    """The tensors that a batch has, its indices first."""
    return [tensor for tensor in batch.tensors().values() if tensor is not None]


def global_batches(name, split, ranks, seed, first, stop):
    """The batches of all ranks put together, step by step: field by field."""
    per_rank = []
    for rank in range(ranks):
        sampler = Sampler(split.count, 12 // ranks, seed, ranks, rank)
        batches = open_loader(name, split, CPU).batches(sampler.steps(first, stop))
        per_rank.append([[field.clone() for field in present(batch)] for batch in batches])
    return [[torch.cat(fields) for fields in zip(*parts, strict=True)] for parts in zip(*per_rank, strict=True)]


@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranks=st.integers(1, 4), later=st.integers(1, 4), seed=st.integers(0, 2**63), cut=st.integers(0, 10))
def test_a_run_goes_on_where_it_was_on_any_number_of_ranks(split, name, ranks, later, seed, cut):
    """Steps 0 to 9, two and a half epochs: `cut` of them on some ranks, the rest on others."""
    whole = [gather(split, indices) for indices in Sampler(split.count, 12, seed).steps(0, 10)]
    sampler = Sampler(split.count, 12 // ranks, seed, ranks)
    position = Position.of(sampler, split.fingerprint, *divmod(cut, sampler.batches_per_epoch))
    resumed = Sampler(split.count, 12 // later, seed, later)
    position.check(resumed, split.fingerprint)
    done = position.epoch * resumed.batches_per_epoch + position.batch
    found = global_batches(name, split, ranks, seed, 0, cut) + global_batches(name, split, later, seed, done, 10)
    assert len(found) == len(whole)
    for fields, batch in zip(found, whole, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(fields, present(batch), strict=True))
    for epoch in range(2):
        used = torch.cat([fields[0] for fields in found[4 * epoch : 4 * epoch + 4]]).numpy()
        assert len(np.unique(used)) == len(used) == 48


def final_state(folder, config):
    create_run(folder, config)
    train(config, folder)
    return load_checkpoint(folder)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, dict):
            assert_same(value, theirs[key])
        else:
            assert torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key], key


@pytest.mark.skipif(WITHOUT_DALI, reason="DALI is not installed")
def test_every_loader_trains_to_the_same_bits(tmp_path, two_rooms):
    config = RunConfig(
        preset="test", recipe=Recipe(model=JEPAConfig(channels=4, blocks=1, dim=16)), seed=3, steps=10, batch_size=8,
        amp="off", compile=False, device="cpu", data=str(two_rooms), loader="host", kernels="reference",
        sparse=True,
    )  # fmt: skip
    expected = final_state(tmp_path / "host", config)
    for name in ("resident", "dali"):
        assert_same(final_state(tmp_path / name, replace(config, loader=name)), expected)
