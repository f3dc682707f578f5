"""Plan with a trained model: `python -m jepa_fast.plan RUN`. Called, the module is `jepa_fast.plan(model, ...)`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.errors import InputError
from jepa_fast.locking import output
from jepa_fast.planning.planner_config import PLANNERS, Distance, PlannerConfig

if TYPE_CHECKING:
    from jepa_fast.data.shards import Split
    from jepa_fast.models.model import Model
    from jepa_fast.planning.control import Walk, World
    from jepa_fast.planning.protocol import Episodes
    from jepa_fast.planning.results import Planning

logger = logging.getLogger(__name__)

DEFAULT_PLANNER = "icem"


@dataclass(frozen=True)
class Arguments:
    """Let a model find its way from one room to the other, and print how often it does beside floors and ceiling."""

    run: tyro.conf.Positional[Path]
    """Run folder, or exported weights."""
    protocol: Literal["cross_room", "strict", "both"] = "cross_room"
    """cross_room: within 4.5 px after 200 actions; strict: within 1.41 px after 100."""
    episodes: int = 200
    """How many, from number 0 on."""
    held_out: bool = False
    """Put walls where none stands in training."""
    planner: Literal["icem", "cem", "mppi", "gradient", "peer"] = "icem"
    """Named settings, which the flags of --settings change; peer: as eb_jepa publishes them for its own two rooms."""
    settings: PlannerConfig = field(default_factory=PlannerConfig)
    distance: Distance = "latent"
    """latent: how far latents lie apart; learned: how many actions, by a network fitted to trajectories first."""
    data: cli.Chosen[Path] = None
    """Folder whose training trajectories teach the learned distance. Default: the one the run was trained on."""
    seed: int = 0
    """Of the episodes and of the planner's random streams."""
    batch: int = 200
    """Episodes that advance together; on a CPU nothing depends on it but memory and time."""
    floors: bool = True
    """Also walk at random and straight at the goal."""
    ceiling: bool = True
    """Also plan in the simulator itself."""
    out: cli.Chosen[Path] = None
    """Where to write planning.json and the page. Default: the run folder."""
    page: bool = True
    """Write planning.html: episodes drawn over their rooms, failures first."""
    gifs: int = 0
    """How many of the page's episodes to write as GIFs too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""


def defaults(words: Sequence[str]) -> Arguments:
    """The settings of the planner that the words of a command line name: what flags change.

    Raises:
        InputError: there is no such planner.
    """
    name = cli.peek(words, "--planner") or DEFAULT_PLANNER
    require(name in PLANNERS, "--planner", name, f"one of {', '.join(PLANNERS)}")
    return Arguments(run=tyro.MISSING, settings=PLANNERS[name])


def main(arguments: Arguments) -> None:
    """Plan; tables go to standard output, JSON and page into the run folder."""
    import torch

    from jepa_fast.planning.control import ModelWorld
    from jepa_fast.planning.results import PLANNING, save, table
    from jepa_fast.runs import load

    require(arguments.batch >= 1, "--batch", arguments.batch, "at least 1")
    require(arguments.gifs >= 0, "--gifs", arguments.gifs, "zero or more")
    device = torch.device(cli.choose_device(arguments.device))
    model = load(arguments.run).to(device)
    require_rooms(model)
    names = ("cross_room", "strict") if arguments.protocol == "both" else (arguments.protocol,)
    folder = arguments.out or arguments.run
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error
    world = ModelWorld(model, device)
    if arguments.distance == "learned":
        from jepa_fast.planning.learned import fit_distance

        world.distance = fit_distance(model, training_split(arguments), arguments.seed)
    results, walks = [], []
    with output(folder / PLANNING):
        for name in names:
            result, episodes, walked = measure(arguments, name, world)
            results.append(result)
            walks.append((result, episodes, walked))
            print(table(result), end="\n\n", flush=True)
        save(results, folder / PLANNING)
        logger.info("%s", folder / PLANNING)
        if arguments.page:
            from jepa_fast.planning.page import write_page

            for path in write_page(walks, model, folder, arguments.gifs):
                logger.info("%s", path)


def measure(arguments: Arguments, name: str, world: "World") -> "tuple[Planning, Episodes, Walk]":
    """What model, ceiling and floors come to under a protocol; the model's own episodes and its walk."""
    from jepa_fast.planning.control import SimulatorWorld, walk, walk_floor
    from jepa_fast.planning.protocol import PROTOCOLS, draw_episodes
    from jepa_fast.planning.results import Planning, outcome
    from jepa_fast.progress import Progress

    protocol, seed = PROTOCOLS[name], arguments.seed
    episodes = draw_episodes(arguments.episodes, seed, arguments.held_out)
    together = arguments.device != "cpu" and cli.choose_device(arguments.device) == "cuda"
    walks: dict[str, Walk] = {}
    worlds: dict[str, World] = {"model": world}
    if arguments.ceiling:
        worlds["simulator as model"] = SimulatorWorld()
    for label, one in worlds.items():
        with Progress(f"{name}, {label}", protocol.budget * len(episodes.numbers), "actions") as bar:
            walks[label] = walk(
                one, episodes, protocol, arguments.settings, seed, arguments.batch,
                together and label == "model", bar.update, label == "model",
            )  # fmt: skip
    if arguments.floors:
        walks["straight at the goal"] = walk_floor("straight", episodes, protocol, seed)
        walks["random"] = walk_floor("random", episodes, protocol, seed)
    outcomes = tuple(outcome(label, walked, episodes, protocol) for label, walked in walks.items())
    result = Planning(name, arguments.held_out, seed, arguments.settings, outcomes, arguments.distance)
    return result, episodes, walks["model"]


def training_split(arguments: Arguments) -> "Split":
    """The trajectories that teach a learned distance.

    Raises:
        InputError: neither the flag nor the run says where they are.
    """
    from jepa_fast.config import RunConfig
    from jepa_fast.data.shards import open_split
    from jepa_fast.runs import CONFIG

    folder = arguments.data
    if folder is None:
        stored = arguments.run / CONFIG
        require(stored.exists(), "--data", None, "a folder of trajectories: an export does not say where they are")
        folder = Path(RunConfig.load(stored).data)
    return open_split(folder / "train")


def require_rooms(model: "Model") -> None:
    """Raise InputError unless the model is one of the two-room world."""
    fits = model.channels in (None, 2) and model.action_size in (None, 2)
    found = f"{model.channels} channels, actions of {model.action_size}"
    require(fits, "RUN", found, "a model of two-room frames: episodes of other worlds are not known")


class _Callable(ModuleType):
    """This module, which is a command; called, it is the function of that name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from jepa_fast.planning.control import plan

        return plan(*arguments, **options)


# `jepa_fast.plan` is both, whichever of them was imported first.
sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    cli.run(main, Arguments, "Plan with a trained JEPA world model in two rooms.", defaults)
