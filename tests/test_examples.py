"""The examples run as they stand, made small, and do what they say."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import jepa_fast as jf
from jepa_fast.engine.record import read_spectra

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_an_encoder_of_ones_own_trains_and_does_not_collapse(tmp_path, capsys):
    run = example("own_encoder").main(tmp_path, trajectories=256, steps=60, dim=32)
    first, last = run.metrics[0], run.metrics[-1]
    assert last["total"] < first["total"] / 2
    assert read_spectra(run.folder)[-1]["rankme"] > 5
    assert capsys.readouterr().out == f"loss {first['total']:.2f} at step 10, {last['total']:.2f} at step 60\n"


def test_data_of_ones_own_are_packed_trained_on_and_known_from_predicted_latents(tmp_path, capsys):
    found = example("own_data").main(tmp_path, count=256, steps=100, dim=32)
    assert found["place"] > 0.5
    assert capsys.readouterr().out == f"R^2 of place: {found['place']:.2f}, R^2 of colour: {found['colour']:.2f}\n"


def walk(random, steps, side, size):
    """A dark square on white, moved by its actions: frames [T, H, W, 3], actions [T - 1, 2], places [T, 2]."""
    actions = random.uniform(-1, 1, (steps, 2)).astype(np.float32)
    places = random.uniform(0.3, 0.6, 2) * side + np.cumsum(np.concatenate([np.zeros((1, 2)), actions]), axis=0)
    frames = np.full((steps + 1, side, side, 3), 255, np.uint8)
    for frame, (x, y) in zip(frames, places.round().astype(int), strict=True):
        frame[y : y + size, x : x + size, 1:] = 0
    return frames, actions, places.astype(np.float32)


def test_two_rooms_of_stable_worldmodel_are_read_learned_and_probed(tmp_path, capsys):
    """From a file as its HDF5 writer lays it out: one dataset a column, episodes end to end, a chunk a row."""
    random, module = np.random.default_rng(0), example("stable_worldmodel_tworoom")
    lengths = [17] * 90 + [4, 9]
    columns = {"pixels": [], "action": [], "proprio": []}
    for length in lengths:
        frames, actions, places = walk(random, length - 1, 48, 6)
        # The last row has an action too, which leads nowhere.
        rows = frames, np.concatenate([actions, [[9, 9]]]).astype(np.float32), places
        for name, values in zip(columns, rows, strict=True):
            columns[name].append(values)
    path = tmp_path / "tworoom.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for name, parts in columns.items():
            values = np.concatenate(parts)
            file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=(1, *values.shape[1:]))
        file.create_dataset("ep_len", data=np.array(lengths, np.int32))
        file.create_dataset("ep_offset", data=np.cumsum([0, *lengths[:-1]]).astype(np.int64))
    found = module.learn(path, tmp_path, steps=60, channels=8, stride=4)
    # Episodes of 17 frames hold one clip of nine and eight frames more; that of four holds none.
    assert found.fitted + found.scored == len(lengths) - 1
    assert 0 < found.scored < 0.2 * len(lengths)
    assert jf.TrajectoryDataset(tmp_path / "data" / "train").spec.groups[0].codec == "window"
    agent = found.targets[0]
    assert min(agent.linear.mse_by_step[8], agent.mlp.mse_by_step[8]) < agent.constant.mse_by_step[8] / 2
    printed = capsys.readouterr().out
    assert "untrained, MLP" in printed
    assert "constant guess" in printed


def test_pusht_is_learned_and_probed_from_what_its_environment_gives(tmp_path, monkeypatch):
    """The environment itself is stood in for: a square that goes where the action says."""

    class Env:
        block = SimpleNamespace(position=(100.0, 200.0))

        def __init__(self):
            self.unwrapped = self

        def reset(self, seed):
            self.random = np.random.default_rng(seed)
            self.at = self.random.uniform(100, 400, 2)
            return self.seen(), {}

        def step(self, goal):
            assert 0 <= goal.min() <= goal.max() <= 512
            self.at = self.at + 0.3 * (goal - self.at)
            return self.seen(), 0.0, False, False, {}

        def seen(self):
            frame = np.full((32, 32, 3), 255, np.uint8)
            x, y = (self.at / 512 * 27).astype(int)
            frame[y : y + 4, x : x + 4, 1:] = 0
            return {"pixels": frame, "agent_pos": self.at.copy()}

    monkeypatch.setitem(sys.modules, "gym_pusht", ModuleType("gym_pusht"))
    monkeypatch.setitem(sys.modules, "gymnasium", SimpleNamespace(make=lambda *_, **__: Env()))
    module = example("gym_pusht")
    monkeypatch.setattr(module, "HELD_OUT", 8)
    jf.pack(module.collect(0, 24), tmp_path / "data" / "train", channels="last", workers=1)
    jf.pack(module.collect(24, 32), tmp_path / "data" / "val", channels="last", workers=1)
    frames, actions, targets = jf.TrajectoryDataset(tmp_path / "data" / "val")[5]
    assert (frames.shape, actions.shape) == ((9, 3, 32, 32), (8, 2))
    moved = targets["agent"].diff(dim=0)
    torch.testing.assert_close(moved, 0.3 * module.SPREAD * actions, rtol=1e-3, atol=1e-3)
    found = module.main(tmp_path, steps=20)
    assert [one.name for one in found.targets] == ["agent", "block"]
    assert found.targets[0].untrained_mlp is not None


def test_pusht_started_as_it_says_finds_the_package_of_its_own_name(tmp_path):
    (tmp_path / "gym_pusht").mkdir()
    (tmp_path / "gym_pusht" / "__init__.py").write_text("raise SystemExit('the package')")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "gym_pusht.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{EXAMPLES.parent}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "the package"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text()
    assert f"`python examples/{path.name}`" in text.splitlines()[0]
    assert len(text.splitlines()) <= 80
