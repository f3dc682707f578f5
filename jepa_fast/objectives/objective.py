"""What every objective is: a module that a model is trained by, made ready once and called in every step.

An objective owns its options, the names of its terms and their weights. `bind` makes of it and a model the function
that the step calls, with what compiles its parts, what marks them in a profile and the processes that share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jepa_fast.config import Kernels, ObjectiveConfig
from jepa_fast.errors import InputError
from jepa_fast.kernels.dispatch import PLAIN

if TYPE_CHECKING:
    from jepa_fast.models.model import Model

Function = TypeVar("Function", bound=Callable[..., Any])
Span = Callable[[str], AbstractContextManager[Any]]
# A span that marks nothing.
no_span: Span = nullcontext

# The weights of a step by term, and what else the objective schedules by name: scalars on the latents' device.
Weights = Mapping[str, Tensor]


class Loss(NamedTuple):
    """What a step minimises and what it is made of. Scalars on the latents' device."""

    total: Tensor
    terms: dict[str, Tensor]  # unweighted


class Execution(NamedTuple):
    """How an objective runs: what compiles its parts, what marks them in a profile, the processes that share it.

    Shared by several processes, an objective is that of all their trajectories, on every process, with its exact
    gradient for the process's own: parameter gradients have to be summed, or the loss scaled by the number of
    processes where they are averaged.
    """

    compiled: Callable[[Any], Any] = lambda function: function
    span: Span = no_span
    group: dist.ProcessGroup | None = None
    kernels: Kernels = "reference"


class Bound(Protocol):
    """An objective made ready for a model."""

    names: tuple[str, ...]  # of the terms

    def __call__(
        self, encoded: Any, actions: Tensor, clock: Tensor, weights: Weights, targets: Tensor | None = None
    ) -> tuple[Loss, Tensor]:
        """The loss, and the predicted latents [B, T-1, D], detached.

        Args:
            encoded: what the model's encoder gives of [B, T] frames.
            actions: [B, T-1, A].
            clock: the dropout clock.
            weights: by name.
            targets: [B, T-1, D] of an averaged encoder, where the objective asks for one.
        """


class Objective(nn.Module, ABC):
    """What a model is trained by."""

    config: ObjectiveConfig

    @property
    def ema_decay(self) -> float | None:
        """Decay per step of the averaged encoder that gives its targets; None where it asks for none."""
        return None

    def attach(self, dim: int | None, action_size: int | None) -> None:
        """Make what is learned with the model: told once, as it is built, the size of its latents and actions.

        Raises:
            InputError: they are needed, and the model's predictor does not say them.
        """
        # Most objectives learn nothing themselves.
        return

    @abstractmethod
    def bind(self, model: "Model", execution: Execution | None = None) -> Bound:
        """The function that the step calls."""

    def ops(self, kernels: Kernels, device: Literal["cpu", "cuda"], dim: int | None) -> dict[str, str]:
        """What each of its ops runs on, for latents of `dim` numbers if that is known."""
        return {self.config.kind: PLAIN}


class RolloutObjective(Objective):
    """An objective on predicted latents and the encodings they are predictions of: `forward` is its loss."""

    @property
    def horizon(self) -> int | None:
        """Steps that the predictor is fed its own output for; None: all of them, from frame 0."""
        return None

    @abstractmethod
    def forward(
        self,
        predicted: Tensor,
        encoded: Tensor,
        weights: Weights,
        targets: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> Loss:
        """The loss of predictions [B, T-1, D] against encodings [B, T-1, D]; arguments as in `Bound`."""

    def loss(self, execution: Execution, device: Literal["cpu", "cuda"]) -> Callable[..., Loss]:
        """`forward` for these processes."""

        def compute(predicted: Tensor, encoded: Tensor, weights: Weights, targets: Tensor | None) -> Loss:
            return self.forward(predicted, encoded, weights, targets, execution.group)

        return compute

    def bind(self, model: "Model", execution: Execution | None = None) -> "BoundRollout":
        """The loss of the model's rollouts."""
        return BoundRollout(self, model, execution or Execution())


class BoundRollout:
    """The loss of rollouts: from frame 0, or with a horizon every so many frames."""

    def __init__(self, objective: RolloutObjective, model: "Model", execution: Execution) -> None:
        self.names = objective.config.terms(model.config)
        self.horizon, self.span = objective.horizon, execution.span
        self.roll_out = execution.compiled(model.predictor)
        device: Literal["cpu", "cuda"] = "cuda" if model.dropout_clock.is_cuda else "cpu"
        # What processes exchange in the middle of it would break the compiler's graph.
        loss = objective.loss(execution, device)
        self.loss: Callable[..., Loss] = loss if execution.group is not None else execution.compiled(loss)

    def __call__(
        self, encoded: Tensor, actions: Tensor, clock: Tensor, weights: Weights, targets: Tensor | None = None
    ) -> tuple[Loss, Tensor]:
        """The loss, and the predictions; arguments as in `Bound`.

        Raises:
            InputError: the horizon does not divide the number of steps.
        """
        with self.span("rollout"):
            predicted = self.predictions(encoded, actions, clock)
        with self.span("loss"):
            return self.loss(predicted, encoded[:, 1:], weights, targets), predicted.detach()

    def predictions(self, encoded: Tensor, actions: Tensor, clock: Tensor) -> Tensor:
        """Predictions [B, T-1, D] of frames 1..T-1."""
        if self.horizon is None:
            predicted: Tensor = self.roll_out(encoded[:, 0], actions, clock)
            return predicted
        batch, steps, size = actions.shape
        rollouts, rest = divmod(steps, self.horizon)
        if rest:
            raise InputError(f"objective.horizon: got {self.horizon}, expected a divisor of {steps} steps")
        first = encoded[:, : -1 : self.horizon].flatten(0, 1)
        # Each trajectory is so many rows of the dropout masks.
        clock = torch.stack([clock[0], clock[1], clock[2] * rollouts])
        predicted = self.roll_out(first, actions.reshape(batch * rollouts, -1, size), clock)
        return predicted.reshape(batch, steps, -1)


def check_latents(predicted: Tensor, encoded: Tensor) -> None:
    """Raise ValueError unless both are [B, T-1, D]."""
    if predicted.shape != encoded.shape or predicted.dim() != 3:
        shapes = f"{tuple(predicted.shape)} and {tuple(encoded.shape)}"
        raise ValueError(f"predicted, encoded: got shapes {shapes}, expected [B, T-1, D] twice")
