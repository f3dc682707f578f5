"""Episodes: plan, act, look, plan again. Every planner and every floor walks in the simulator, never in a model.

Episodes that are planned together are rows of one batch, which changes nothing: each has random streams of its own for
every plan, and on a CPU a model is called for one episode at a time, on as many threads as there are cores, so that
rounding is the same whatever the batch.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa_fast.data.two_rooms.world import Float32, step
from jepa_fast.models.model import Model
from jepa_fast.planning.planners import Plan, PlannerConfig, improve
from jepa_fast.planning.protocol import (
    LONGEST_ACTION_PX,
    PLANNER_STREAM,
    POLICY_STREAM,
    Episodes,
    frames_of,
    limited,
    stream,
)
from jepa_fast.planning.protocol import Protocol as EpisodeProtocol
from jepa_fast.planning.tasks import LatentTask, SimulatorTask, Task

Floor = Literal["random", "straight"]
# A random policy's actions: as long and as persistent as the data's.
WALK_STEPS = 1
# Distances in full steps: nearer than this the agent stands still; a plan that ends farther than the other has failed.
ARRIVED, FAILED = 0.1, 1.0
# A plan that is improved is given so many times its own length, and some steps.
SLACK, SLACK_STEPS = 1.25, 8


class Walk(NamedTuple):
    """N episodes as they were walked."""

    path: Float32  # [N, budget + 1, 2]
    actions: Float32  # [N, budget, 2] as they were taken
    seconds: float
    steps: int  # predictor steps in all
    imagined: "tuple[tuple[Imagination, ...], ...]" = ()  # of each episode, a plan each


class Imagination(NamedTuple):
    """What a plan said would happen."""

    time: int  # actions taken before it
    latents: Float32  # [H + 1, D], or locations where the simulator is the model
    left: float  # distance to the goal at its end, in full steps


class World(Protocol):
    """What plans are made in: a model, or the simulator itself."""

    def tasks(self, episodes: Episodes, locations: Float32) -> Task:
        """Problems from where the agents [N, 2] are seen to be."""


@dataclass
class ModelWorld:
    """A model, which sees a frame of where the agent is and one of the goal."""

    model: Model
    device: torch.device

    def tasks(self, episodes: Episodes, locations: Float32) -> LatentTask:
        """See `World`."""
        where = (episodes.wall_x, episodes.door_y)
        frames = [torch.from_numpy(frames_of(at, *where)).to(self.device) for at in (locations, episodes.goals)]
        return latent_task(self.model, *frames)


class SimulatorWorld:
    """The simulator, as the best model that there could be."""

    def tasks(self, episodes: Episodes, locations: Float32) -> SimulatorTask:
        """See `World`."""
        return SimulatorTask(episodes, torch.from_numpy(locations))


@torch.no_grad()
def latent_task(model: Model, frames: Tensor, goals: Tensor) -> LatentTask:
    """Problems from frames [N, C, H, W] to goals [N, C, H, W] in the latents of a model."""
    states = model.encode(frames[:, None])
    return LatentTask(model, states, model.latents(model.encode(goals[:, None]))[:, 0])


@dataclass
class _Agent:
    """One episode's plan as it stands."""

    plan: Tensor | None = None  # [h, A] what is left of it
    made: int = 0
    steps: int = 0
    has_failed: bool = True


def walk(
    world: World,
    episodes: Episodes,
    protocol: EpisodeProtocol,
    config: PlannerConfig,
    seed: int = 0,
    batch: int = 200,
    together: bool = False,
    tell: Callable[[int], None] = lambda _: None,
    keep_imagined: bool = False,
) -> Walk:
    """Walk episodes by plans.

    Args:
        world: what plans are made in.
        episodes: N of them.
        protocol: gives the budget.
        config: the planner.
        seed: of the plans' random streams.
        batch: episodes that advance together.
        together: whether a batch is one call of the model; else each episode is one, on threads of their own.
        tell: called with how many actions have been taken since the last call, over all episodes.
        keep_imagined: keep what plans said would happen.
    """
    begun = time.perf_counter()
    paths, taken, steps, imagined = [], [], 0, []
    with _threads(together) as each_on_a_thread:
        for first in range(0, len(episodes.numbers), batch):
            part = episodes.rows(slice(first, first + batch))
            rows = [slice(0, len(part.numbers))] if together else [slice(n, n + 1) for n in range(len(part.numbers))]
            groups = [_Group(world, part.rows(row), protocol, config, seed, keep_imagined) for row in rows]
            for at in range(0, protocol.budget, config.execute):
                each_on_a_thread(lambda group, at=at: group.advance(at), groups)
                tell(min(config.execute, protocol.budget - at) * len(part.numbers))
            paths += [np.stack(group.path, axis=1) for group in groups]
            taken += [np.stack(group.actions, axis=1) for group in groups]
            steps += sum(group.steps for group in groups)
            imagined += [tuple(each) for group in groups for each in group.imagined]
    seconds = time.perf_counter() - begun
    return Walk(np.concatenate(paths), np.concatenate(taken), seconds, steps, tuple(imagined))


class _Group:
    """Episodes whose plans are made in one call."""

    def __init__(
        self, world: World, episodes: Episodes, protocol: EpisodeProtocol, config: PlannerConfig, seed: int, keep: bool
    ) -> None:
        self.world, self.episodes, self.protocol, self.config, self.seed = world, episodes, protocol, config, seed
        self.path: list[Float32] = [episodes.starts]
        self.actions: list[Float32] = []
        self.left: Tensor | None = None  # of the plans, [N, h, A]
        self.has_plan = False
        self.steps, self.keep = 0, keep
        self.imagined: list[list[Imagination]] = [[] for _ in episodes.numbers]

    def advance(self, at: int) -> None:
        """Look, plan and take the plan's first actions; `at` have been taken before."""
        todo = min(self.config.execute, self.protocol.budget - at)
        actions = self._plan(at, todo).numpy().astype(np.float32)
        for time_ in range(todo):
            action = limited(actions[:, time_])
            self.actions.append(action)
            self.path.append(step(self.path[-1], action, self.episodes.wall_x, self.episodes.door_y))

    def _plan(self, at: int, todo: int) -> Tensor:
        """Actions [N, todo, A] on the CPU."""
        task = self.world.tasks(self.episodes, self.path[-1])
        far = task.now() > ARRIVED
        horizon = min(self.config.horizon, self.protocol.budget - at)
        streams = [stream(self.seed, PLANNER_STREAM, int(number), at) for number in self.episodes.numbers]
        if not far.any():
            return torch.zeros(task.count, todo, task.action_size)
        plan = self._improved(task, streams, horizon)
        self.steps += task.steps
        actions = plan.actions * far[:, None, None]
        if self.keep:
            latents = task.path(actions)
            for row, kept in enumerate(self.imagined):
                shown = latents[row, : int(plan.arrival[row]) + 1].cpu().numpy()
                kept.append(Imagination(at, shown, float(plan.left[row])))
        self.left = actions[:, todo:]
        if actions.shape[1] < todo:
            actions = torch.nn.functional.pad(actions, (0, 0, 0, todo - actions.shape[1]))
        return actions[:, :todo].cpu()

    def _improved(self, task: Task, streams: Sequence[np.random.Generator], horizon: int) -> Plan:
        if self.config.warm_start and self.has_plan:
            assert self.left is not None
            length = self.left.shape[1]
            if self.config.cost == "arrival":
                used = int((self.left.abs().sum(dim=-1) > 0).sum(dim=1).max())
                length = min(horizon, math.ceil(SLACK * used) + SLACK_STEPS)
            plan = improve(task, self.config, streams, max(1, min(length or horizon, horizon)), self.left)
            if self.config.cost != "arrival" or bool((plan.left < FAILED).all()):
                return plan
        plan = improve(task, self.config, streams, horizon)
        self.has_plan = True
        return plan


@contextmanager
def _threads(together: bool) -> Iterator[Callable[[Callable[[Any], None], Sequence[Any]], None]]:
    """What calls a function for each of several things: in turn, or on a thread for each core."""
    count = len(os.sched_getaffinity(0))
    if together or count == 1:
        yield lambda function, things: [function(thing) for thing in things] and None
        return
    threads = torch.get_num_threads()
    # Each thread computes alone: an episode's tensors are too small to be shared.
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield lambda function, things: [None for _ in pool.map(function, things)] and None
    torch.set_num_threads(threads)


def walk_floor(floor: Floor, episodes: Episodes, protocol: EpisodeProtocol, seed: int = 0) -> Walk:
    """Episodes without any plan: random actions, or full steps straight at the goal, which stop there."""
    begun = time.perf_counter()
    path, taken = [episodes.starts], []
    if floor == "random":
        draws = [stream(seed, POLICY_STREAM, int(number)).normal(0, 1, (protocol.budget, 2)) for number in episodes.numbers]
        every = limited(np.stack(draws).astype(np.float32))
    for at in range(protocol.budget):
        action = every[:, at] if floor == "random" else limited(episodes.goals - path[-1])
        taken.append(action)
        path.append(step(path[-1], action, episodes.wall_x, episodes.door_y))
    return Walk(np.stack(path, axis=1), np.stack(taken, axis=1), time.perf_counter() - begun, 0)


def progress_bar(name: str, total: int) -> "tqdm[Any]":
    """A bar over actions."""
    return tqdm(total=total, desc=name, unit="action", leave=False, dynamic_ncols=True)


__all__ = ["LONGEST_ACTION_PX", "ModelWorld", "SimulatorWorld", "Walk", "latent_task", "walk", "walk_floor"]
