"""Planners: sequences of actions that a world model says lead to a goal.

    cem       samples around a mean; mean and deviation of the elites are the next ones
    icem      the same with coloured noise, elites kept from one iteration to the next, fewer samples in each
    mppi      the elites weighed by exp(-cost / temperature)
    gradient  Adam on several sequences at once, through the predictor

An optimisation is of one cost of the distances d_1 .. d_H to the goal, in full steps:

    last      d_H
    summed    mean of d_t^2
    arrival   min over t of d_t + haste t: the best moment to stop, and the sooner the better

"arrival" finds a way as "last" does and shortens it as "summed" does; what follows the best moment is left out of the
plan. Whatever the planner, actions longer than the data's are shortened before the model sees them.

Sources: Pinneri et al., Sample-efficient Cross-Entropy Method for Real-time Planning, arXiv:2008.06389 (icem);
Williams et al., Model Predictive Path Integral Control, arXiv:1509.01149, with elites as in Hansen et al., Temporal
Difference Learning for Model Predictive Control, arXiv:2203.04955 (mppi).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepa_fast.planning.planner_config import PlannerConfig
from jepa_fast.planning.tasks import Task

# Distance in full steps from which on a plan leads to the goal.
AT_GOAL = 0.3


class Plan(NamedTuple):
    """The sequences that planners found for N problems."""

    actions: Tensor  # [N, H, A] in pixels, zero after `arrival`
    cost: Tensor  # [N]
    left: Tensor  # [N] distance to the goal at the arrival, in full steps
    arrival: Tensor  # int64 [N] actions until then


def costs(distances: Tensor, config: PlannerConfig) -> Tensor:
    """What sequences cost, [...], from the distances [..., H] to the goal after each action."""
    if config.cost == "last":
        return distances[..., -1]
    if config.cost == "summed":
        return distances.square().mean(dim=-1)
    return (distances + _haste(distances, config)).amin(dim=-1)


def _haste(distances: Tensor, config: PlannerConfig) -> Tensor:
    steps = torch.arange(1, distances.shape[-1] + 1, device=distances.device, dtype=distances.dtype)
    return config.haste * steps


def shortened(actions: Tensor, longest: float) -> Tensor:
    """Actions [..., A], those longer than the longest shortened to it."""
    length = torch.linalg.vector_norm(actions, dim=-1, keepdim=True)
    short: Tensor = actions * (longest / length.clamp_min(longest))
    return short


def coloured_noise(generator: np.random.Generator, samples: int, horizon: int, size: int, colour: float) -> Tensor:
    """Noise [S, H, A] of unit variance whose power falls with frequency^-colour.

    Source: Timmer and Koenig, On generating power law noise, 1995.
    """
    white: NDArray[np.float32] = generator.standard_normal((samples, size, horizon), np.float32)
    if colour == 0 or horizon < 2:
        return torch.from_numpy(white).transpose(1, 2)
    # The mean has the power of the lowest frequency.
    frequencies = np.maximum(np.fft.rfftfreq(horizon), 1 / horizon)
    weights = frequencies ** (-colour / 2)
    both_sides = np.full(len(weights), 2.0)
    both_sides[0] = 1
    if horizon % 2 == 0:
        both_sides[-1] = 1
    weights /= np.sqrt((both_sides * weights**2).sum() / horizon)
    coloured = np.fft.irfft(np.fft.rfft(white, axis=-1) * weights, horizon, axis=-1).astype(np.float32)
    return torch.from_numpy(coloured).transpose(1, 2)


def improve(
    task: Task,
    config: PlannerConfig,
    generators: Sequence[np.random.Generator],
    horizon: int,
    warm: Tensor | None = None,
) -> Plan:
    """The best sequences that the planner finds.

    Args:
        task: N problems.
        config: settings.
        generators: the random stream of each problem; nothing else is random.
        horizon: actions of the sequences.
        warm: [N, h, A] what is left of the last plans, if they are to be improved.
    """
    if config.method == "gradient":
        return _descend(task, config, generators, horizon, warm)
    return _sample(task, config, generators, horizon, warm)


def _sample(
    task: Task,
    config: PlannerConfig,
    generators: Sequence[np.random.Generator],
    horizon: int,
    warm: Tensor | None,
) -> Plan:
    like = task.now()
    count, size = task.count, task.action_size
    mean = torch.zeros(count, horizon, size, device=like.device)
    samples, iterations, sigma = config.first_samples, config.first_iterations, config.sigma
    if warm is not None:
        mean[:, : warm.shape[1]] = warm[:, :horizon]
        samples, iterations, sigma = config.samples, config.iterations, config.warm_sigma
    std = torch.full_like(mean, sigma)
    kept: Tensor | None = None if warm is None else mean[:, None]
    best = Plan(mean, torch.full_like(like, torch.inf), like, torch.zeros_like(like, dtype=torch.int64))
    since = torch.zeros_like(best.arrival)  # iterations that found a way, [N]
    for iteration in range(iterations):
        # A problem that is done keeps its plan while others are worked on.
        is_done = since >= config.patience
        if is_done.all():
            break
        is_last = iteration == iterations - 1
        width = max(int(samples * config.shrink**-iteration), 2 * config.elites)
        noise = torch.stack([coloured_noise(each, width, horizon, size, config.colour) for each in generators])
        actions = mean[:, None] + std[:, None] * noise.to(like.device)
        if kept is not None:
            actions = torch.cat([kept, actions], dim=1)
        if config.method == "icem" and iteration > 0:
            actions = torch.cat([mean[:, None], actions], dim=1)
        actions = shortened(actions, config.longest)
        distances = task.distances(actions)
        cost = costs(distances, config)
        order = cost.topk(config.elites, dim=1, largest=False, sorted=True)
        elites = _take(actions, order.indices)  # [N, E, H, A]
        least = torch.where(is_done, torch.inf, order.values[:, 0])
        best = _better(best, elites[:, 0], least, _take(distances, order.indices[:, :1])[:, 0], config)
        if config.method == "mppi":
            weights = torch.softmax((order.values[:, :1] - order.values) / config.temperature, dim=1)[..., None, None]
        else:
            weights = torch.full_like(order.values, 1 / config.elites)[..., None, None]
        new_mean = (weights * elites).sum(dim=1)
        new_std = (weights * (elites - new_mean[:, None]).square()).sum(dim=1).sqrt()
        mean = config.momentum * mean + (1 - config.momentum) * new_mean
        std = (config.momentum * std + (1 - config.momentum) * new_std).clamp_min(config.least_sigma)
        if config.method == "icem" and config.keep > 0:
            kept = elites[:, : max(1, int(config.keep * config.elites))]
        if config.random_elite and is_last:
            chances = zip(generators, weights[..., 0, 0], strict=True)
            chosen = torch.tensor([[_drawn(each, row)] for each, row in chances], device=like.device)
            rank = order.indices.gather(1, chosen)
            cost = order.values.gather(1, chosen)[:, 0]
            best = _plan(_take(elites, chosen)[:, 0], cost, _take(distances, rank)[:, 0], config)
        since += best.left < AT_GOAL
    return best


def _descend(
    task: Task,
    config: PlannerConfig,
    generators: Sequence[np.random.Generator],
    horizon: int,
    warm: Tensor | None,
) -> Plan:
    like = task.now()
    is_first = warm is None
    samples = config.first_samples if is_first else config.samples
    noise = torch.stack(
        [coloured_noise(each, samples, horizon, task.action_size, config.colour) for each in generators]
    ).to(like.device)
    noise = noise * (config.sigma if is_first else config.warm_sigma)
    if warm is not None:
        start = torch.zeros_like(noise[:, :1])
        start[:, 0, : warm.shape[1]] = warm[:, :horizon]
        # The first is the last plan itself.
        noise = start + torch.cat([torch.zeros_like(start), noise[:, 1:]], dim=1)
    actions = shortened(noise, config.longest).requires_grad_()
    optimiser = torch.optim.Adam([actions], lr=config.learning_rate)
    best = Plan(noise[:, 0], torch.full_like(like, torch.inf), like, torch.zeros_like(like, dtype=torch.int64))
    for iteration in range((config.first_iterations if is_first else config.iterations) + 1):
        with torch.enable_grad():
            distances = task.distances(actions)
            cost = costs(distances, config)
        least = cost.detach().min(dim=1)
        at = least.indices[:, None]
        found = actions.detach()
        best = _better(best, _take(found, at)[:, 0], least.values, _take(distances.detach(), at)[:, 0], config)
        if iteration < (config.first_iterations if is_first else config.iterations):
            (actions.grad,) = torch.autograd.grad(cost.sum(), actions)
            optimiser.step()
            with torch.no_grad():
                actions.copy_(shortened(actions, config.longest))
    return best


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [N, S, ...] at [N, E]: [N, E, ...]."""
    return rows.gather(1, index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:]))


def _drawn(generator: np.random.Generator, weights: Tensor) -> int:
    """A number drawn by its weight."""
    chances = weights.double().cpu().numpy()
    return int(generator.choice(len(chances), p=chances / chances.sum()))


def _plan(actions: Tensor, cost: Tensor, distances: Tensor, config: PlannerConfig) -> Plan:
    """Plans from sequences [N, H, A], their costs [N] and distances [N, H]."""
    horizon = actions.shape[1]
    arrival = torch.full_like(cost, horizon, dtype=torch.int64)
    if config.cost == "arrival":
        arrival = (distances + _haste(distances, config)).argmin(dim=1) + 1
    steps = torch.arange(horizon, device=actions.device)
    actions = actions * (steps < arrival[:, None])[..., None]
    return Plan(actions, cost, distances.gather(1, arrival[:, None] - 1)[:, 0], arrival)


def _better(best: Plan, actions: Tensor, cost: Tensor, distances: Tensor, config: PlannerConfig) -> Plan:
    """Row by row the plans that cost less."""
    new = _plan(actions, cost, distances, config)
    wins = new.cost < best.cost
    return Plan(
        *(torch.where(wins.view(-1, *[1] * (one.dim() - 1)), one, other) for one, other in zip(new, best, strict=True))
    )
