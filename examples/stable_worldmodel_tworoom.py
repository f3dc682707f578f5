"""Two rooms of stable-worldmodel, learned and probed: `python examples/stable_worldmodel_tworoom.py`.

    pip install stable-worldmodel==0.1.1 gymnasium==1.4.0 h5py==3.16.0 hdf5plugin==7.1.0 imageio==2.38.1 \
        opencv-python-headless==5.0.0.93

500 episodes of a random policy are collected by its own HDF5 writer, 224 x 224 RGB. Floor and walls never change: the
packer finds that every frame equals one image outside a window around the agent.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jepa_fast as jf
from jepa_fast import train
from jepa_fast.config import JEPAConfig
from jepa_fast.convert import convert
from jepa_fast.presets import preset
from jepa_fast.probing.target_results import TARGETS, TargetEvaluation

FRAMES = 9  # of a clip: eight predictions
HELD_OUT = 0.13  # of the episodes


def collect(path: Path, count: int, length: int = 32) -> None:
    """Episodes of up to `length` frames; one ends early where the agent meets its target."""
    import hdf5plugin  # noqa: F401
    import stable_worldmodel as swm

    path.parent.mkdir(parents=True, exist_ok=True)
    world: Any = swm.World("swm/TwoRoom-v1", num_envs=8, image_shape=(224, 224), max_episode_steps=length)
    world.set_policy(swm.policy.RandomPolicy(seed=0))
    world.collect(path, episodes=count, seed=0, format="hdf5")


def learn(path: Path, folder: Path, steps: int, channels: int = 16, stride: int = 2) -> TargetEvaluation:
    """Convert, train, probe the agent's position in pixels on the held-out episodes, and print the table."""
    data = folder / "data"
    convert(source=path, frames="pixels", actions="action", targets=("agent=proprio",), out=data, validation=HELD_OUT)
    usual = preset("generic").model
    assert isinstance(usual, JEPAConfig)
    model = replace(usual, channels=channels, stride=stride)
    clips = train.DataArguments(data, batch_size=16, frames=FRAMES)
    run, _ = train.start(train.Arguments(preset="generic", model=model, out=folder / "run", steps=steps, data=clips))
    found = jf.evaluate_targets(jf.load(run), data, frames=FRAMES)
    found.save(run / TARGETS)
    print(found.table())
    return found


def main(folder: Path = Path("runs/stable_worldmodel_tworoom"), count: int = 500, steps: int = 300) -> TargetEvaluation:
    """Collect unless that is done, then learn."""
    path = folder / "tworoom.h5"
    if not path.exists():
        collect(path, count)
    return learn(path, folder, steps)


if __name__ == "__main__":
    main()
