"""PushT of gym-pusht, learned and probed: `python examples/gym_pusht.py`.

    pip install gym-pusht==0.1.8 gymnasium==1.4.0

500 episodes of a random walk, 96 x 96 RGB. Its actions are places in a square of 512 pixels that the agent is drawn to.
Here they are told from where the agent is: else they give away where it is, and no model would have to look.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import jepa_fast as jf
from jepa_fast import train
from jepa_fast.config import DynamicsConfig, JEPAConfig
from jepa_fast.presets import preset
from jepa_fast.probing.target_results import TARGETS, TargetEvaluation

FRAMES, CLIPS = 9, 4  # of a clip, eight predictions; of an episode
SPREAD = 60.0  # of goals around the agent, in pixels of 512
HELD_OUT = 64  # episodes
Episode = tuple[NDArray[np.uint8], NDArray[np.float32], dict[str, NDArray[np.float32]]]


def collect(first: int, end: int) -> Iterator[Episode]:
    """Clips of the episodes with seeds `first` to `end` - 1, one beginning where the last one ends."""
    import gym_pusht  # noqa: F401
    import gymnasium

    env: Any = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", render_mode="rgb_array")
    for seed in range(first, end):
        random, (seen, _) = np.random.default_rng(seed), env.reset(seed=seed)
        frames, actions, agent, block = [seen["pixels"]], [], [seen["agent_pos"]], [env.unwrapped.block.position]
        for _ in range(CLIPS * (FRAMES - 1)):
            actions.append(random.normal(0, 1, 2))
            goal = (agent[-1] + SPREAD * actions[-1]).clip(0, 512).astype(np.float32)
            # What was possible of it.
            actions[-1] = (goal - agent[-1]) / SPREAD
            seen, *_ = env.step(goal)
            frames.append(seen["pixels"])
            agent.append(seen["agent_pos"])
            block.append(env.unwrapped.block.position)
        for start in range(0, len(actions), FRAMES - 1):
            clip = slice(start, start + FRAMES)
            known = {"agent": np.array(agent[clip], np.float32), "block": np.array(block[clip], np.float32)}
            yield np.array(frames[clip]), np.array(actions[start : start + FRAMES - 1], np.float32), known


def learn(folder: Path, steps: int, channels: int = 16, stride: int = 4) -> TargetEvaluation:
    """Train on packed episodes, probe both positions in pixels on the held-out ones, and print the table."""
    usual = preset("generic").model
    assert isinstance(usual, JEPAConfig)
    model = replace(usual, channels=channels, stride=stride)
    # Where the block lies is easy to predict; actions cannot be read off latents that do not know the agent.
    aim, data = DynamicsConfig(variance=5.0, inverse=20.0), train.DataArguments(folder / "data", batch_size=16)
    run, _ = train.start(train.Arguments("generic", folder / "run", steps=steps, data=data, model=model, objective=aim))
    found = jf.evaluate_targets(jf.load(run), folder / "data")
    found.save(run / TARGETS)
    print(found.table())
    return found


def main(folder: Path = Path("runs/gym_pusht"), count: int = 500, steps: int = 1200) -> TargetEvaluation:
    """Collect unless that is done, then learn."""
    if not (folder / "data" / "val").exists():
        jf.pack(collect(0, count - HELD_OUT), folder / "data" / "train", channels="last")
        jf.pack(collect(count - HELD_OUT, count), folder / "data" / "val", channels="last")
    return learn(folder, steps)


if __name__ == "__main__":
    # Of this name there is a package, which lies elsewhere.
    sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    main()
