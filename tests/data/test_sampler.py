import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_fast.data.sampler import Position, Sampler, evaluation_order
from jepa_fast.errors import InputError

GOLDEN_ORDER = [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]
GOLDEN_HASH = "5dd4a4a3c0ab66a3fa381d4e13d0177cea3ecf0a2b878010627bba3ea72405a4"

seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 1000)


@st.composite
def geometries(draw):
    """(N, B, W) with at least one batch."""
    ranks, batch_size = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    return draw(st.integers(ranks * batch_size, 200)), batch_size, ranks


@given(geometries(), seeds, epochs)
def test_ranks_share_an_epoch_without_overlap(geometry, seed, epoch):
    count, batch_size, ranks = geometry
    per_rank = [list(Sampler(count, batch_size, seed, ranks, rank).batches(epoch)) for rank in range(ranks)]
    assert {len(batches) for batches in per_rank} == {count // (batch_size * ranks)}
    used = np.concatenate([batch for batches in per_rank for batch in batches])
    assert len(np.unique(used)) == len(used) == count // (batch_size * ranks) * batch_size * ranks
    assert used.min() >= 0
    assert used.max() < count
    for batches in per_rank:
        for batch in batches:
            assert batch.dtype == np.int64
            assert len(batch) == batch_size
            assert (np.diff(batch) > 0).all()


@given(st.integers(1, 5), seeds, epochs)
def test_the_global_batches_and_their_rows_do_not_depend_on_the_number_of_ranks(batches, seed, epoch):
    count = 12 * batches + 5
    alone = list(Sampler(count, 12, seed).batches(epoch))
    for ranks in (2, 3, 4):
        per_rank = [Sampler(count, 12 // ranks, seed, ranks, rank).batches(epoch) for rank in range(ranks)]
        together = [np.concatenate(parts) for parts in zip(*per_rank, strict=True)]
        np.testing.assert_array_equal(together, alone)


@given(geometries(), seeds, epochs, st.integers(0, 30))
def test_a_resumed_epoch_gives_the_rest_of_it(geometry, seed, epoch, start):
    count, batch_size, ranks = geometry
    sampler = Sampler(count, batch_size, seed, ranks, rank=ranks - 1)
    whole = list(sampler.batches(epoch))
    rest = list(sampler.batches(epoch, start))
    assert len(rest) == max(0, len(whole) - start)
    for expected, found in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(found, expected)


@given(geometries(), seeds, st.integers(0, 12), st.integers(0, 12))
def test_steps_count_through_the_epochs(geometry, seed, first, stop):
    count, batch_size, ranks = geometry
    sampler = Sampler(count, batch_size, seed, ranks, rank=ranks - 1)
    expected = [batch for epoch in range(stop) for batch in sampler.batches(epoch)][first:stop]
    found = list(sampler.steps(first, stop))
    assert len(found) == max(0, stop - first)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(st.integers(1, 300), seeds, epochs)
def test_the_order_is_a_permutation_that_follows_the_philox_words(count, seed, epoch):
    sampler = Sampler(count, 1, seed)
    order = sampler.order(epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    assert all(words[order][:-1] <= words[order][1:])
    assert sampler.order_hash(epoch) == Sampler(count, 1, seed).order_hash(epoch)


def test_the_order_is_the_one_that_earlier_runs_drew():
    # Philox is specified bit by bit, so this must never change: runs are resumed across machines and releases.
    assert Sampler(10, 1, seed=7).order(3).tolist() == GOLDEN_ORDER
    assert Sampler(1000, 1, seed=7).order_hash(3) == GOLDEN_HASH


def test_epochs_and_seeds_have_orders_of_their_own():
    hashes = {Sampler(100, 1, seed).order_hash(epoch) for seed in range(4) for epoch in range(4)}
    assert len(hashes) == 16


@given(st.integers(1, 100), st.integers(1, 30))
def test_evaluation_sees_everything_once_in_order(count, batch_size):
    batches = list(evaluation_order(count, batch_size))
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(count))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 0), "batch size: got 0, expected at least 1"),
        ((10, 11, 0), "batch size: got 11, expected at most 10: 10 trajectories on 1 ranks"),
        ((10, 4, 0, 3), "batch size: got 4, expected at most 3: 10 trajectories on 3 ranks"),
        ((10, 1, -1), "seed: got -1"),
        ((10, 1, 2**64), "seed: got 18446744073709551616"),
        ((10, 1, 0, 2, 2), r"rank: got 2, expected an integer in \[0, 2\)"),
    ],
)
def test_impossible_samplers_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Sampler(*arguments)


def test_a_position_survives_json():
    position = Position.of(Sampler(100, 8, 2**63), "abc", epoch=4, batch=7)
    assert Position.from_json(json.loads(json.dumps(position.to_json()))) == position


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": "7"}, "position: batch: found '7', expected a value of type int"),
        ({"batch": True}, "position: batch: found True"),
        ({"extra": 1}, "position: found fields .*extra"),
    ],
)
def test_a_damaged_position_is_refused(change, message):
    record = Position.of(Sampler(100, 8, 0), "abc", epoch=4, batch=7).to_json()
    with pytest.raises(InputError, match=message):
        Position.from_json({**record, **change})


@pytest.mark.parametrize(("batch_size", "ranks"), [(12, 1), (6, 2), (4, 3), (3, 4)])
def test_a_run_may_resume_on_another_number_of_ranks(batch_size, ranks):
    position = Position.of(Sampler(100, 12, 5), "abc", epoch=1, batch=3)
    position.check(Sampler(100, batch_size, 5, ranks), "abc")


@pytest.mark.parametrize(
    ("sampler", "fingerprint", "field"),
    [
        (Sampler(100, 12, 6), "abc", "seed"),
        (Sampler(99, 12, 5), "abc", "count"),
        (Sampler(100, 6, 5), "abc", "global_batch"),
        (Sampler(100, 12, 5), "abd", "fingerprint"),
    ],
)
def test_a_position_of_another_run_is_refused_by_field(sampler, fingerprint, field):
    position = Position.of(Sampler(100, 12, 5), "abc", epoch=1, batch=3)
    with pytest.raises(InputError, match=f"resume: {field}: found .*, expected .* as in the interrupted run"):
        position.check(sampler, fingerprint)


def test_a_position_past_the_epoch_is_refused():
    sampler = Sampler(100, 12, 5)
    Position.of(sampler, "abc", 1, 8).check(sampler, "abc")
    for position in (Position.of(sampler, "abc", 1, 9), Position.of(sampler, "abc", -1, 0)):
        with pytest.raises(InputError, match=r"expected a batch in \[0, 8\]"):
            replace(position).check(sampler, "abc")
