"""What a training step minimises, given encodings and actions.

RolloutEnergy       the VICReg energy of a rollout from frame 0 against the encodings
OneStepLikelihood   how likely each encoding is, given the one before and the action
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.config import EnergyConfig, OneStepConfig
from jepa_fast.model.build import AnyWorld
from jepa_fast.model.energy import Energy, energy, fused_energy
from jepa_fast.model.feature_world import FeatureWorld, StayOrMove
from jepa_fast.model.world import World

# Share of either outcome that no gate can take away: without it one transition that a closed gate
# calls impossible would be the whole loss.
LEAST_SHARE = 1e-6


class OneStepTerms(NamedTuple):
    """The weighted likelihood term and what it is made of. Scalars on the states' device."""

    total: Tensor
    surprise: Tensor  # mean negative logarithm of the likelihood
    invariance: Tensor  # mean squared error of the expected next state
    moving: Tensor  # mean probability of having moved


Terms = Energy | OneStepTerms


class Objective(Protocol):
    """Terms, of which `total` is minimised, and the predicted states [B, T-1, D], detached."""

    def __call__(
        self, encoded: Tensor, actions: Tensor, clock: Tensor, weights: Tensor, targets: Tensor | None
    ) -> tuple[Terms, Tensor]:
        """From encodings [B, T, .], actions [B, T-1, 2], and the weights that `energy_weights` gives for the step."""


class RolloutEnergy:
    """The energy of a rollout that sees frame 0 and the actions."""

    def __init__(self, world: World, config: EnergyConfig, fused: bool) -> None:
        self.world, self.config, self.energy = world, config, fused_energy if fused else energy

    def __call__(
        self, encoded: Tensor, actions: Tensor, clock: Tensor, weights: Tensor, targets: Tensor | None
    ) -> tuple[Energy, Tensor]:
        """The energy's terms; `weights` are of invariance, variance and covariance."""
        predicted = self.world.predictor(encoded[:, 0], actions, clock)
        return self.energy(predicted, encoded[:, 1:], weights, self.config, targets), predicted.detach()


class OneStepLikelihood:
    """-log[g N(z', z + A a, s^2) + (1 - g) N(z', z, s^2)] without the constants of N; z' the next frame's encoding."""

    def __init__(self, world: FeatureWorld) -> None:
        self.world = world

    def __call__(
        self, encoded: Tensor, actions: Tensor, clock: Tensor, weights: Tensor, targets: Tensor | None
    ) -> tuple[OneStepTerms, Tensor]:
        """The likelihood's terms; `weights` are of the surprise, and the width s in pixels."""
        weight, width = weights.unbind()
        config = self.world.config
        predicted = self.world.predict(encoded[:, :-1], actions)
        following = encoded[:, 1:, : config.dim]
        surprise = one_step_surprise(predicted, following, width * (2 * config.spread / (config.frame - 1))).mean()
        states = predicted.mean.detach()
        invariance = F.mse_loss(states, following.detach())
        moving = predicted.log_keep.detach().exp().mean()
        return OneStepTerms(weight * surprise, surprise, invariance, moving), states


def one_step_surprise(predicted: StayOrMove, following: Tensor, width: Tensor) -> Tensor:
    """-log of the two outcomes' likelihood of `following` [..., D], Gaussians of standard deviation `width`: [...]."""
    with torch.autocast(following.device.type, enabled=False):
        outcomes = torch.stack([predicted.stayed, predicted.moved])
        exponents = -(outcomes - following).square().sum(dim=-1) / (2 * width.square())
        keep = LEAST_SHARE + (1 - 2 * LEAST_SHARE) * predicted.log_keep.exp()
        highest = exponents.amax(dim=0)
        stayed, moved = (exponents - highest).exp().unbind()
        return -highest - torch.log((1 - keep) * stayed + keep * moved)


def choose_objective(world: AnyWorld, config: EnergyConfig | OneStepConfig, fused: bool) -> Objective:
    """The objective that `config` asks for; `fused` takes the compiled energy."""
    if isinstance(world, FeatureWorld):
        return OneStepLikelihood(world)
    assert isinstance(config, EnergyConfig)
    return RolloutEnergy(world, config, fused)
