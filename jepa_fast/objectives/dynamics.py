"""Latents that follow actions: prediction, and what keeps latents from collapsing while it becomes easy.

    invariance   mean over all elements of (prediction - encoding)^2
    variance     mean_j max(0, gamma - sqrt(var_j + eps)), of encodings
    covariance   sum_{i != j} S_ij^2 / D, S the covariance matrix of encodings
    sigreg       the distance of encodings from an isotropic Gaussian, see `sigreg`
    inverse      mean over all elements of (a_t - f(z_t, z_t+1))^2, f a network with one hidden layer
    similarity   mean over all elements of (z_t+1 - z_t)^2

Inverse dynamics asks of encodings that the action can be read off two in turn: they hold what actions change, at a
scale that can be told. Similarity asks that little else changes between them.

Sources: Bardes, Ponce, LeCun, VICReg, arXiv:2105.04906 (variance, covariance); Pathak et al., Curiosity-driven
Exploration by Self-supervised Prediction, arXiv:1705.05363 (inverse); Sobal et al., Joint Embedding Predictive
Architectures Focus on Slow Features, arXiv:2211.10831, and Learning from Reward-Free Offline Data, arXiv:2502.14819
(similarity and inverse beside VICReg); Balestriero and LeCun, LeJEPA, arXiv:2511.08544 (sigreg).
"""

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_fast.config import DynamicsConfig, VICRegConfig
from jepa_fast.errors import require
from jepa_fast.objectives.objective import BoundRollout, Execution, Loss, Objective, RolloutObjective, Weights
from jepa_fast.objectives.processes import gathered, mean_over_processes
from jepa_fast.objectives.sigreg import directions, sigreg
from jepa_fast.objectives.vicreg import regularisers

if TYPE_CHECKING:
    from jepa_fast.models.model import Model
    from jepa_fast.models.stepwise import StepwiseModel


class InverseDynamics(nn.Module):
    """The action between two latents [..., D] in turn: [..., A], by a network with one hidden layer."""

    def __init__(self, dim: int, action_size: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(2 * dim, hidden)
        self.project = nn.Linear(hidden, action_size)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """What action leads from one to the other."""
        actions: Tensor = self.project(F.gelu(self.expand(torch.cat([before, after], dim=-1))))
        return actions


class Dynamics(Objective):
    """The weighted sum of the module's terms; see there."""

    config: DynamicsConfig

    def __init__(self, config: DynamicsConfig | None = None) -> None:
        super().__init__()
        self.config = config or DynamicsConfig()
        self.inverse: InverseDynamics | None = None

    def attach(self, dim: int | None, action_size: int | None) -> None:
        """Make the network that reads actions off latents.

        Raises:
            InputError: the model's predictor does not say its `dim` and `action_dim`.
        """
        known = dim is not None and action_size is not None
        require(known, "predictor", f"dim {dim}, action_dim {action_size}", "a predictor that says both")
        if self.inverse is None and known:
            self.inverse = InverseDynamics(cast("int", dim), cast("int", action_size), self.config.inverse_hidden)

    def bind(self, model: "Model", execution: Execution | None = None) -> "BoundDynamics":
        """The loss of the model's rollouts and encodings."""
        return BoundDynamics(self, model, execution or Execution())


class BoundDynamics:
    """The loss of rollouts, from frame 0 or every so many frames, and of encodings."""

    def __init__(self, objective: Dynamics, model: "Model", execution: Execution) -> None:
        assert objective.inverse is not None, "a model attaches its objective"
        self.config, self.model, self.execution = objective.config, model, execution
        self.inverse = objective.inverse
        self.names = objective.config.terms(model.config)
        self._rollouts: BoundRollout | None = None
        if not model.can_advance:
            self._rollouts = BoundRollout(_Horizon(self.config), model, execution)

    def __call__(
        self, encoded: Any, actions: Tensor, clock: Tensor, weights: Weights, targets: Tensor | None = None
    ) -> tuple[Loss, Tensor]:
        """The loss, and the predictions; arguments as in `Bound`.

        Raises:
            ValueError: the horizon does not divide the number of steps.
        """
        with self.execution.span("rollout"):
            if self._rollouts is not None:
                predicted = self._rollouts.predictions(encoded, actions, clock)
            else:
                predicted = self.predictions(encoded, actions)
        with self.execution.span("loss"), torch.autocast(actions.device.type, enabled=False):
            terms = self.terms(predicted, self.model.latents(encoded), actions, clock)
            total = sum((weights[name] * terms[name] for name in self.names), torch.zeros_like(terms["invariance"]))
        return Loss(total, terms), predicted.detach()

    def predictions(self, encoded: Any, actions: Tensor) -> Tensor:
        """Predictions [B, T-1, D] of a model that advances any frame, from an encoding again after every horizon."""
        batch, steps, size = actions.shape
        horizon = self.config.horizon or steps
        rollouts, rest = divmod(steps, horizon)
        if rest:
            raise ValueError(f"objective.horizon: got {horizon}, expected a divisor of {steps} steps")
        by_rollout = actions.reshape(batch, rollouts, horizon, size)
        model = cast("StepwiseModel", self.model)
        moving, found = model.frames(encoded, slice(0, -1, horizon)), []
        for time in range(horizon):
            moving = model.advance(moving, by_rollout[:, :, time])
            found.append(model.latents(moving))
        return torch.stack(found, dim=2).reshape(batch, steps, -1)

    def terms(self, predicted: Tensor, encoded: Tensor, actions: Tensor, clock: Tensor) -> dict[str, Tensor]:
        """Every term of predictions [B, T-1, D], encodings [B, T, D] and actions [B, T-1, A], unweighted."""
        if encoded.dtype != torch.float64:
            predicted, encoded, actions = predicted.float(), encoded.float(), actions.float()
        config, group = self.config, self.execution.group
        before, after = encoded[:, :-1], encoded[:, 1:]
        targets = after.detach() if config.targets == "stop_gradient" else after
        means = [
            F.mse_loss(predicted, targets),
            F.mse_loss(self.inverse(before, after), actions),
            F.mse_loss(after, before),
        ]
        everywhere = encoded
        if group is not None:
            means = list(mean_over_processes(torch.stack(means), group).unbind())
            everywhere = gathered(encoded, group)
        variance, covariance = regularisers(everywhere, VICRegConfig(gamma=config.gamma))
        invariance, inverse, similarity = means
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        if config.projections > 0:
            flat = everywhere.flatten(0, 1)
            terms["sigreg"] = sigreg(flat, directions(flat.shape[1], config.projections, clock))
        return terms | {"inverse": inverse, "similarity": similarity}


class _Horizon(RolloutObjective):
    """Says how far predictors that give whole rollouts are fed their own output."""

    config: DynamicsConfig

    def __init__(self, config: DynamicsConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def horizon(self) -> int | None:
        """Steps of one rollout."""
        return self.config.horizon

    def forward(self, *_: Any) -> Loss:
        """The terms are `BoundDynamics`'s."""
        raise AssertionError("predictions alone are asked for")
