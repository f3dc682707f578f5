"""Predictors and what they are asked, drawn at random; no parameter keeps a default of one or zero."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_fast.kernels.rollout import RolloutWeights, rollout_reference

FORMS = list(itertools.product(("sum", "state"), ("after_norm", "before_norm")))
CLOCK = (2**40 + 3, 7, 5)


class Case(NamedTuple):
    first: Tensor  # [B, D]
    actions: Tensor  # [B, S, A]
    weights: RolloutWeights
    clock: Tensor
    gradient: Tensor  # of the states, [B, S, D]

    def leaves(self) -> list[Tensor]:
        return [self.first, self.actions, *self.weights]

    def to(self, *target) -> "Case":
        """The same in another type or on another device, with leaves of its own."""
        first, actions, *weights = (leaf.detach().to(*target).requires_grad_() for leaf in self.leaves())
        clock = self.clock.to(first.device)
        return Case(first, actions, RolloutWeights(*weights), clock, self.gradient.to(*target))


def draw(dim: int, batch: int, steps: int, dtype: torch.dtype = torch.float32, action_size: int = 2) -> Case:
    generator = torch.Generator().manual_seed(dim * 10_000 + batch * 100 + steps)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (mean + scale * drawn).to(dtype).requires_grad_()

    hidden = 4 * dim
    weights = RolloutWeights(
        normal(dim, scale=0.3, mean=1), normal(dim, scale=0.3), normal(dim, action_size), normal(dim, scale=0.3),
        normal(dim, scale=0.3, mean=1), normal(dim, scale=0.3), normal(hidden, dim, scale=dim**-0.5),
        normal(hidden, scale=0.3), normal(hidden, scale=0.3, mean=1), normal(hidden, scale=0.3),
        normal(dim, hidden, scale=hidden**-0.5), normal(dim, scale=0.3),
    )  # fmt: skip
    gradient = normal(batch, steps, dim).detach()
    return Case(normal(batch, dim), normal(batch, steps, action_size), weights, torch.tensor(CLOCK), gradient)


def results(function, case: Case, **options) -> dict[str, Tensor]:
    """The states that `function` gives, and the gradient of every leaf."""
    states = function(case.first, case.actions, case.weights, case.clock, **options)
    gradients = torch.autograd.grad(states, case.leaves(), case.gradient.to(states.dtype))
    names = ["first", "actions", *RolloutWeights._fields]
    return {"states": states.detach(), **dict(zip(names, gradients, strict=True))}


def truth(case: Case, **options) -> dict[str, Tensor]:
    """In float64 on the CPU."""
    return results(rollout_reference, case.to("cpu", torch.float64), **options)


def worst_error(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, str]:
    """The largest norm of an error over the norm of the truth, and whose it is."""
    errors = {
        name: ((ours[name].cpu().double() - value).norm() / value.norm().clamp(min=1e-30)).item()
        for name, value in exact.items()
    }
    name = max(errors, key=lambda key: errors[key])
    return errors[name], name
