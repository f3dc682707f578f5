"""The likelihood of the blocked/free mixture: how likely each encoding is, given the one before and the action.

    nll   mean over (b, t) of -log[g N(z', z + A a, s^2) + (1 - g) N(z', z, s^2)], without the constants of N

z' is the next frame's encoding, g the probability of moving by A a, s the scheduled `sigma`. Where the encoder is
learned as a whole, VICReg's variance and covariance terms keep positions apart. They are taken of the positions that
latents stand for, in half frames: of an embedded latent all but two dimensions' variance would be missing whatever the
encoder does.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from jepa_fast.config import MixtureConfig, VICRegConfig
from jepa_fast.kernels.gated import gated_likelihood, gated_likelihood_reference
from jepa_fast.models.gated import Encoded
from jepa_fast.objectives.objective import Execution, Loss, Objective, Weights
from jepa_fast.objectives.processes import gathered, mean_over_processes
from jepa_fast.objectives.vicreg import regularisers

if TYPE_CHECKING:
    from jepa_fast.models.gated import GatedModel
    from jepa_fast.models.model import Model


class MixtureLikelihood(Objective):
    """The likelihood of one-step predictions of a model of the gated family.

    Terms: `nll`, and where latents can collapse `variance` and `covariance` of positions; watched beside them are
    `invariance`, the mean squared error of the expected next latent, and `move_probability`, the mean of g.
    """

    config: MixtureConfig

    def __init__(self, config: MixtureConfig | None = None) -> None:
        super().__init__()
        self.config = config or MixtureConfig()

    def bind(self, model: "Model", execution: Execution | None = None) -> "BoundMixture":
        """The loss of one step from every frame."""
        return BoundMixture(self, cast("GatedModel", model), execution or Execution())


class BoundMixture:
    """The loss of one step from every frame."""

    def __init__(self, objective: MixtureLikelihood, model: "GatedModel", execution: Execution) -> None:
        self.model, self.span, self.group = model, execution.span, execution.group
        self.names = objective.config.terms(model.config)
        self.transition = execution.compiled(model.transition)
        self.is_fused = execution.kernels != "reference"

    def __call__(
        self, encoded: Encoded, actions: Tensor, clock: Tensor, weights: Weights, targets: Tensor | None = None
    ) -> tuple[Loss, Tensor]:
        """The loss, and the expected next latents; arguments as in `Bound`; `weights` has sigma in pixels too."""
        with self.span("rollout"):
            predicted = self.transition(self.model.frames(encoded, slice(-1)), actions)
        with self.span("loss"):
            sigma = weights["sigma"] * self.model.pixel
            with torch.autocast(actions.device.type, enabled=False):
                stayed, step, log_stay, log_move = predicted
                if self.is_fused:
                    parts, latents = gated_likelihood(encoded.latents, step, log_stay, log_move, sigma)
                else:
                    following = encoded.latents[:, 1:]
                    parts, latents = gated_likelihood_reference(stayed, step, log_stay, log_move, following, sigma)
            if self.group is not None:
                parts = mean_over_processes(parts, self.group)
            total = weights["nll"] * parts[0]
            if not self.model.config.can_collapse:
                return Loss(total, dict(zip(self.names, parts.unbind(), strict=True))), latents
            with torch.autocast(actions.device.type, enabled=False):
                positions = self.model.lift.positions(encoded.latents)
                if self.group is not None:
                    positions = gathered(positions, self.group)
                spread = torch.stack(regularisers(positions, VICRegConfig()))
            total = total + (torch.stack([weights["variance"], weights["covariance"]]) * spread).sum()
            if self.model.centring > 0:
                total = total + self.model.centring * positions.mean(dim=(0, 1)).square().sum()
        return Loss(total, dict(zip(self.names, [*parts.unbind(), *spread.unbind()], strict=True))), latents
