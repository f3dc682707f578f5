"""Episodes: plan, act, look, plan again. Every planner and every floor walks in the simulator, never in a model.

Each episode has random streams of its own for every plan. On a CPU a model is called for one episode at a time, on as
many threads as torch has, so that results are the same bits however many episodes advance together. Where a batch is
one call, on a GPU, an episode that needs a new plan brings one to all of its batch.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from jepa_fast.data.two_rooms.world import Float32, step
from jepa_fast.errors import require
from jepa_fast.models.model import Model
from jepa_fast.planning.planner_config import PLANNERS, PlannerConfig
from jepa_fast.planning.planners import Plan, improve
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
from jepa_fast.planning.tasks import LatentTask, Points, SimulatorTask, Surprises, Task, themselves

Floor = Literal["random", "straight"]
# Distances in full steps: nearer than this the agent stands still; a plan that ends farther than the other has failed.
ARRIVED, FAILED = 0.1, 1.0
MOST_DOUBLINGS = 2
# In full steps: how far off several actions lead where the model was wrong. One surprises where it misses so much of
# the way that it should have led, and more than is rounding.
SURPRISE, MISSED, LEAST_SURPRISE = 0.3, 0.5, 0.02
# Actions that are taken one at a time after a surprise; the last so many surprises are kept.
WARY, MOST_SURPRISES = 5, 32
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
    distance: Points = themselves

    def tasks(self, episodes: Episodes, locations: Float32) -> LatentTask:
        """See `World`."""
        where = (episodes.wall_x, episodes.door_y)
        now, goals = (torch.from_numpy(frames_of(at, *where)).to(self.device) for at in (locations, episodes.goals))
        return latent_task(self.model, now, goals, 2, LONGEST_ACTION_PX, self.distance)


class SimulatorWorld:
    """The simulator, as the best model that there could be."""

    def tasks(self, episodes: Episodes, locations: Float32) -> SimulatorTask:
        """See `World`."""
        return SimulatorTask(episodes, torch.from_numpy(locations))


@torch.no_grad()
def latent_task(
    model: Model, frames: Tensor, goals: Tensor, action_size: int, longest: float, distance: Points = themselves
) -> LatentTask:
    """Problems from frames [N, C, H, W] to goals [N, C, H, W] in the latents of a model; `distance` as in the task."""
    states, ends = model.encode(frames[:, None]), model.latents(model.encode(goals[:, None]))[:, 0]
    return LatentTask(model, states, ends, action_size, longest, distance)


def walk(
    world: World,
    episodes: Episodes,
    protocol: EpisodeProtocol,
    config: PlannerConfig,
    seed: int = 0,
    batch: int = 200,
    together: bool = False,
    tell: Callable[[int], object] = lambda _: None,
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
                each_on_a_thread(partial(_Group.advance, at=at), groups)
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
        self.has_plan, self.failures = False, 0
        # Where the last actions began, the action if it was one, and where the model said they lead.
        self.told: tuple[Tensor, Tensor | None, Tensor] | None = None
        self.surprises: list[Surprises] = []
        self.wary = 0  # actions still to be taken one at a time
        self.steps, self.keep = 0, keep
        self.imagined: list[list[Imagination]] = [[] for _ in episodes.numbers]

    # Each thread has a gradient mode of its own.
    @torch.no_grad()
    def advance(self, at: int) -> None:
        """Look, plan and take the plan's first actions; `at` have been taken before."""
        end = at + min(self.config.execute, self.protocol.budget - at)
        while at < end:
            task = self.world.tasks(self.episodes, self.path[-1])
            self._look(task)
            todo = 1 if self.wary else end - at
            actions = self._plan(task, at, todo).numpy().astype(np.float32)
            for time_ in range(todo):
                action = limited(actions[:, time_])
                self.actions.append(action)
                self.path.append(step(self.path[-1], action, self.episodes.wall_x, self.episodes.door_y))
            at += todo
            self.wary = max(0, self.wary - 1)

    def _look(self, task: Task) -> None:
        """Hold what is seen against what the model said; keep what an action did that surprised.

        After several actions it is not known which of them did: then the next ones are taken one at a time.
        """
        if self.told is not None:
            before, action, said = self.told
            gap, full = torch.linalg.vector_norm(task.here() - said, dim=1), task.full_step()
            if action is None:
                surprised = gap > SURPRISE * full
            else:
                surprised = gap > torch.maximum(
                    LEAST_SURPRISE * full, MISSED * torch.linalg.vector_norm(said - before, dim=1)
                )
                if surprised.any():
                    where = torch.where(surprised[:, None], before, torch.nan)
                    self.surprises.append(Surprises(where[:, None], action[:, None], (task.here() - before)[:, None]))
            if surprised.any():
                self.wary = WARY
        if self.surprises and isinstance(task, LatentTask):
            kept = self.surprises[-MOST_SURPRISES:]
            task.surprises = Surprises(*(torch.cat(each, dim=1) for each in zip(*kept, strict=True)))

    def _plan(self, task: Task, at: int, todo: int) -> Tensor:
        """Actions [N, todo, A] on the CPU."""
        self.told = None
        far = task.now() > ARRIVED
        horizon = min(self.config.horizon, self.protocol.budget - at)
        streams = [stream(self.seed, PLANNER_STREAM, int(number), at) for number in self.episodes.numbers]
        if not far.any():
            self.left = None if self.left is None else self.left[:, todo:]
            return torch.zeros(task.count, todo, task.action_size)
        plan = self._improved(task, streams, horizon)
        self.steps += task.steps
        actions = plan.actions * far[:, None, None]
        if self.keep:
            latents = task.path(actions)
            for row, kept in enumerate(self.imagined):
                shown = latents[row, : int(plan.arrival[row]) + 1].cpu().numpy()
                kept.append(Imagination(at, shown, float(plan.left[row])))
        if self.config.careful:
            taken = actions[:, :todo]
            self.told = task.here(), taken[:, 0] if todo == 1 else None, task.path(taken)[:, -1]
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
        # What found no way before is looked for among more.
        samples = self.config.first_samples * 2 ** min(self.failures, MOST_DOUBLINGS)
        plan = improve(task, replace(self.config, first_samples=samples), streams, horizon)
        self.has_plan = True
        self.failures = self.failures + 1 if bool((plan.left >= FAILED).any()) else 0
        return plan


@contextmanager
def _threads(together: bool) -> Iterator[Callable[[Callable[[_Group], None], Sequence[_Group]], list[None]]]:
    """What calls a function for each of several groups: in turn, or on a thread for each of torch's."""
    count = torch.get_num_threads()
    if together or count == 1:
        yield lambda function, groups: list(map(function, groups))
        return
    # Each thread computes alone: an episode's tensors are too small to be shared. Threads that begin take it over.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as pool:
            yield lambda function, groups: list(pool.map(function, groups))
    finally:
        torch.set_num_threads(count)


def walk_floor(floor: Floor, episodes: Episodes, protocol: EpisodeProtocol, seed: int = 0) -> Walk:
    """Episodes without any plan: random actions, or full steps straight at the goal, which stop there."""
    begun = time.perf_counter()
    path, taken = [episodes.starts], []
    if floor == "random":
        size = (protocol.budget, 2)
        drawn = [stream(seed, POLICY_STREAM, int(number)).normal(0, 1, size) for number in episodes.numbers]
        every = limited(np.stack(drawn).astype(np.float32))
    for at in range(protocol.budget):
        action = every[:, at] if floor == "random" else limited(episodes.goals - path[-1])
        taken.append(action)
        path.append(step(path[-1], action, episodes.wall_x, episodes.door_y))
    return Walk(np.stack(path, axis=1), np.stack(taken, axis=1), time.perf_counter() - begun, 0)


@torch.no_grad()
def plan(
    model: Model,
    first_frame: Tensor,
    goal_frame: Tensor,
    *,
    planner: PlannerConfig | str = "icem",
    action_size: int | None = None,
    seed: int = 0,
    distance: Points = themselves,
) -> Tensor:
    """Actions that lead from one frame to another, as the model sees it.

    Args:
        model: in evaluation mode, on the frames' device.
        first_frame: where to start, float [C, H, W], or [N, C, H, W] of several problems.
        goal_frame: where to get, of the same shape; both in the range of the data.
        planner: settings, or the name of some: "icem", "cem", "mppi", "gradient" or "peer".
        action_size: A, where the model does not say it.
        seed: of the planner's random streams.
        distance: maps latents to points whose distance counts: one of `fit_distance`, say.

    Returns:
        Actions [H, A] or [N, H, A], in the data's unit: zero after the arrival.

    Raises:
        InputError: there is no planner of that name, or frames, actions and model do not fit together.
    """
    if isinstance(planner, str):
        require(planner in PLANNERS, "planner", planner, f"one of {', '.join(PLANNERS)}")
        planner = PLANNERS[planner]
    same = first_frame.shape == goal_frame.shape and first_frame.dim() in (3, 4)
    shapes = tuple(first_frame.shape), tuple(goal_frame.shape)
    require(same, "first_frame, goal_frame", shapes, "two of one shape, [C, H, W] or [N, C, H, W]")
    size = action_size or model.action_size
    require(size is not None, "action_size", size, "the number of an action's numbers: the model does not say it")
    frames, goals = (frame if frame.dim() == 4 else frame[None] for frame in (first_frame, goal_frame))
    task = latent_task(model, frames, goals, size or 0, planner.longest, distance)
    streams = [stream(seed, PLANNER_STREAM, number) for number in range(len(frames))]
    actions = improve(task, planner, streams, planner.horizon).actions
    return actions if first_frame.dim() == 4 else actions[0]
