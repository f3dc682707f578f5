"""Planners find what there is to find, with actions as long as the data's, from random streams of their own."""

import numpy as np
import pytest
import torch

from jepa_fast.errors import InputError
from jepa_fast.planning.planner_config import PLANNERS, PlannerConfig
from jepa_fast.planning.planners import coloured_noise, costs, improve
from jepa_fast.planning.protocol import LONGEST_ACTION_PX, Episodes, draw_episodes, is_legal, stream
from jepa_fast.planning.tasks import SimulatorTask, Task

SMALL = {"first_samples": 96, "samples": 48, "first_iterations": 8, "iterations": 4, "elites": 8, "horizon": 20}


class Plane(Task):
    """A point that every action moves, whatever is in its way."""

    action_size = 2

    def __init__(self, starts, goals):
        self.starts, self.goals, self.count = starts, goals, len(starts)
        self.longest = 0.0

    def distances(self, actions):
        self.longest = max(self.longest, float(torch.linalg.vector_norm(actions.detach(), dim=-1).max()))
        gap = self.starts[:, None, None] + actions.cumsum(dim=2) - self.goals[:, None, None]
        return (gap.square().sum(dim=-1) + 1e-12).sqrt() / LONGEST_ACTION_PX

    def path(self, actions):
        return torch.cat([self.starts[:, None], self.starts[:, None] + actions.cumsum(dim=1)], dim=1)

    def now(self):
        return (self.starts - self.goals).square().sum(dim=-1).sqrt() / LONGEST_ACTION_PX

    def here(self):
        return self.starts

    def full_step(self):
        return torch.full((self.count,), LONGEST_ACTION_PX)


def streams(count):
    return [stream(0, 1 << 40, number) for number in range(count)]


@pytest.mark.parametrize("cost", ["last", "summed", "arrival"])
@pytest.mark.parametrize("method", ["cem", "icem", "mppi", "gradient"])
def test_every_planner_crosses_a_plane(method, cost):
    starts, goals = torch.tensor([[10.0, 10.0], [40.0, 20.0]]), torch.tensor([[25.0, 22.0], [30.0, 20.0]])
    task = Plane(starts, goals)
    more = {"first_iterations": 60} if method == "gradient" else {"temperature": 0.2, "patience": 20}
    config = PlannerConfig(method=method, cost=cost, **(SMALL | more))
    plan = improve(task, config, streams(2), 20)
    ends = task.path(plan.actions)[:, -1]
    if cost == "summed":
        ways = torch.linalg.vector_norm(goals - starts, dim=1)[:, None] / LONGEST_ACTION_PX
        best = costs((ways - torch.arange(1, 21)).clamp_min(0), config)
        assert (plan.cost < 1.5 * best).all()
    else:
        assert torch.linalg.vector_norm(ends - goals, dim=1).max() < 1.5
    assert task.longest <= LONGEST_ACTION_PX * (1 + 1e-6)
    torch.testing.assert_close(plan.cost, costs(task.distances(plan.actions[:, None])[:, 0], config), atol=1e-4, rtol=0)


def test_arrival_stops_where_it_is_best_and_takes_few_steps():
    task = Plane(torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 0.0]]))
    plan = improve(task, PlannerConfig(**SMALL), streams(1), 20)
    arrival = int(plan.arrival[0])
    assert 5 <= arrival <= 9
    assert (plan.actions[0, arrival:] == 0).all()
    assert plan.left[0] < 0.3


def test_a_warm_start_is_never_made_worse():
    task = Plane(torch.zeros(1, 2), torch.tensor([[9.0, 4.0]]))
    for method in ("icem", "cem", "mppi", "gradient"):
        config = PlannerConfig(method=method, **SMALL)
        first = improve(task, config, streams(1), 20)
        second = improve(task, config, streams(1), 20, first.actions)
        assert second.cost[0] <= first.cost[0] + 1e-6


def test_the_first_iteration_of_a_walled_room_finds_the_door():
    """Goal straight behind the wall: with the last distance alone there is a way, with the sum of all there is none."""
    episodes = Episodes(
        np.array([0]), *(np.array([at], np.float32) for at in ([20, 40], [40, 40])), np.array([30]), np.array([20])
    )
    task = SimulatorTask(episodes, torch.from_numpy(episodes.starts))
    plan = improve(task, PlannerConfig(), streams(1), 80)
    assert plan.left[0] < 0.5
    path = task.path(plan.actions).numpy()
    assert is_legal(path, episodes.wall_x, episodes.door_y).all()
    greedy = improve(task, PlannerConfig(cost="summed", first_iterations=4), streams(1), 80)
    assert greedy.left[0] > 5


@pytest.mark.parametrize("horizon", [1, 2, 7, 50])
@pytest.mark.parametrize("colour", [0.0, 1.0, 2.5])
def test_noise_has_unit_variance_at_every_colour(horizon, colour):
    noise = coloured_noise(np.random.default_rng(0), 4000, horizon, 2, colour)
    assert noise.shape == (4000, horizon, 2)
    assert noise.var().item() == pytest.approx(1, abs=0.06)
    assert abs(noise.mean().item()) < 0.05
    if colour > 0 and horizon > 2:
        together = (noise[:, 1:] * noise[:, :-1]).mean()
        assert together > 0.2


def test_a_problem_is_planned_alike_alone_and_among_others():
    episodes = draw_episodes(3, seed=2)
    tasks = [SimulatorTask(episodes, torch.from_numpy(episodes.starts))]
    tasks += [
        SimulatorTask(part, torch.from_numpy(part.starts))
        for part in (episodes.rows(slice(n, n + 1)) for n in range(3))
    ]
    for method in ("cem", "icem", "mppi"):
        config = PlannerConfig(method=method, **SMALL)
        together = improve(tasks[0], config, streams(3), 20)
        for number in range(3):
            alone = improve(tasks[1 + number], config, [streams(3)[number]], 20)
            assert torch.equal(together.actions[number], alone.actions[0])


def test_the_peers_planner_has_the_settings_that_it_publishes():
    peer = PLANNERS["peer"]
    assert (peer.samples, peer.elites, peer.iterations, peer.horizon, peer.sigma) == (200, 20, 20, 90, 2.0)
    assert (peer.execute, peer.cost, peer.warm_start, peer.random_elite) == (1, "summed", False, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("horizon", 0), ("elites", 500), ("sigma", 0.0), ("keep", 1.5), ("shrink", 0.5), ("haste", -1.0)],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=f"planner.{name}"):
        PlannerConfig(**{name: value})
