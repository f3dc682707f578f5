"""Trajectories of any length, stored end to end, and clips of them: the same bits from the source by every loader."""

import contextlib
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_fast.config import LoopOptions
from jepa_fast.data.batches import expand_pixels
from jepa_fast.data.clips import cut
from jepa_fast.data.dataset import TrajectoryDataset
from jepa_fast.data.decoding import decoded_frames, stored_rows
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.packing import pack
from jepa_fast.data.resident import ResidentLoader
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.engine.loop import train, training
from jepa_fast.errors import InputError
from jepa_fast.model_config import Group
from jepa_fast.runs import create_run
from tests.data.conftest import KINDS
from tests.one_step_runs import configuration

CPU = torch.device("cpu")
LOADERS = ["host", "resident", "dali"]
WITHOUT_DALI = importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None
LENGTHS = (5, 9, 2, 9, 9, 12, 3, 30, 5, 5, 8, 2, 17)
# The median of fewer frames need not be their background.
LONGER = tuple(max(5, length) for length in LENGTHS)


@pytest.fixture(scope="module", params=KINDS)
def packed(request, tmp_path_factory, draw_lengths):
    """A source of each kind and its split in four shards."""
    source = draw_lengths(request.param, LONGER if request.param in ("images", "own") else LENGTHS)
    folder = tmp_path_factory.mktemp("split")
    pack(source, folder, shard_rows=4)
    return source, open_split(folder, verify=True), KINDS[request.param]


@pytest.fixture
def split(tmp_path, draw_lengths):
    pack(draw_lengths("own", LENGTHS), tmp_path / "mine", shard_rows=4)
    return open_split(tmp_path / "mine")


def starts(lengths, span, every=1):
    """Trajectory and first frame of every clip, in order."""
    return [(number, start) for number, length in enumerate(lengths) for start in range(0, length - span + 1, every)]


def test_every_trajectory_comes_back_whole(packed):
    source, split, (codec, base) = packed
    group = split.spec.groups[0]
    assert (group.codec, group.base) == (codec, base)
    assert split.manifest.version == 3
    assert (split.spec.shortest, split.spec.frames) == (min(source.lengths), 30)
    np.testing.assert_array_equal(split.lengths, source.lengths)
    for number, length in enumerate(source.lengths):
        row = np.array([number])
        pixels, actions, places = source.clip(number, 0, length, 1)
        np.testing.assert_array_equal(decoded_frames(split, row)[0], pixels)
        np.testing.assert_array_equal(stored_rows(split, "actions", row)[0], actions)
        np.testing.assert_array_equal(split.targets("place", row)[0], places)


@pytest.mark.parametrize(("frames", "skip"), [(4, 1), (3, 4), (2, 1), (17, 1)])
@pytest.mark.parametrize("apart", [False, True])
def test_all_loaders_give_the_same_clips_and_they_are_the_sources(packed, frames, skip, apart):
    source, split, _ = packed
    drawn, span = split.clips(frames, skip, apart), (frames - 1) * skip + 1
    expected = starts(source.lengths, span, span if apart else 1)
    assert drawn.count == len(expected)
    assert (drawn.spec.frames, drawn.spec.action_size) == (frames, 7 * skip)
    orders = [np.arange(low, min(low + 5, drawn.count)) for low in range(0, drawn.count, 5)]
    loaders = [name for name in LOADERS if name != "dali" or not WITHOUT_DALI]
    loaded = [open_loader(name, drawn, CPU).batches(iter(orders)) for name in loaders]
    resident = ResidentLoader(drawn, CPU)
    bases = group_bases(drawn)
    for indices, *batches in zip(orders, *loaded, strict=True):
        for batch in (*batches, resident.take(torch.from_numpy(indices))):
            wanted = gather(drawn, indices).tensors()
            assert batch.length == frames
            for name, tensor in batch.tensors().items():
                other = wanted[name]
                assert (tensor is None) == (other is None), name
                assert tensor is None or (tensor.dtype == other.dtype and torch.equal(tensor, other)), name
        pixels, actions, places = (
            np.stack(each)
            for each in zip(*(source.clip(*expected[index], frames, skip) for index in indices), strict=True)
        )
        np.testing.assert_array_equal(expand_pixels(batches[0], drawn.spec, bases), pixels)
        np.testing.assert_array_equal(batches[0].actions, actions)
        np.testing.assert_array_equal(drawn.targets("place", indices), places)


def test_clips_of_trajectories_of_one_length_are_their_frames(tmp_path, draw_kind):
    source = draw_kind("own", frames=8)
    pack(source, tmp_path, shard_rows=10)
    split = open_split(tmp_path)
    assert split.manifest.version == 2
    assert split.clips() is split
    assert split.clips(8) is split
    drawn = split.clips(3, 2)
    assert drawn.count == 24 * 4
    batch = gather(drawn, np.array([5, 90]))
    pixels = expand_pixels(batch, drawn.spec)
    np.testing.assert_array_equal(pixels[0], source.first[1, 1:6:2])
    np.testing.assert_array_equal(pixels[1], source.first[22, 2:7:2])
    np.testing.assert_array_equal(batch.actions[0], source.actions[1, 1:5].reshape(2, 14))


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12),
    frames=st.integers(2, 9),
    skip=st.integers(1, 4),
    apart=st.booleans(),
)
def test_clips_are_counted_start_by_start(lengths, frames, skip, apart):
    span = (frames - 1) * skip + 1
    lengths = np.array(lengths)
    if lengths.max() < span:
        with pytest.raises(InputError, match=r"--data\.frame(s|-skip): got"):
            cut(lengths, frames, skip, apart)
        return
    clips = cut(lengths, frames, skip, apart)
    expected = starts(lengths, span, span if apart else 1)
    found = clips.rows(np.arange(clips.count))
    ends = np.cumsum(lengths)
    assert found.trajectories.tolist() == [number for number, _ in expected]
    for number, start, rows, actions in zip(*zip(*expected, strict=True), found.frames, found.actions, strict=True):
        first = int(ends[number] - lengths[number])
        assert rows.tolist() == list(range(first + start, first + start + span, skip))
        assert actions.tolist() == list(range(first - number + start, first - number + start + span - 1))


def test_what_is_too_short_is_counted_and_named(split):
    assert (
        split.clips(9)
        .explain()
        .endswith(
            "mine: 38 clips of 9 frames (--data.frames) from 6 trajectories of 2 to 30 frames; "
            "7 that are shorter are left out: 0, 2, 6, 8, 9, 10, 11"
        )
    )
    assert "5 clips of 6 frames, 5 frames from one to the next, (" in split.clips(6, 5).explain()
    assert split.clips().spec.frames == 16
    assert split.clips(None, 10).spec.frames == 3
    with pytest.raises(InputError, match=r"--data\.frames: got 31, expected from 2 to 30: trajectories have up to 30"):
        split.clips(31)
    with pytest.raises(InputError, match=r"--data\.frame-skip: got 0, expected from 1 to 29: trajectories have"):
        split.clips(3, 0)
    with pytest.raises(InputError, match=r"--data\.frames: got 4, expected from 2 to 3: .* one in 12 of them"):
        split.clips(4, 12)


def test_training_on_clips_resumes_to_the_same_bits(split, tmp_path):
    config = configuration("baseline", split.folder, frames=4, frame_skip=2, kernels="fused")
    small = replace(config.recipe.model, channels=4, dim=8, groups=(Group("rgb", 3),), action_size=14)
    config = replace(config, recipe=replace(config.recipe, model=small), steps=5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        create_run(folder, config)
    train(config, whole)
    with contextlib.closing(training(config, parts, LoopOptions(checkpoint_minutes=0))) as steps:
        for progress in steps:
            if progress.done == 3:
                break
    train(config, parts, LoopOptions(resume=True))
    ours, theirs = load_checkpoint(whole), load_checkpoint(parts)
    assert ours["position"] == theirs["position"]
    for name, tensor in ours["model"].items():
        assert torch.equal(tensor, theirs["model"][name]), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_an_epoch_of_clips_is_drawn_once_over_all_ranks(split, ranks):
    drawn = split.clips(3)
    orders = [
        [batch.tolist() for batch in Sampler(drawn.count, 4, seed=3, ranks=ranks, rank=rank).batches(1)]
        for rank in range(ranks)
    ]
    seen = [clip for order in orders for batch in order for clip in batch]
    assert len(seen) == len(set(seen)) == drawn.count // (4 * ranks) * 4 * ranks


def test_whole_trajectories_of_different_lengths_are_no_batch(split):
    with pytest.raises(InputError, match="trajectories have 2 to 30 frames: a batch needs clips of them"):
        gather(split, np.array([0, 1]))
    with pytest.raises(InputError, match="trajectories have 5 to 9 frames, expected clips of one length"):
        decoded_frames(split, np.array([0, 1]))
    assert decoded_frames(split, np.array([1, 3, 4])).shape == (3, 9, 3, 20, 26)


def test_a_data_set_gives_whole_trajectories_of_their_own_lengths(split):
    data = TrajectoryDataset(split.folder)
    assert [len(data[number].frames) for number in range(len(data))] == list(LENGTHS)
    assert data[7].actions.shape == (29, 7)
    assert data[7].targets["place"].shape == (30, 2)


def test_a_killed_packer_of_any_lengths_goes_on_to_the_same_bits(tmp_path, draw_lengths, folder_bytes):
    source = draw_lengths("own", LENGTHS)
    pack(source, tmp_path / "whole", shard_rows=4)

    def fail_late(start, stop):
        if start >= 8:
            raise KeyboardInterrupt
        return type(source).chunk(source, start, stop)

    source.chunk = fail_late
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "parts", shard_rows=4)
    assert (tmp_path / "parts" / "shard-00001.json").exists()
    del source.chunk
    pack(source, tmp_path / "parts", shard_rows=4)
    assert folder_bytes(tmp_path / "parts") == folder_bytes(tmp_path / "whole")


def test_shards_and_tasks_of_any_lengths_are_cut_by_bytes(tmp_path, draw_lengths, monkeypatch):
    monkeypatch.setattr("jepa_fast.data.packing.CHUNK_BYTES", 20_000)
    monkeypatch.setattr("jepa_fast.data.packing.SHARD_BYTES", 50_000)
    source = draw_lengths("dense", LENGTHS)
    asked = []

    def watch(start, stop):
        asked.append((start, stop))
        return type(source).chunk(source, start, stop)

    source.chunk = watch
    manifest = pack(source, tmp_path)
    assert [shard.rows for shard in manifest.shards] == [4, 3, 1, 4, 1]
    for start, stop in asked:
        assert sum(LENGTHS[start:stop]) * 3 * 20 * 26 <= 20_000 or stop == start + 1
    assert open_split(tmp_path, verify=True).count == len(LENGTHS)


def test_a_manifest_or_lengths_that_disagree_with_the_files_are_refused(split):
    path = split.folder / "manifest.json"
    record = json.loads(path.read_text())
    record["shards"][1]["files"]["rgb.pixels"]["rows"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"shards\[1\]\.files\.rgb\.pixels\.rows: found \d+, expected \d+"):
        open_split(split.folder)
    record["shards"][1]["files"]["rgb.pixels"]["rows"] -= 1
    record["shortest"] = 30
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="shortest: found 30, expected less than 30, the longest"):
        open_split(split.folder)
    record["shortest"] = 2
    path.write_text(json.dumps(record))
    file = split.folder / record["shards"][0]["files"]["length"]["name"]
    np.save(file, np.array([5, 9, 3, 9]))
    with pytest.raises(InputError, match=r"length-00000\.npy: found 26 frames .*, expected 25 in 2 to 30"):
        open_split(split.folder)


def test_a_number_that_is_not_finite_is_found_in_its_trajectory(tmp_path, draw_lengths):
    source = draw_lengths("own", LENGTHS)
    source.actions[5][3, 2] = np.nan
    with pytest.raises(InputError, match="trajectory 5, step 3: actions: found"):
        pack(source, tmp_path / "mine", shard_rows=4)
    source = draw_lengths("own", LENGTHS)
    source.places[3][8, 1] = np.inf
    with pytest.raises(InputError, match="trajectory 3, step 8: place: found"):
        pack(source, tmp_path / "other", shard_rows=4)
