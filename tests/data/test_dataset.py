"""Packing any iterable of episodes, and reading it back one trajectory at a time."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import jepa_fast
from jepa_fast.data.dataset import TrajectoryDataset, pack
from jepa_fast.errors import InputError


def draw_episodes(count=6, frames=4, image=(3, 20, 34), action=(7,), kind="uint8", seed=0):
    """Frames with a moving corner, actions, and two targets, one of them a number per frame."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        states = np.repeat(random.integers(0, 256, (1, *image)), frames, axis=0)
        states[..., :5, :7] = random.integers(0, 256, (frames, *image[:-2], 5, 7))
        states = states.astype("uint8") if kind == "uint8" else (states / 127.5 - 1).astype(kind)
        targets = {"place": random.random((frames, 2)), "angle": random.random(frames)}
        yield states, random.standard_normal((frames - 1, *action)).astype(np.float32), targets


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("image", [(3, 20, 34), (1, 28, 28), (2, 48, 80)])
def test_trajectories_come_back_as_they_were_given(tmp_path, image, kind):
    data = pack(draw_episodes(image=image, kind=kind), tmp_path / "mine", workers=1)
    assert len(data) == 6
    assert data.spec.targets == (("place", 2), ("angle", 1))
    for found, (frames, actions, targets) in zip(data, draw_episodes(image=image, kind=kind), strict=True):
        assert found.frames.dtype == found.actions.dtype == torch.float32
        assert found.frames.shape == (4, *image)
        # The brightest byte stands for 1.
        meant = frames / 255 if kind == "uint8" else frames
        off = abs(found.frames.numpy().astype(np.float64) - meant).max()
        assert off <= (1e-7 if kind == "uint8" else data.spec.scale * 0.51)
        np.testing.assert_array_equal(found.actions, actions)
        np.testing.assert_array_equal(found.targets["place"], targets["place"].astype(np.float32))
        np.testing.assert_array_equal(found.targets["angle"][:, 0], targets["angle"].astype(np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_channels_may_stand_last_or_be_missing_and_flags_are_pixels(tmp_path):
    first = list(draw_episodes())
    last = ((np.moveaxis(frames, 1, -1), actions) for frames, actions, _ in first)
    data = jepa_fast.pack(last, tmp_path / "last", workers=1)
    np.testing.assert_allclose(data[3].frames, first[3][0] / 255, rtol=0, atol=1e-7)
    flags = (((frames[:, 0] > 99), actions[:, 0], None) for frames, actions, _ in first)
    data = jepa_fast.pack(flags, tmp_path / "flags", workers=1)
    assert (data.spec.channels, data.spec.action_size, data.spec.targets) == (1, 1, ())
    np.testing.assert_array_equal(data[2].frames[:, 0], first[2][0][:, 0] > 99)
    small = [(np.zeros((3, 8, 9, 5), np.uint8), np.zeros((2, 1)))]
    with pytest.raises(InputError, match="expected to be told whether channels are first or last"):
        pack(small, tmp_path / "small", workers=1)
    assert pack(small, tmp_path / "small", channels="last", workers=1).spec.channels == 5


def test_integer_actions_become_one_hot_and_groups_have_names(tmp_path):
    episodes = ((frames, np.arange(4) % 3) for frames, _, _ in draw_episodes())
    data = pack(episodes, tmp_path / "mine", action_classes=3, groups=(("rgb", 3),), workers=1)
    # Of as many actions as frames the last is left out.
    np.testing.assert_array_equal(data[5].actions, np.eye(3, dtype=np.float32)[[0, 1, 2]])
    assert data.spec.groups[0].name == "rgb"


def test_it_is_pickled_as_a_folder_and_works_in_the_workers_of_a_data_loader(tmp_path):
    data = pack(draw_episodes(), tmp_path / "mine", workers=1)
    assert len(pickle.dumps(data)) < 1000
    again = pickle.loads(pickle.dumps(data))
    assert Path(again) == tmp_path / "mine"
    loader = DataLoader(again, batch_size=4, num_workers=2, multiprocessing_context="spawn")
    batches = list(loader)
    assert [len(batch.actions) for batch in batches] == [4, 2]
    assert torch.equal(batches[1].frames[1], data[-1].frames)
    assert torch.equal(batches[0].targets["place"][2], data[2].targets["place"])


@pytest.mark.parametrize("index", [6, -7])
def test_there_is_no_trajectory_beyond_the_last(tmp_path, index):
    data = pack(draw_episodes(), tmp_path / "mine", workers=1)
    with pytest.raises(IndexError, match=f"index: got {index}, expected at most 5 in a set of 6"):
        data[index]


def change(number, position, function):
    episodes = [list(episode) for episode in draw_episodes()]
    episodes[number][position] = function(episodes[number][position])
    return episodes


def nan(array):
    array = array.copy()
    array[2, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "episodes: found none, expected at least one"),
        (
            change(3, 0, lambda frames: frames[2:]),
            r"actions\.npy: episode 3: found 3 rows for 2 frames, expected 1, as .*frames\.npy is 6 episodes of 2 to 4",
        ),
        (
            change(2, 0, lambda frames: frames / 2),
            r"episode 2: frames: found float64 .*, expected uint8 .* as in episode 0",
        ),
        (
            change(1, 1, lambda actions: actions[:, 1:]),
            r"episode 1: actions: found float32 \[3, 6\], expected .*\[T, 7\]",
        ),
        (change(1, 1, nan), r"actions\.npy: trajectory 1, step 2: found nan, expected finite numbers"),
        (change(4, 2, lambda targets: {"place": targets["place"]}), r"episode 4: found .*, expected .*'target.angle'"),
        (
            change(0, 2, lambda targets: {"a b": targets["place"]}),
            "targets: got the name 'a b', expected a Python ident",
        ),
        (change(0, 0, lambda frames: frames.astype(object)), r"episode 0: frames: found object .*, expected numbers"),
    ],
)
def test_episodes_that_do_not_fit_are_refused_by_number(tmp_path, episodes, message):
    with pytest.raises(InputError, match=message):
        pack(episodes, tmp_path / "mine", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_the_names_are_public():
    assert jepa_fast.TrajectoryDataset is TrajectoryDataset
    assert jepa_fast.pack is pack
    with pytest.raises(AttributeError, match="module 'jepa_fast' has no attribute 'nothing'"):
        _ = jepa_fast.nothing
