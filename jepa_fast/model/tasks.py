"""What a world is asked to predict in training, and what that costs.

    RolloutTask   all later states from frame 0 and the actions; costs the VICReg energy against the encodings
    OneStepTask   each next state from the encoding before and its action; costs how surprising the next encoding is

Over several processes, costs are those of all their trajectories, as `jepa_fast.model.energy` says.
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.config import EnergyConfig, OneStepConfig
from jepa_fast.model.build import AnyWorld
from jepa_fast.model.energy import Energy, energy, fused_energy, gathered
from jepa_fast.model.feature_world import FeatureWorld, StayOrMove
from jepa_fast.model.world import World


class OneStepTerms(NamedTuple):
    """The weighted surprise and what it is made of. Scalars on the states' device."""

    total: Tensor
    surprise: Tensor  # mean negative logarithm of the likelihood
    invariance: Tensor  # mean squared error of the expected next state
    moving: Tensor  # mean probability of having moved


Terms = Energy | OneStepTerms


class Task(Protocol):
    """A step predicts, then takes the terms of what it predicted; `total` among them is minimised."""

    def predict(self, encoded: Tensor, actions: Tensor, clock: Tensor) -> Any:
        """What this task predicts from encodings [B, T, .] and actions [B, T-1, 2]."""

    def terms(self, predicted: Any, encoded: Tensor, weights: Tensor, targets: Tensor | None) -> Terms:
        """Its terms against the encodings; `weights` are what `energy_weights` gives for the step."""

    def states(self, predicted: Any) -> Tensor:
        """The predicted states [B, T-1, D], detached."""


class RolloutTask:
    """The energy of a rollout that sees frame 0 and the actions."""

    def __init__(self, world: World, config: EnergyConfig, fused: bool, group: dist.ProcessGroup | None = None) -> None:
        self.world, self.config, self.group = world, config, group
        self.energy = fused_energy if fused else energy

    def predict(self, encoded: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predicted states [B, T-1, D]."""
        predicted: Tensor = self.world.predictor(encoded[:, 0], actions, clock)
        return predicted

    def terms(self, predicted: Tensor, encoded: Tensor, weights: Tensor, targets: Tensor | None) -> Energy:
        """The energy's terms; `weights` are of invariance, variance and covariance."""
        return self.energy(predicted, encoded[:, 1:], weights, self.config, targets, self.group)

    def states(self, predicted: Tensor) -> Tensor:
        """The predictions themselves."""
        return predicted.detach()


class OneStepTask:
    """-log[g N(z', z + A a, s^2) + (1 - g) N(z', z, s^2)] without the constants of N; z' the next frame's state."""

    def __init__(self, world: FeatureWorld, group: dist.ProcessGroup | None = None) -> None:
        self.world, self.group = world, group

    def predict(self, encoded: Tensor, actions: Tensor, clock: Tensor) -> StayOrMove:
        """Both outcomes of every step."""
        return self.world.predict(encoded[:, :-1], actions)

    def terms(self, predicted: StayOrMove, encoded: Tensor, weights: Tensor, targets: Tensor | None) -> OneStepTerms:
        """The surprise and what goes with it; `weights` are that of the surprise, and the width s in pixels."""
        following = encoded[:, 1:, : self.world.config.dim]
        surprise = one_step_surprise(predicted, following, weights[1] * self.world.pixel).mean()
        with torch.no_grad():
            watched = [F.mse_loss(predicted.mean, following), predicted.log_move.exp().mean()]
        parts = torch.stack([surprise, *watched])
        if self.group is not None:
            parts = gathered(parts[None], self.group).mean(dim=0)
        return OneStepTerms(weights[0] * parts[0], *parts.unbind())

    def states(self, predicted: StayOrMove) -> Tensor:
        """The expected next states."""
        return predicted.mean.detach()


def one_step_surprise(predicted: StayOrMove, following: Tensor, width: Tensor) -> Tensor:
    """-log of the two outcomes' likelihood of `following` [..., D], Gaussians of standard deviation `width`: [...]."""
    with torch.autocast(following.device.type, enabled=False):
        gap = following - predicted.stayed
        distances = torch.stack([gap.square().sum(dim=-1), (gap - predicted.step).square().sum(dim=-1)])
        exponents = torch.stack([predicted.log_stay, predicted.log_move]) - distances / (2 * width.square())
        return -torch.logsumexp(exponents, dim=0)


def choose_task(
    world: AnyWorld, config: EnergyConfig | OneStepConfig, fused: bool, group: dist.ProcessGroup | None = None
) -> Task:
    """The task that `config` asks for; `fused` takes the compiled energy, a `group` of processes shares the cost."""
    if isinstance(world, FeatureWorld):
        return OneStepTask(world, group)
    assert isinstance(config, EnergyConfig)
    return RolloutTask(world, config, fused, group)
