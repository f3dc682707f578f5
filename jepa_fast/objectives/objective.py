"""What a training step minimises, given encodings and actions.

RolloutEnergy       the VICReg or a contrastive energy of a rollout from frame 0 against the encodings
MixtureLikelihood   how likely each encoding is, given the one before and the action
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from jepa_fast.config import AnyEnergyConfig, ContrastConfig, EnergyConfig, OneStepConfig
from jepa_fast.models.gated import AnyEncoded, BlockedFreeMixture, Encoded, GatedModel
from jepa_fast.models.jepa import World
from jepa_fast.models.registry import AnyWorld
from jepa_fast.objectives.infonce import ContrastTerms, contrast
from jepa_fast.objectives.vicreg import Energy, energy, fused_energy, gathered, mean_over_processes, regularisers

Function = TypeVar("Function", bound=Callable[..., Any])
Span = Callable[[str], AbstractContextManager[Any]]
# A span that marks nothing.
no_span: Span = nullcontext


class Execution(NamedTuple):
    """How an objective runs: what compiles its parts, what marks them in a profile, the processes that share it.

    Shared by several processes, an objective is that of all their trajectories, as `energy` describes.
    """

    compiled: Callable[[Any], Any] = lambda function: function
    span: Span = no_span
    group: dist.ProcessGroup | None = None


class OneStepTerms(NamedTuple):
    """The weighted likelihood term and what it is made of. Scalars on the states' device."""

    total: Tensor
    surprise: Tensor  # mean negative logarithm of the likelihood
    invariance: Tensor  # mean squared error of the expected next state
    moving: Tensor  # mean probability of having moved


class RegularisedTerms(NamedTuple):
    """What `OneStepTerms` holds, the total with the shares of regularisers and centring, and the former, unweighted."""

    total: Tensor
    surprise: Tensor
    invariance: Tensor
    moving: Tensor
    variance: Tensor
    covariance: Tensor


Terms = Energy | OneStepTerms | RegularisedTerms | ContrastTerms


class Objective(Protocol):
    """Terms, of which `total` is minimised, and the predicted states [B, T-1, D], detached."""

    def __call__(
        self, encoded: AnyEncoded, actions: Tensor, clock: Tensor, weights: Tensor, targets: Tensor | None
    ) -> tuple[Terms, Tensor]:
        """From encodings of [B, T] frames, actions [B, T-1, 2], and what `energy_weights` gives for the step."""


class RolloutEnergy:
    """The energy of rollouts, VICReg's or a contrastive one: from frame 0, or with a horizon every so many frames."""

    def __init__(self, world: World, config: EnergyConfig | ContrastConfig, fused: bool, execution: Execution) -> None:
        self.config, self.span = config, execution.span
        self.horizon = config.horizon if isinstance(config, EnergyConfig) else None
        self.roll_out = execution.compiled(world.predictor)
        # To the energy, targets of an averaged encoder are tensors like any others that it is handed.
        self._handed_in = replace(config, targets="ema") if isinstance(config, EnergyConfig) else None
        self.energy: Callable[..., Terms] = fused_energy if fused else energy
        if isinstance(config, ContrastConfig):
            self.energy = contrast
        if execution.group is None:
            self.energy = execution.compiled(self.energy)
        else:
            self.energy = functools.partial(self.energy, process_group=execution.group)

    def __call__(
        self, encoded: AnyEncoded, actions: Tensor, clock: Tensor, weights: Tensor, targets: Tensor | None
    ) -> tuple[Terms, Tensor]:
        """The energy's terms; `weights` are of invariance, variance and covariance, or of the contrast and zeros.

        A fourth is the share of their gradient that encodings get as targets.

        Raises:
            ValueError: the horizon does not divide the number of steps.
        """
        assert isinstance(encoded, Tensor)
        with self.span("rollout"):
            predicted = self._predict(encoded, actions, clock)
        encoded, config = encoded[:, 1:], self.config
        with self.span("energy"):
            if len(weights) == 4:
                assert self._handed_in is not None
                targets, config = share_of_gradient(encoded, weights[3]), self._handed_in
            return self.energy(predicted, encoded, weights[:3], config, targets), predicted.detach()

    def _predict(self, encoded: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predictions [B, T-1, D] of frames 1..T-1."""
        if self.horizon is None:
            predicted: Tensor = self.roll_out(encoded[:, 0], actions, clock)
            return predicted
        batch, steps, _ = actions.shape
        rollouts, rest = divmod(steps, self.horizon)
        if rest:
            raise ValueError(f"energy.horizon: got {self.horizon}, expected a divisor of {steps} steps")
        first = encoded[:, : -1 : self.horizon].flatten(0, 1)
        # Each trajectory is so many rows of the dropout masks.
        clock = torch.stack([clock[0], clock[1], clock[2] * rollouts])
        predicted = self.roll_out(first, actions.reshape(batch * rollouts, -1, 2), clock)
        return predicted.reshape(batch, steps, -1)


class _ShareOfGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a scalar."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (share,) = ctx.saved_tensors
        return gradients[0] * share, None


def share_of_gradient(values: Tensor, share: Tensor) -> Tensor:
    """`values`, whose gradient is multiplied by the scalar `share`: 0 is a stop-gradient that a device decides on."""
    out: Tensor = _ShareOfGradient.apply(values, share)  # type: ignore[no-untyped-call]
    return out


class MixtureLikelihood:
    """-log[g N(z', z + A a, s^2) + (1 - g) N(z', z, s^2)] without the constants of N; z' the next frame's encoding.

    Where the encoder is learned as a whole, the variance and the covariance term of the energy keep positions apart.
    They are taken of the positions that states stand for, in half frames: of a lifted state all but two dimensions'
    variance would be missing whatever the encoder does.
    """

    def __init__(self, world: GatedModel, execution: Execution) -> None:
        self.world, self.span, self.group = world, execution.span, execution.group
        self.predict = execution.compiled(world.predict)

    def __call__(
        self, encoded: AnyEncoded, actions: Tensor, clock: Tensor, weights: Tensor, targets: Tensor | None
    ) -> tuple[OneStepTerms | RegularisedTerms, Tensor]:
        """The terms; `weights` are of the surprise, the width s in pixels, the weights of variance and covariance."""
        assert isinstance(encoded, Encoded)
        with self.span("rollout"):
            predicted = self.predict(encoded.frames(slice(-1)), actions)
        following = encoded.states[:, 1:]
        with self.span("energy"):
            surprise = mixture_nll(predicted, following, weights[1] * self.world.pixel).mean()
            with torch.no_grad():
                states = predicted.mean
                watched = F.mse_loss(states, following), predicted.log_move.exp().mean()
            terms = torch.stack([surprise, *watched])
            if self.group is not None:
                terms = mean_over_processes(terms, self.group)
            if not self.world.can_collapse:
                return OneStepTerms(weights[0] * terms[0], *terms.unbind()), states
            with torch.autocast(actions.device.type, enabled=False):
                positions = self.world.lift.positions(encoded.states)
                if self.group is not None:
                    positions = gathered(positions, self.group)
                spread = torch.stack(regularisers(positions, EnergyConfig()))
            total = weights[0] * terms[0] + (weights[2:] * spread).sum()
            if self.world.centring > 0:
                total = total + self.world.centring * positions.mean(dim=(0, 1)).square().sum()
        return RegularisedTerms(total, *terms.unbind(), *spread.unbind()), states


def mixture_nll(predicted: BlockedFreeMixture, following: Tensor, width: Tensor) -> Tensor:
    """-log of the two outcomes' likelihood of `following` [..., D], Gaussians of standard deviation `width`: [...]."""
    with torch.autocast(following.device.type, enabled=False):
        gap = following - predicted.stayed
        distances = torch.stack([gap.square().sum(dim=-1), (gap - predicted.step).square().sum(dim=-1)])
        exponents = torch.stack([predicted.log_stay, predicted.log_move]) - distances / (2 * width.square())
        return -torch.logsumexp(exponents, dim=0)


def choose_objective(
    world: AnyWorld, config: AnyEnergyConfig, fused: bool, execution: Execution | None = None
) -> Objective:
    """The objective that `config` asks for; `fused` takes the compiled energy."""
    execution = execution or Execution()
    if isinstance(world, GatedModel):
        return MixtureLikelihood(world, execution)
    assert not isinstance(config, OneStepConfig)
    return RolloutEnergy(world, config, fused, execution)
