"""eb_jepa's protocol with eb_jepa's planner: `python -m research.peer_protocol RUN [--episodes 20]`.

As it is published for its own two rooms: MPPI of 200 samples and 20 iterations in every plan, a fresh mean, one action
of 90 taken, 200 actions: 56 million predictor steps an episode. So that a CPU comes through, the step is compiled and
all episodes are planned in one call; a plan is made for every episode after every action anyway, and each has its own
random stream. Results go to research/records/planning/PRESET-seed-S-peer.json.
"""

import argparse
from pathlib import Path

import torch

import jepa_fast
from jepa_fast.config import RunConfig
from jepa_fast.planning.control import ModelWorld, walk, walk_floor
from jepa_fast.planning.planner_config import PLANNERS
from jepa_fast.planning.protocol import PROTOCOLS, draw_episodes
from jepa_fast.planning.results import Planning, outcome, save, table
from jepa_fast.presets import canonical
from jepa_fast.progress import Progress
from jepa_fast.runs import CONFIG
from research.planning_table import MODEL, PEER, PLANS

PROTOCOL, PLANNER = "cross_room", "peer"


def main() -> None:
    """Walk the episodes, keep and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    arguments = parser.parse_args()
    config = RunConfig.load(arguments.run / CONFIG)
    result = measure(arguments.run, arguments.episodes)
    save([result], PLANS / f"{canonical(config.preset)}-seed-{config.seed}-{PEER}.json")
    print(table(result))


def measure(run: Path, count: int) -> Planning:
    """What the peer's planner comes to with the model of a run, beside the floors."""
    model = jepa_fast.load(run)
    # Shapes do not change from one step to the next.
    model.advance = torch.compile(model.advance, dynamic=False)  # type: ignore[method-assign]
    episodes, protocol, config = draw_episodes(count), PROTOCOLS[PROTOCOL], PLANNERS[PLANNER]
    with Progress(f"{PROTOCOL}, {PLANNER}", protocol.budget * count, "actions") as bar:
        walked = walk(
            ModelWorld(model, torch.device("cpu")),
            episodes,
            protocol,
            config,
            batch=count,
            together=True,
            tell=bar.update,
        )
    found = [outcome(MODEL, walked, episodes, protocol)]
    for floor, name in (("straight", "straight at the goal"), ("random", "random")):
        found.append(outcome(name, walk_floor(floor, episodes, protocol), episodes, protocol))  # type: ignore[arg-type]
    return Planning(PROTOCOL, False, 0, config, tuple(found))


if __name__ == "__main__":
    main()
