"""What planners ask of a world model: how far from the goal it would be after each action of many sequences.

Distances are those of latents, or of what a learned distance makes of them, in units of a full step: of how far the
longest action moves a latent where nothing is in its way. So costs mean the same whatever latents are scaled by.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.data.two_rooms.world import step
from jepa_fast.models.model import Model
from jepa_fast.planning.protocol import LONGEST_ACTION_PX, Episodes

# Of two moves that are one: latents less than so many full steps apart, actions less than 45 degrees.
NEARBY, ALIKE = 0.5, 0.7

Points = Callable[[Tensor], Tensor]

# Numbers of latents that rollouts keep at once, where a model can only be rolled out as a whole.
NUMBERS_TOGETHER = 2**24


def themselves(latents: Tensor) -> Tensor:
    """Latents as they are: distances are their own."""
    return latents


class Surprises(NamedTuple):
    """Actions of N episodes that did something else than the model said, M of each; latents of nan stand for none."""

    latents: Tensor  # [N, M, D] before the action
    actions: Tensor  # [N, M, A]
    moves: Tensor  # [N, M, D] what it added to the latent

    def corrected(self, before: Tensor, actions: Tensor, after: Tensor, unit: Tensor) -> Tensor:
        """Predicted latents [N, S, D], those of actions [N, S, A] that surprised nearby replaced by what was seen.

        Args:
            before: [N, S, D].
            actions: [N, S, A].
            after: [N, S, D] as the model says.
            unit: [N] how far a full step moves a latent.
        """
        gap = torch.cdist(before, self.latents) / unit[:, None, None]  # [N, S, M]
        ways = F.normalize(actions, dim=-1) @ F.normalize(self.actions, dim=-1).transpose(1, 2)
        gap = torch.where((gap < NEARBY) & (ways > ALIKE), gap, torch.inf)
        least = gap.min(dim=2)
        seen = before + self.moves.gather(1, least.indices[..., None].expand_as(before))
        return torch.where(least.values[..., None] < torch.inf, seen, after)


class Task(ABC):
    """N problems, each a state to start from and a goal."""

    count: int
    action_size: int
    steps: int = 0  # predicted so far, of one sequence each

    @abstractmethod
    def distances(self, actions: Tensor) -> Tensor:
        """After each of the actions [N, S, H, A], in full steps: [N, S, H]. Differentiable where the model is."""

    @abstractmethod
    def path(self, actions: Tensor) -> Tensor:
        """Predicted latents [N, H + 1, D] of one sequence [N, H, A] each, the state itself first."""

    @abstractmethod
    def now(self) -> Tensor:
        """Distance of the states to the goals, [N], in full steps."""

    @abstractmethod
    def here(self) -> Tensor:
        """The states' latents [N, D]."""

    @abstractmethod
    def full_step(self) -> Tensor:
        """How far the longest action moves a latent, [N]."""


class LatentTask(Task):
    """Problems in the latents of a model."""

    def __init__(
        self, model: Model, states: Any, goals: Tensor, action_size: int, longest: float, distance: Points = themselves
    ) -> None:
        """Problems of a model.

        Args:
            model: what predicts.
            states: encodings [N, 1] of frames.
            goals: latents [N, D].
            action_size: A.
            longest: length of the longest action.
            distance: maps latents [..., D] to points whose distance counts.
        """
        self.model, self.states, self.points = model, states, distance
        self.goals = distance(goals)
        self.count, self.action_size = len(goals), action_size
        self.surprises: Surprises | None = None
        self.unit = self._full_step(longest)

    def distances(self, actions: Tensor) -> Tensor:
        """See `Task`."""
        self.steps += actions.shape[1] * actions.shape[2]
        found = self._rollout(actions, lambda latents: self._squared(latents, self.goals))
        # A root has no gradient at zero.
        return (torch.stack(found, dim=-1) + 1e-12).sqrt() / self.unit[:, None, None]

    def path(self, actions: Tensor) -> Tensor:
        """See `Task`."""
        found = self._rollout(actions[:, None], lambda latents: latents[:, 0])
        return torch.stack([self.here(), *found], dim=1)

    def here(self) -> Tensor:
        """See `Task`."""
        return self.model.latents(self.states)[:, 0]

    def full_step(self) -> Tensor:
        """See `Task`."""
        return self.unit

    def now(self) -> Tensor:
        """See `Task`."""
        return self._squared(self.model.latents(self.states), self.goals)[:, 0].sqrt() / self.unit

    def _squared(self, latents: Tensor, points: Tensor) -> Tensor:
        """Squared distances [N, S] of latents [N, S, D] from points [N, .]."""
        return (self.points(latents) - points[:, None]).square().sum(dim=-1)

    def _full_step(self, longest: float) -> Tensor:
        """How far the longest action moves the latents: the most over many directions, [N]."""
        ends = torch.eye(self.action_size, device=self.goals.device)
        # Along every axis, and half-way between any two of them.
        pairs = [one + sign * other for one in ends for other in ends for sign in (-1, 1)]
        ways = torch.stack([sign * way for way in [*ends, *pairs] for sign in (-1, 1) if way.any()])
        ways = longest * ways / torch.linalg.vector_norm(ways, dim=1, keepdim=True)
        actions = ways[None, :, None].expand(self.count, -1, -1, -1)
        with torch.no_grad():
            first = self.points(self.model.latents(self.states))[:, 0]
            moves = self._rollout(actions, lambda latents: self._squared(latents, first))
        return moves[0].amax(dim=1).sqrt()

    def _rollout(self, actions: Tensor, read: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What `read` makes of the latents [N, S, D] after each action of [N, S, H, A]."""
        samples, horizon = actions.shape[1:3]
        if self.model.can_advance:
            # Samples stand where frames of a trajectory do: in the same surroundings, each by itself.
            moving = _each(self.states, lambda part, is_latent: part.expand(-1, samples, -1) if is_latent else part)
            found = []
            for time in range(horizon):
                before, action = self.model.latents(moving), actions[:, :, time]
                moving = self.model.advance(moving, action)
                if self.surprises is not None:
                    after = self.surprises.corrected(before, action, self.model.latents(moving), self.unit)
                    moving = after if isinstance(moving, Tensor) else moving._replace(latents=after)
                found.append(read(self.model.latents(moving)))
            return found
        dim = self.model.latents(self.states).shape[-1]
        together = max(1, NUMBERS_TOGETHER // (self.count * horizon * dim))
        parts = []
        for chunk in torch.split(actions, together, dim=1):
            latents = self.model.predict(_repeated(self.states, chunk.shape[1]), chunk.flatten(0, 1))
            latents = latents.view(self.count, -1, horizon, dim)
            parts.append([read(latents[:, :, time]) for time in range(horizon)])
        return [torch.cat(each, dim=1) for each in zip(*parts, strict=True)]


def _repeated(encoded: Any, times: int) -> Any:
    """Encodings of N frames, each of them so many times in turn."""
    return _each(encoded, lambda part, _: part.repeat_interleave(times, dim=0))


def _each(encoded: Any, change: Callable[[Tensor, bool], Tensor]) -> Any:
    """Encodings with every tensor of them changed; told whether it is the latents."""
    if isinstance(encoded, Tensor):
        return change(encoded, True)
    return type(encoded)(*(change(part, name == "latents") for name, part in encoded._asdict().items()))


class SimulatorTask(Task):
    """Problems in the simulator itself: what no model's planner can do better than. Distances are those in pixels."""

    action_size = 2

    def __init__(self, episodes: Episodes, locations: Tensor) -> None:
        """Where the agents are, float32 [N, 2], in the rooms of the episodes."""
        self.episodes, self.locations = episodes, locations
        self.count = len(locations)

    def distances(self, actions: Tensor) -> Tensor:
        """See `Task`."""
        self.steps += actions.shape[1] * actions.shape[2]
        gap = self._path(actions)[:, :, 1:].double() - torch.from_numpy(self.episodes.goals).double()[:, None, None]
        return (gap.square().sum(dim=-1).sqrt() / LONGEST_ACTION_PX).float()

    def path(self, actions: Tensor) -> Tensor:
        """Locations in place of latents."""
        return self._path(actions[:, None])[:, 0]

    def now(self) -> Tensor:
        """See `Task`."""
        gap = self.locations.double() - torch.from_numpy(self.episodes.goals).double()
        return (gap.square().sum(dim=-1).sqrt() / LONGEST_ACTION_PX).float()

    def here(self) -> Tensor:
        """Locations in place of latents."""
        return self.locations

    def full_step(self) -> Tensor:
        """See `Task`."""
        return torch.full((self.count,), LONGEST_ACTION_PX)

    def _path(self, actions: Tensor) -> Tensor:
        """Locations [N, S, H + 1, 2]."""
        wall_x, door_y = self.episodes.wall_x[:, None], self.episodes.door_y[:, None]
        here = self.locations.numpy()[:, None].repeat(actions.shape[1], axis=1)
        path = [here]
        for time in range(actions.shape[2]):
            path.append(step(path[-1], actions[:, :, time].numpy(), wall_x, door_y))
        return torch.stack([torch.from_numpy(each) for each in path], dim=2)
